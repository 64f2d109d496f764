"""Classical solvers: short functions from a noise schedule and times to coefficients.

All use the variable-step formulas of their papers, with a lower order while the history is short. With
`lower_order_final`, the last step has order 1 and the one before it order 2, as in DPM-Solver++ and UniPC with few
steps.
"""

from collections.abc import Sequence
from math import factorial

import numpy as np
import torch
from torch import Tensor

from s4spipe.models.noise import NoiseSchedule
from s4spipe.solvers.multistep import Form, Multistep
from s4spipe.solvers.singlestep import ADAMS_BASHFORTH, SingleStep


def ddim(noise: NoiseSchedule, t: Tensor, order: int = 1) -> Multistep:
    """DDIM, Song et al. 2021 (arXiv 2010.02502), eq. 12. It equals DPM-Solver-1 and DPM-Solver++(1).

    In x, with D = net(x, t[i]), one step is

        x = sigma[i+1] / sigma[i] * x + (alpha[i+1] - alpha[i] * sigma[i+1] / sigma[i]) * D
    """
    return Multistep("data", torch.ones(len(t) - 1, 1, dtype=t.dtype))


def euler(noise: NoiseSchedule, t: Tensor, order: int = 1) -> Multistep:
    """Euler in the time of the noise schedule; equal to DDIM for VE noise and flow matching, but not for VP noise."""
    return Multistep("velocity", torch.ones(len(t) - 1, 1, dtype=t.dtype))


def dpm_multistep(
    noise: NoiseSchedule, t: Tensor, order: int, form: Form = "data", lower_order_final: bool = True
) -> Multistep:
    """DPM-Solver++(2M) and (3M), Lu et al. 2022 (arXiv 2211.01095), Algorithm 2, and the authors' code for 3M; in the
    noise form the multistep DPM-Solver of the same code.

    In x, with D and D_old the x0 predictions at this step's start and at the one before, a step of (2M) is

        h, r = lam[i+1] - lam[i], (lam[i] - lam[i-1]) / (lam[i+1] - lam[i])
        x = sigma[i+1] / sigma[i] * x - alpha[i+1] * expm1(-h) * ((1 + 1 / (2 * r)) * D - 1 / (2 * r) * D_old)

    That code gives the second difference E2 = h^2 D''/2 the weight of h^2 D'', half of what order 3 needs. All
    libraries have (3M) in this form, so it is kept: the order of convergence is 2.
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
            phi1, phi2, phi3 = (phi(k, _signed(h[i], form)) for k in (1, 2, 3))
            first = torch.stack([1 / r0, -1 / r0, torch.zeros_like(r0)])  # (D0 - D1)/r0
            second = torch.stack([torch.zeros_like(r1), 1 / r1, -1 / r1])  # (D1 - D2)/r1
            e2 = (first - second) / (r0 + r1)
            e1 = first + r0 * e2
            b[i, :3] += (phi2 * e1 + phi3 * e2) / phi1
    return Multistep(form, b)


def dpm_singlestep(noise: NoiseSchedule, t: Tensor, evals_per_step: Sequence[int], form: Form) -> SingleStep:
    """DPM-Solver-2S and -3S (noise form, Lu et al. 2022, arXiv 2206.00927, Alg. 1 and 2) and DPM-Solver++(2S) (data
    form, arXiv 2211.01095, Alg. 1). A step with p evaluations has order p."""
    nodes, tables = [], []
    for h, evals in zip(noise.lambda_(t).diff(), evals_per_step, strict=True):
        r = torch.arange(1, evals, dtype=t.dtype) / evals
        a = torch.zeros(evals, evals, dtype=t.dtype)
        a[:, 0] = 1
        if evals == 2:
            a[1] = torch.stack([1 - 1 / (2 * r[0]), 1 / (2 * r[0])])
        elif evals == 3:
            for row, j, scale, share in ((1, 1, r[1] / r[0], r[1]), (2, 2, 1 / r[1], 1.0)):
                hh = _signed(share * h, form)
                weight = scale * phi(2, hh) / phi(1, hh)  # of the difference d_j - d_0
                a[row, 0], a[row, j] = 1 - weight, weight
        nodes.append(r)
        tables.append(a)
    return SingleStep(form, nodes, tables)


def parallel_midpoints(
    noise: NoiseSchedule, t: Tensor, evals_per_step: Sequence[int], form: Form = "data"
) -> SingleStep:
    """The start of the EPD family (arXiv 2507.14797).

    A step with 1 + K evaluations has K intermediate points, equally spaced in lambda. All are reached from the start of
    the step by DDIM, so they can be evaluated in parallel. The step ends with the mean of the K second-order formulas
    of DPM-Solver-2S.
    """
    nodes, tables = [], []
    for evals in evals_per_step:
        r = torch.arange(1, evals, dtype=t.dtype) / evals
        a = torch.zeros(evals, evals, dtype=t.dtype)
        a[:, 0] = 1
        if evals > 1:
            weights = 1 / (2 * r) / len(r)
            a[-1] = torch.cat([1 - weights.sum()[None], weights])
        nodes.append(r)
        tables.append(a)
    return SingleStep(form, nodes, tables)


def ipndm(
    noise: NoiseSchedule, t: Tensor, order: int, lower_order_final: bool = False, form: Form = "noise"
) -> Multistep:
    """iPNDM, Zhang and Chen 2022 (arXiv 2204.13902), App. H.2: the Adams-Bashforth weights of equal steps; in the
    velocity form those of dx/dt, which is the same for VE noise."""
    b = torch.zeros(len(t) - 1, order, dtype=t.dtype)
    for i, p in enumerate(_orders(len(b), order, lower_order_final)):
        b[i, :p] = torch.tensor(ADAMS_BASHFORTH[p - 1], dtype=t.dtype)
    return Multistep(form, b)


def lagrange(
    noise: NoiseSchedule, t: Tensor, order: int, clock: str, form: Form = "noise", lower_order_final: bool = False
) -> Multistep:
    """DEIS (noise form, Zhang and Chen 2022, arXiv 2204.13902, eq. 15): the past predictions are interpolated by a
    polynomial in a variable u, and the interpolant is integrated exactly over rho = sigma/alpha.

    `clock` chooses u: "t", the time of the noise schedule (tAB-DEIS); "rho" (rhoAB-DEIS, which is variable-step
    Adams-Bashforth in rho, the LMS of k-diffusion); "lambda" = -ln rho (the DEIS of diffusers). The data form
    integrates over 1/rho instead. With "lambda", this is exponential Adams-Bashforth (Hochbruck and Ostermann 2010,
    sec. 2.5).
    """
    u_of = {"t": noise.inverse, "rho": lambda lam: torch.exp(-lam), "lambda": lambda lam: lam}[clock]
    lam = noise.lambda_(t)
    u, sign = u_of(lam), -1 if form == "noise" else 1
    nodes, weights = gauss_legendre(t.dtype)  # in lambda, in which all three choices are smooth
    b = torch.zeros(len(lam) - 1, order, dtype=t.dtype)
    for i, p in enumerate(_orders(len(b), order, lower_order_final)):
        h = lam[i + 1] - lam[i]
        x = lam[i] + h * (nodes + 1) / 2
        mass = weights * torch.exp(sign * (x - lam[i]))
        known, at = u[i - p + 1 : i + 1].flip(0), u_of(x)
        b[i, :p] = interpolated(known, at, mass)
    return Multistep(form, b)


def gauss_legendre(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Nodes in [-1, 1] and weights, both [64]: with an exponential of lambda, exact to rounding up to h = 10."""
    nodes, weights = (torch.from_numpy(v).to(dtype) for v in np.polynomial.legendre.leggauss(64))
    return nodes, weights


