"""Classical solvers: each a short function from the noise schedule and the times to multistep coefficients.

All are the papers' own variable-step formulas, at lower order while the history is short. `lower_order_final` also ends
at low order (last step 1, the one before 2), as DPM-Solver++ and UniPC do when they have few steps.
"""

from collections.abc import Callable
from functools import partial
from math import factorial

import torch
from torch import Tensor

from s4spipe.errors import UserError, unknown
from s4spipe.multistep import Multistep
from s4spipe.noise import NoiseSchedule
from s4spipe.tableau import Tableau


def ddim(noise: NoiseSchedule, t: Tensor) -> Multistep:
    """DDIM, Song et al. 2021 (arXiv 2010.02502), eq. 12; the same as DPM-Solver-1."""
    return Multistep("data", torch.ones(len(t) - 1, 1, dtype=t.dtype))


def dpmpp(noise: NoiseSchedule, t: Tensor, order: int, lower_order_final: bool = True) -> Multistep:
    """DPM-Solver++(2M) and (3M), Lu et al. 2022 (arXiv 2211.01095), Algorithm 2, and the authors' code for 3M.

    That code gives the second difference E2 = h^2 D''/2 the weight that belongs to h^2 D'', half of what order 3 needs.
    It is kept, as everybody's (3M) has it: the order of convergence is 2.
    """
    h = noise.lambda_(t).diff()
    b = torch.zeros(len(h), order, dtype=t.dtype)
    b[:, 0] = 1
    for i, p in enumerate(_orders(len(h), order, lower_order_final)):
        if p == 2:
            r0 = h[i - 1] / h[i]
            b[i, :2] += torch.stack([1 / (2 * r0), -1 / (2 * r0)])
        elif p == 3:
            r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
            p1 = torch.expm1(-h[i])
            p2 = p1 / h[i] + 1
            p3 = p2 / h[i] - 0.5
            first = torch.stack([1 / r0, -1 / r0, torch.zeros_like(r0)])  # (D0 - D1)/r0
            second = torch.stack([torch.zeros_like(r1), 1 / r1, -1 / r1])  # (D1 - D2)/r1
            e2 = (first - second) / (r0 + r1)
            e1 = first + r0 * e2
            b[i, :3] += (p3 * e2 - p2 * e1) / p1
    return Multistep("data", b)


def ipndm(noise: NoiseSchedule, t: Tensor, order: int) -> Multistep:
    """iPNDM, Zhang and Chen 2022 (arXiv 2204.13902), App. H.2: Adams-Bashforth weights as if steps were equal."""
    adams_bashforth = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    b = torch.zeros(len(t) - 1, order, dtype=t.dtype)
    for i, p in enumerate(_orders(len(b), order, lower_order_final=False)):
        b[i, :p] = torch.tensor(adams_bashforth[p - 1], dtype=t.dtype)
    return Multistep("noise", b)


def unipc(noise: NoiseSchedule, t: Tensor, order: int, variant: str, lower_order_final: bool = True) -> Multistep:
    """UniPC with its corrector, Zhao et al. 2023 (arXiv 2302.04867), Alg. 5 to 8; B(h) = h (bh1) or expm1(h) (bh2).

    Predictor and corrector add B sum_k rho_k (D_k - D_0)/r_k to a DDIM step, D_0 the evaluation at its start. rho
    solves R rho = q, R[j, k] = r_k^j, over the past points (predictor) or these and the new one, r = 1 (corrector).
    """
    lam = noise.lambda_(t)
    h = lam.diff()
    b = torch.zeros(len(h), order, dtype=t.dtype)
    corrector = torch.zeros(len(h) - 1, order + 1, dtype=t.dtype)
    b[:, 0] = corrector[:, 1] = 1
    for i, p in enumerate(_orders(len(h), order, lower_order_final)):
        hh = -h[i]
        scale = {"bh1": hh, "bh2": torch.expm1(hh)}[variant]
        past = [(lam[i - k] - lam[i]) / h[i] for k in range(1, p)]
        r = torch.stack([*past, torch.ones_like(hh)])
        R = torch.stack([r**j for j in range(p)])
        phi, q = torch.expm1(hh) / hh - 1, []
        for j in range(1, p + 1):
            q.append(phi * factorial(j) / scale)
            phi = phi / hh - 1 / factorial(j + 1)
        q = torch.stack(q)
        # The authors set these two weights, for one and two points, to the value they have as h goes to 0.
        half = torch.full((1,), 0.5, dtype=t.dtype)
        rho_p = half if p == 2 else torch.linalg.solve(R[:-1, :-1], q[:-1])
        rho_c = half if p == 1 else torch.linalg.solve(R, q)
        gain = scale / torch.expm1(hh)
        weights = gain * rho_p / r[:-1]
        b[i, 1:p] += weights
        b[i, 0] -= weights.sum()
        if i < len(h) - 1:
            weights = gain * rho_c / r
            corrector[i, 0] += weights[-1]
            corrector[i, 2 : p + 1] += weights[:-1]
            corrector[i, 1] -= weights.sum()
    return Multistep("data", b, corrector)


def _orders(n: int, order: int, lower_order_final: bool) -> list[int]:
    """The order of each of n steps."""
    return [min(order, i + 1, n - i if lower_order_final else order) for i in range(n)]


CLASSICAL: dict[str, Callable[[NoiseSchedule, Tensor], Multistep]] = {
    "ddim": ddim,
    "dpmpp_2m": partial(dpmpp, order=2),
    "dpmpp_3m": partial(dpmpp, order=3),
    "ipndm": partial(ipndm, order=3),
    "unipc_bh1": partial(unipc, order=3, variant="bh1"),
    "unipc_bh2": partial(unipc, order=3, variant="bh2"),
}


def coefficients(name: str, noise: NoiseSchedule, t: Tensor) -> Multistep:
    """The named solver's coefficients on the times t [N+1]. Raises UserError for an unknown name."""
    if name not in CLASSICAL:
        raise unknown("classical solver", name, CLASSICAL)
    return CLASSICAL[name](noise, t)


def build(name: str, noise: NoiseSchedule, steps: Tensor, meta: dict | None = None) -> Tableau:
    """The named solver as a tableau, on the times `steps` [N+1] (float64, falling from T to t_min).

    Raises UserError for an unknown name or times that do not fall strictly within the noise schedule's range.
    """
    steps = torch.as_tensor(steps, dtype=torch.float64)
    if steps.ndim != 1 or len(steps) < 2 or not (steps.diff() < 0).all():
        raise UserError(f"steps must be at least two times, falling strictly, got {steps.tolist()}")
    return coefficients(name, noise, steps).tableau(noise, steps, name, meta)
