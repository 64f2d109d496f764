"""One Brownian path per sample, which solvers with any steps are driven by.

The path is never stored: its value is found by bisection, down a tree whose nodes hold one normal draw each, a function
of the sample's seed and the node alone (Jelincic, Foster and Kidger 2024, arXiv 2405.06464; Li et al. 2020, arXiv
2001.01328). So a path is the same whatever times it is asked for.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError, shown

LEVELS = 20  # of the tree; times are rounded to 2^-20 of lambda's range


def increments(noise: NoiseSchedule, t_z: Tensor, normal: Callable[[int], np.ndarray]) -> list[np.ndarray]:
    """The increments of a Brownian motion in the clock e^(2 lambda) between times, over their standard deviations.

    They are independent standard normal noises. The tree bisects lambda over all of the noise schedule, from T to
    t_min. Each time is rounded to its finest grid, of 2^20 parts, and an increment's standard deviation is that of the
    rounded times.

    Args:
        noise: the noise schedule.
        t_z: [Z+1] times, strictly falling.
        normal: the standard normal draw of a node of the tree, in the shape of a sample: 0 is the whole path's
            increment, 1 the root's bisection, and 2n and 2n + 1 are the halves of node n.

    Returns:
        Z increments, each in the shape of a sample.

    Raises:
        UserError: for times that are so close that they are the same on the grid.
    """
    ends = noise.lambda_(torch.tensor([noise.T, noise.t_min], dtype=torch.float64, device="cpu"))
    start, length, count = float(ends[0]), float(ends[1] - ends[0]), 2**LEVELS
    marks = [min(max(round((lam - start) / length * count), 0), count) for lam in noise.lambda_(t_z.cpu()).tolist()]
    if any(a >= b for a, b in pairwise(marks)):
        raise UserError(f"the steps of a solver with noise must be at least 2^-{LEVELS} of lambda's range long, got "
                        f"times {shown(t_z.tolist())}")  # fmt: skip

    def passed(left: int, right: int) -> float:
        """The clock's time between two points of the grid."""
        since = math.exp(2 * (start + length * left / count))
        return since * math.expm1(2 * length * (right - left) / count)

    found: list[np.ndarray | float] = [0.0] * (len(marks) - 1)

    def descend(node: int, left: int, right: int, increment: np.ndarray) -> None:
        k = bisect_right(marks, left)  # the first mark after left
        if k == len(marks) or marks[k] >= right:  # no mark within
            if 0 < k < len(marks):
                found[k - 1] = found[k - 1] + increment
            return
        middle = (left + right) // 2
        a, b = passed(left, middle), passed(middle, right)
        first = a / (a + b) * increment + math.sqrt(a * b / (a + b)) * normal(node)
        descend(2 * node, left, middle, first)
        descend(2 * node + 1, middle, right, increment - first)

    descend(1, 0, count, math.sqrt(passed(0, count)) * normal(0))
    return [np.asarray(w) / math.sqrt(passed(a, b)) for w, a, b in zip(found, marks, marks[1:], strict=False)]