def interpolated(known: Tensor, at: Tensor, mass: Tensor) -> Tensor:
    """The mean of a polynomial over `at` [n] with the weights `mass` [n], as weights of its values at `known` [p]."""
    weights = []
    for j in range(len(known)):
        others = torch.cat([known[:j], known[j + 1 :]])
        values = ((at[:, None] - others) / (known[j] - others)).prod(1)
        weights.append((mass * values).sum() / mass.sum())
    return torch.stack(weights)


def unipc(
    noise: NoiseSchedule,
    t: Tensor,
    order: int,
    variant: str,
    form: Form = "data",
    corrects: bool = True,
    lower_order_final: bool = True,
) -> Multistep:
    """UniPC, Zhao et al. 2023 (arXiv 2302.04867), Alg. 5 to 8, with B(h) = h (bh1) or expm1(h) (bh2). Without the
    corrector, it is UniP.

    Predictor and corrector add B sum_k rho_k (D_k - D_0)/r_k to a DDIM step, where D_0 is the evaluation at its start.
    rho solves R rho = q with R[j, k] = r_k^j, over the past points (predictor) or these and the new one with r = 1
    (corrector).
    """
    lam = noise.lambda_(t)
    h = lam.diff()
    b = torch.zeros(len(h), order, dtype=t.dtype)
    corrector = torch.zeros(len(h) - 1, order + 1, dtype=t.dtype)
    b[:, 0] = corrector[:, 1] = 1
    for i, p in enumerate(_orders(len(h), order, lower_order_final)):
        hh = _signed(h[i], form)
        scale = {"bh1": hh, "bh2": torch.expm1(hh)}[variant]
        past = [(lam[i - k] - lam[i]) / h[i] for k in range(1, p)]
        r = torch.stack([*past, torch.ones_like(hh)])
        R = torch.stack([r**j for j in range(p)])
        q = torch.stack([hh * phi(j + 1, hh) * factorial(j) / scale for j in range(1, p + 1)])
        # The authors set these two weights, for one and two points, to their limits as h goes to 0.
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
    return Multistep(form, b, corrector if corrects else None)


def phi(k: int, h: Tensor) -> Tensor:
    """phi_k(h) = int_0^1 exp((1 - s) h) s^(k-1) / (k-1)! ds of a scalar, k >= 1 (Hochbruck and Ostermann 2010, sec. 2).

    The usual recursion from (exp(h) - 1)/h loses k - 1 times the digits of 1/h, so a small h has the power series.
    """
    if h.abs() < 1:
        inverses = torch.tensor([1 / factorial(j + k) for j in range(20)], dtype=h.dtype)
        return (inverses * h ** torch.arange(20)).sum()
    value = torch.expm1(h) / h
    for j in range(1, k):
        value = (value - 1 / factorial(j)) / h
    return value


def _signed(h: Tensor, form: Form) -> Tensor:
    """The exponent hh in which the formulas of the two forms agree."""
    return -h if form == "data" else h


def _orders(n: int, order: int, lower_order_final: bool) -> list[int]:
    """The order of each of n steps."""
    return [min(order, i + 1, n - i if lower_order_final else order) for i in range(n)]
