"""Distances between a student's samples and the teacher's: one number per pair."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from s4spipe.runtime.errors import unknown


def l2(x: Tensor, y: Tensor) -> Tensor:
    """The mean squared difference [B] of pixels, or of the latents of a latent model."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(||x - y||^2 + c^2) - c, c = 0.00054 sqrt(dim) (Song and Dhariwal 2023, arXiv 2310.14189, sec. 3.3), [B]."""
    c = 0.00054 * math.sqrt(x[0].numel())
    return ((x - y).square().flatten(1).sum(1) + c**2).sqrt() - c


DistanceFn = Callable[[Tensor, Tensor], Tensor]  # x [B, ...], y [B, ...] -> [B]
DISTANCES = ("l2", "pseudo_huber", "perceptual")


def build(name: str, network: Any = None, decode: Callable[[Tensor], Tensor] = lambda x: x) -> DistanceFn:
    """A distance by its name: (x [B, ...], y [B, ...]) -> [B].

    Args:
        name: one of DISTANCES.
        network: for `perceptual`, a network of s4spipe.features with a method `distance`.
        decode: for `perceptual`, turns samples into images.

    Raises UserError for an unknown name.
    """
    if name not in DISTANCES:
        raise unknown("distance", name, DISTANCES)
    if name == "perceptual":
        return lambda x, y: network.distance(decode(x), decode(y))
    return {"l2": l2, "pseudo_huber": pseudo_huber}[name]
