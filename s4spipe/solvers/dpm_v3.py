"""DPM-Solver-v3 (Zheng et al. 2023, arXiv 2310.13268): a multistep solver that knows statistics of its model.

With y = x / alpha and the noise prediction eps, the probability flow is dy/dlambda = -exp(-lambda) eps. Three functions
of lambda that the model determines (sec. 3.1), each with a value for every number of a sample, make what is left of it
as constant as they can:

    N = exp(-lambda) eps - l y = (1 - l) y - D    l: the linear part of exp(-lambda) eps in y
    dN/dlambda ~ s N + b                          so that g = exp(-S) N - int exp(-S) b is nearly constant
    y_t = exp(-(L_t - L_s)) (y_s - int_s^t exp(K(u) - K(s)) (g(u) + B(u)) du)    exactly

with L = int l, S = int s, K = L + S, B(u) = int_s^u exp(S_s - S_v) b_v dv, and g measured from the start s of a step:
g = exp(S_s - S) N - B. A polynomial in lambda through past values of g is integrated exactly. For Gaussian data, g is
constant, so that a step of any size is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor, tensordot

from s4spipe.runtime.errors import UserError, shown
from s4spipe.sampling.tableau.basis import PLAIN, Arrays, Basis
from s4spipe.solvers.symbolic import Trace

MOST_ORDER = 3
WIDEST = 0.25  # in lambda, of a part of a step with a quadrature of its own; exact to rounding for l + s up to 10
PSEUDO, CORRECTED = 5, 6  # the authors' rules: up to so many steps
ROOTS, WEIGHTS = (torch.from_numpy(v) / 2 for v in np.polynomial.legendre.leggauss(6))
NODES = ROOTS + 0.5  # of Gauss-Legendre quadrature on [0, 1]


def _up_to_nodes() -> Tensor:
    """[6, 6]: the integrals from 0 to each node of the polynomials that are 1 at one node and 0 at the others."""
    powers = torch.arange(6)
    return (NODES[:, None] ** (powers + 1) / (powers + 1)) @ torch.linalg.inv(NODES[:, None] ** powers)


UP_TO = _up_to_nodes()


@dataclass(frozen=True, eq=False)
class Passage:
    """Integrals over a step from s to t, each [*K].

    Attributes:
        L, S: of l and of s.
        B: int exp(S_s - S_u) b_u du.
        C: int exp(K_u - K_s) B(u) du, where B(u) is B up to u.
        E: int exp(K_u - K_s) (u - s)^n du for n = 0, 1, 2.
    """

    L: Tensor
    S: Tensor
    B: Tensor
    C: Tensor
    E: list[Tensor]


@dataclass(frozen=True, eq=False)
class Statistics:
    """The functions l, s and b of lambda, linear between the points of a grid.

    Attributes:
        lam: [G] the grid, rising, float64.
        l, s, b: [G, *K] values there, float64. K is the shape of a sample, or one that broadcasts over it ([C, 1, 1]),
            or () for plain numbers.
        mean: [*K] of the model's samples, for analytic first steps; None if it is not known.

    Raises:
        UserError: for other shapes and dtypes, a grid that does not rise, and what is not finite.
    """

    lam: Tensor
    l: Tensor  # noqa: E741
    s: Tensor
    b: Tensor
    mean: Tensor | None = None

    def __post_init__(self) -> None:
        if self.lam.ndim != 1 or len(self.lam) < 2 or not (self.lam.diff() > 0).all():
            raise UserError(f"statistics need a grid of at least two lambdas that rise, got {shown(self.lam.tolist())}")
        for name in ("lam", "l", "s", "b"):
            own = getattr(self, name)
            shape = self.lam.shape if name == "lam" else (len(self.lam), *self.l.shape[1:])
            if own.shape != shape or own.dtype != torch.float64 or not own.isfinite().all():
                raise UserError(f"statistics need {name} as finite float64 of shape {list(shape)}, got {shown(own)}")

    @property
    def basis(self) -> Basis:
        """What a weight of a solver that uses them multiplies."""
        shape = tuple(self.l.shape[1:])
        return Arrays(shape, 0) if shape else PLAIN

    def at(self, name: str, lam: Tensor) -> Tensor:
        """The values of l, s or b at lambdas [n], [n, *K].

        Raises UserError for lambdas outside the grid.
        """
        grid, values = self.lam, getattr(self, name)
        slack = 1e-6 * (grid[-1] - grid[0])
        if lam.min() < grid[0] - slack or lam.max() > grid[-1] + slack:
            raise UserError(f"the statistics are of lambda from {grid[0]:.6g} to {grid[-1]:.6g}, and the solver's "
                            f"steps go from {lam.min():.6g} to {lam.max():.6g}: make them for this model")  # fmt: skip
        right = torch.searchsorted(grid, lam.contiguous()).clamp(1, len(grid) - 1)
        share = ((lam - grid[right - 1]) / (grid[right] - grid[right - 1])).clamp(0, 1)
        return torch.lerp(values[right - 1], values[right], share.view(-1, *[1] * (values.ndim - 1)))

    def passage(self, start: Tensor, end: Tensor) -> Passage:
        """The integrals over a step between two lambdas."""
        inner = self.lam[(self.lam > start) & (self.lam < end)]
        zero = torch.zeros(self.l.shape[1:], dtype=torch.float64)
        L, S, B, C, E = zero, zero, zero, zero, [zero] * MOST_ORDER
        for left, right in pairwise([start, *inner, end]):  # within which l, s and b are smooth
            parts = ceil((right - left).item() / WIDEST)
            for part in range(parts):
                width = (right - left) / parts
                u = left + (part + NODES) * width
                l, s, b = (self.at(name, u) for name in ("l", "s", "b"))  # noqa: E741
                here_L, here_S = (past + width * tensordot(UP_TO, f, 1) for past, f in ((L, l), (S, s)))
                decaying, growing = torch.exp(-here_S) * b, torch.exp(here_L + here_S)
                C = C + width * tensordot(WEIGHTS, growing * (B + width * tensordot(UP_TO, decaying, 1)), 1)
                E = [e + width * tensordot(WEIGHTS * (u - start) ** n, growing, 1) for n, e in enumerate(E)]
                L, S, B = (past + width * tensordot(WEIGHTS, f, 1) for past, f in ((L, l), (S, s), (B, decaying)))
        return Passage(L, S, B, C, E)


def dpm_v3(
    net: Trace,
    t: Tensor,
    order: int,
    statistics: Statistics,
    corrects: bool | None = None,
    pseudo: bool | None = None,
    lower_order_final: bool = True,
) -> Tensor:
    """DPM-Solver-v3 with one evaluation per step, Zheng et al. 2023 (arXiv 2310.13268), sec. 3.2 and 3.3.

    The order is lower while the history is short.

    Args:
        net: stands in for the network; its basis is that of the statistics.
        t: [S+1] times.
        order: 1, 2 or 3.
        statistics: of the model.
        corrects: whether a step is taken again once the evaluation at its end is known, which is kept; by default, with
            up to 6 steps, as in the authors' code.
        pseudo: whether the derivatives of g are taken for its divided differences, which matters to order 3; by
            default, with up to 5 steps, as there.
        lower_order_final: whether the last two steps have orders 2 and 1, as those of DPM-Solver++.

    Returns:
        The last state.

    Raises:
        UserError: for statistics that do not reach as far as the times.
    """
    n = len(t) - 1
    corrects, pseudo = (n <= CORRECTED if corrects is None else corrects), (n <= PSEUDO if pseudo is None else pseudo)
    lam, alpha = net.noise.lambda_(t), net.noise.alpha(t)
    linear = statistics.at("l", lam)
    orders = [min(order, i + 1, n - i if lower_order_final else order) for i in range(n)]
    steps = [statistics.passage(start, end) for start, end in pairwise(lam)]

    def step(i: int, y: Tensor, nodes: Sequence[Tensor], g: Sequence[Tensor]) -> Tensor:
        """From y at lambda_i to lambda_{i+1}, with g at as many nodes as there are."""
        over, weights = steps[i], polynomial(torch.stack(list(nodes)) - lam[i], pseudo)
        change = over.C * net.one
        for j, value in enumerate(g):
            change = change + sum(over.E[m] * weights[m, j] for m in range(len(g))) * value
        return torch.exp(-over.L) * (y - change)

    y = predicted = net.x_T / alpha[0]
    g: list[Tensor] = []  # newest first, measured from the start of the present step
    for i in range(n):
        fresh = (1 - linear[i]) * predicted - net.data(alpha[i] * predicted, t[i])
        if i > 0:
            over, before = steps[i - 1], orders[i - 1]
            if corrects and before > 1:
                ahead = torch.exp(-over.S) * fresh - over.B * net.one
                nodes = [lam[i - 1], lam[i], *(lam[i - k] for k in range(2, before))]
                y = step(i - 1, y, nodes, [g[0], ahead, *g[1 : before - 1]])
            else:
                y = predicted
            g = [torch.exp(over.S) * (value + over.B * net.one) for value in g]
        g = [fresh, *g][:order]
        predicted = step(i, y, [lam[i - k] for k in range(orders[i])], g[: orders[i]])
    return alpha[-1] * predicted


def polynomial(nodes: Tensor, pseudo: bool) -> Tensor:
    """[p, p]: row m makes the coefficient of u^m out of the values at the nodes [p], of the polynomial through them.

    With `pseudo`, it is that of Newton's form with all factors (u - node) taken for u: the divided differences.
    """
    if not pseudo:
        return torch.linalg.inv(nodes[:, None] ** torch.arange(len(nodes)))
    rows = torch.zeros(len(nodes), len(nodes), dtype=nodes.dtype)
    for m in range(len(nodes)):
        for j in range(m + 1):
            rows[m, j] = 1 / prod(
                ((nodes[j] - nodes[k]) for k in range(m + 1) if k != j), start=torch.ones(()).double()
            )
    return rows
