"""Classical solvers: each a short function from the noise schedule and the times to coefficients, and one registry.

All are the papers' own variable-step formulas, at lower order while the history is short. `lower_order_final` also ends
at low order (last step 1, the one before 2), as DPM-Solver++ and UniPC do when they have few steps.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import factorial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from s4spipe import singlestep
from s4spipe.errors import UserError, unknown
from s4spipe.multistep import Multistep
from s4spipe.noise import NoiseSchedule
from s4spipe.singlestep import ADAMS_BASHFORTH, SingleStep
from s4spipe.tableau import Tableau
from s4spipe.trace import Trace


def ddim(noise: NoiseSchedule, t: Tensor, order: int = 1) -> Multistep:
    """DDIM, Song et al. 2021 (arXiv 2010.02502), eq. 12; the same as DPM-Solver-1 and DPM-Solver++(1)."""
    return Multistep("data", torch.ones(len(t) - 1, 1, dtype=t.dtype))


def euler(noise: NoiseSchedule, t: Tensor, order: int = 1) -> Multistep:
    """Euler in the schedule's time: DDIM on VE noise and flow matching, another solver on VP."""
    return Multistep("velocity", torch.ones(len(t) - 1, 1, dtype=t.dtype))


def dpm_multistep(
    noise: NoiseSchedule, t: Tensor, order: int, form: str = "data", lower_order_final: bool = True
) -> Multistep:
    """DPM-Solver++(2M) and (3M), Lu et al. 2022 (arXiv 2211.01095), Algorithm 2, and the authors' code for 3M; in the
    noise form the multistep DPM-Solver of the same code.

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
            phi1, phi2, phi3 = (phi(k, _signed(h[i], form)) for k in (1, 2, 3))
            first = torch.stack([1 / r0, -1 / r0, torch.zeros_like(r0)])  # (D0 - D1)/r0
            second = torch.stack([torch.zeros_like(r1), 1 / r1, -1 / r1])  # (D1 - D2)/r1
            e2 = (first - second) / (r0 + r1)
            e1 = first + r0 * e2
            b[i, :3] += (phi2 * e1 + phi3 * e2) / phi1
    return Multistep(form, b)


def dpm_singlestep(noise: NoiseSchedule, t: Tensor, costs: Sequence[int], form: str) -> SingleStep:
    """DPM-Solver-2S and -3S (noise form, Lu et al. 2022, arXiv 2206.00927, Alg. 1 and 2) and DPM-Solver++(2S) (data
    form, arXiv 2211.01095, Alg. 1); a step of cost p is of order p."""
    nodes, tables = [], []
    for h, cost in zip(noise.lambda_(t).diff(), costs, strict=True):
        r = torch.arange(1, cost, dtype=t.dtype) / cost
        a = torch.zeros(cost, cost, dtype=t.dtype)
        a[:, 0] = 1
        if cost == 2:
            a[1] = torch.stack([1 - 1 / (2 * r[0]), 1 / (2 * r[0])])
        elif cost == 3:
            for row, j, scale, share in ((1, 1, r[1] / r[0], r[1]), (2, 2, 1 / r[1], 1.0)):
                hh = _signed(share * h, form)
                weight = scale * phi(2, hh) / phi(1, hh)  # of the difference d_j - d_0
                a[row, 0], a[row, j] = 1 - weight, weight
        nodes.append(r)
        tables.append(a)
    return SingleStep(form, nodes, tables)


def parallel_midpoints(noise: NoiseSchedule, t: Tensor, costs: Sequence[int], form: str = "data") -> SingleStep:
    """Where the EPD family starts (arXiv 2507.14797): a step of cost 1 + K has K middle points, equally spaced in
    lambda, all reached from its start by DDIM, so that their evaluations may run side by side; it ends by the mean of
    the K second-order formulas of DPM-Solver-2S."""
    nodes, tables = [], []
    for cost in costs:
        r = torch.arange(1, cost, dtype=t.dtype) / cost
        a = torch.zeros(cost, cost, dtype=t.dtype)
        a[:, 0] = 1
        if cost > 1:
            weights = 1 / (2 * r) / len(r)
            a[-1] = torch.cat([1 - weights.sum()[None], weights])
        nodes.append(r)
        tables.append(a)
    return SingleStep(form, nodes, tables)


def ipndm(noise: NoiseSchedule, t: Tensor, order: int, lower_order_final: bool = False) -> Multistep:
    """iPNDM, Zhang and Chen 2022 (arXiv 2204.13902), App. H.2: Adams-Bashforth weights as if steps were equal."""
    b = torch.zeros(len(t) - 1, order, dtype=t.dtype)
    for i, p in enumerate(_orders(len(b), order, lower_order_final)):
        b[i, :p] = torch.tensor(ADAMS_BASHFORTH[p - 1], dtype=t.dtype)
    return Multistep("noise", b)


def lagrange(
    noise: NoiseSchedule, t: Tensor, order: int, clock: str, form: str = "noise", lower_order_final: bool = False
) -> Multistep:
    """DEIS (noise form, Zhang and Chen 2022, arXiv 2204.13902, eq. 15): the past predictions are interpolated by a
    polynomial in a clock u, and the interpolant is integrated exactly, over rho = sigma/alpha.

    clock: "t", the schedule's time (tAB-DEIS); "rho" (rhoAB-DEIS, which is variable-step Adams-Bashforth in rho, and
    the LMS of k-diffusion); "lambda" = -ln rho (the DEIS of diffusers). The data form integrates over 1/rho instead,
    which with clock "lambda" is exponential Adams-Bashforth (Hochbruck and Ostermann 2010, sec. 2.5).
    """
    u_of = {"t": noise.inverse, "rho": lambda lam: torch.exp(-lam), "lambda": lambda lam: lam}[clock]
    lam = noise.lambda_(t)
    u, sign = u_of(lam), -1 if form == "noise" else 1
    # Gauss-Legendre in lambda, where all three clocks are smooth; 64 nodes are exact to rounding up to h = 10.
    nodes, weights = (torch.from_numpy(v).to(t.dtype) for v in np.polynomial.legendre.leggauss(64))
    b = torch.zeros(len(lam) - 1, order, dtype=t.dtype)
    for i, p in enumerate(_orders(len(b), order, lower_order_final)):
        h = lam[i + 1] - lam[i]
        x = lam[i] + h * (nodes + 1) / 2
        mass = weights * torch.exp(sign * (x - lam[i]))
        known, at = u[i - p + 1 : i + 1].flip(0), u_of(x)
        for j in range(p):
            others = torch.cat([known[:j], known[j + 1 :]])
            values = ((at[:, None] - others) / (known[j] - others)).prod(1)
            b[i, j] = (mass * values).sum() / mass.sum()
    return Multistep(form, b)


def unipc(
    noise: NoiseSchedule,
    t: Tensor,
    order: int,
    variant: str,
    form: str = "data",
    corrects: bool = True,
    lower_order_final: bool = True,
) -> Multistep:
    """UniPC, Zhao et al. 2023 (arXiv 2302.04867), Alg. 5 to 8; B(h) = h (bh1) or expm1(h) (bh2). UniP: no corrector.

    Predictor and corrector add B sum_k rho_k (D_k - D_0)/r_k to a DDIM step, D_0 the evaluation at its start. rho
    solves R rho = q, R[j, k] = r_k^j, over the past points (predictor) or these and the new one, r = 1 (corrector).
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


def _signed(h: Tensor, form: str) -> Tensor:
    """The exponent hh in which the formulas of the two forms agree."""
    return -h if form == "data" else h


def _orders(n: int, order: int, lower_order_final: bool) -> list[int]:
    """The order of each of n steps."""
    return [min(order, i + 1, n - i if lower_order_final else order) for i in range(n)]


# -- The registry: names, orders, and how many evaluations each step is given ------------------------


def _one_each(nfe: int) -> list[int]:
    return [1] * nfe


def _groups(nfe: int, size: int) -> list[int]:
    """Steps of so many evaluations; what is left over goes to a last step."""
    return [size] * (nfe // size) + [nfe % size] * (nfe % size > 0)


_pairs = partial(_groups, size=2)
_threes = partial(_groups, size=3)


def _dpm_fast(nfe: int) -> list[int]:
    """DPM-Solver-fast (Lu et al. 2022, arXiv 2206.00927, App. D.3): steps of three, the last of fewer evaluations."""
    return [3] * (nfe // 3 - 1) + [2, 1] if nfe % 3 == 0 else [3] * (nfe // 3) + [nfe % 3]


def _runge_kutta_first(nfe: int) -> list[int]:
    if nfe > 12:
        return [4] * 3 + [1] * (nfe - 12)
    if nfe % 4:
        raise UserError(f"pndm spends 4 evaluations on each of its first three steps: NFE must be 4, 8, 12 or more, "
                        f"got {nfe}")  # fmt: skip
    return [4] * (nfe // 4)


def _euler_first(nfe: int) -> list[int]:
    if nfe < 2:
        raise UserError(f"plms spends 2 evaluations on its first step: NFE must be at least 2, got {nfe}")
    return [2] + [1] * (nfe - 2)


@dataclass(frozen=True)
class Solver:
    """An entry of the registry.

    Attributes:
        make: "multistep": (noise, t, order) -> Multistep; "singlestep": (noise, t, costs) -> SingleStep; "algorithm":
            (trace, t, costs) -> last state. costs are the evaluations of each step.
        orders: those it has; a name without an order means `default`.
        plan: NFE -> costs.
    """

    kind: Literal["multistep", "singlestep", "algorithm"]
    make: Callable
    orders: tuple[int, ...]
    default: int
    plan: Callable[[int], list[int]] = _one_each


def _family(make: Callable, **options) -> Solver:
    """A multistep solver of orders 1 to 4; the papers' usual one is 3."""
    return Solver("multistep", partial(make, **options), (1, 2, 3, 4), 3)


CLASSICAL: dict[str, Solver] = {
    "ddim": Solver("multistep", ddim, (1,), 1),
    "euler": Solver("multistep", euler, (1,), 1),
    "dpm_2m": Solver("multistep", partial(dpm_multistep, form="noise"), (2,), 2),
    "dpm_3m": Solver("multistep", partial(dpm_multistep, form="noise"), (3,), 3),
    "dpm_2s": Solver("singlestep", partial(dpm_singlestep, form="noise"), (2,), 2, _pairs),
    "dpm_3s": Solver("singlestep", partial(dpm_singlestep, form="noise"), (3,), 3, _dpm_fast),
    "dpmpp_2m": Solver("multistep", dpm_multistep, (2,), 2),
    "dpmpp_3m": Solver("multistep", dpm_multistep, (3,), 3),
    "dpmpp_2s": Solver("singlestep", partial(dpm_singlestep, form="data"), (2,), 2, _pairs),
    "parallel_midpoints": Solver("singlestep", parallel_midpoints, (2,), 2, _threes),
    "heun": Solver("algorithm", singlestep.heun, (2,), 2, _pairs),
    "pndm": Solver("algorithm", singlestep.pndm, (4,), 4, _runge_kutta_first),
    "plms": Solver("algorithm", singlestep.pndm, (4,), 4, _euler_first),
    "ipndm": _family(ipndm),
    "deis_tab": _family(lagrange, clock="t"),
    "deis_rhoab": _family(lagrange, clock="rho"),
    "deis_log": _family(lagrange, clock="lambda"),
    "adams_bashforth": _family(lagrange, clock="lambda", form="data"),
    "unipc_bh1": _family(unipc, variant="bh1"),
    "unipc_bh2": _family(unipc, variant="bh2"),
    "unip_bh1": _family(unipc, variant="bh1", corrects=False),
    "unip_bh2": _family(unipc, variant="bh2", corrects=False),
    "unipc_bh1_eps": _family(unipc, variant="bh1", form="noise"),
    "unipc_bh2_eps": _family(unipc, variant="bh2", form="noise"),
}


def parse(name: str) -> tuple[Solver, int, bool]:
    """A name's solver, order and whether its first evaluation is analytic: `ipndm`, `ipndm_4`, `ipndm_4_afs`.

    Raises UserError for an unknown name, or an order that the solver has not.
    """
    plain = name.removesuffix("_afs")
    base, order = plain, None
    if plain not in CLASSICAL and (match := re.fullmatch(r"(.+)_(\d+)", plain)):
        base, order = match[1], int(match[2])
    if base not in CLASSICAL:
        raise unknown("classical solver", name, CLASSICAL)
    solver = CLASSICAL[base]
    order = solver.default if order is None else order
    if order not in solver.orders:
        raise UserError(f"{base} has order {' or '.join(map(str, solver.orders))}, got {order} in {name!r}")
    return solver, order, plain != name


def costs(name: str, nfe: int) -> list[int]:
    """The evaluations of each of the named solver's steps, `nfe` in all (and one that is free under AFS).

    Raises UserError for an NFE that the solver cannot spend.
    """
    solver, _, afs = parse(name)
    if nfe < 1:
        raise UserError(f"nfe must be at least 1, got {nfe}")
    return solver.plan(nfe + afs)


def coefficients(name: str, noise: NoiseSchedule, t: Tensor, spent: Sequence[int] | None = None):
    """The named solver's Multistep or SingleStep coefficients on the times t [S+1]; `spent`: its steps' costs.

    Raises UserError for a solver that is an algorithm of its own kind.
    """
    solver, order, _ = parse(name)
    if solver.kind == "algorithm":
        raise UserError(f"{name} is neither a multistep nor an exponential single-step method: use another one here")
    return solver.make(noise, t, order if solver.kind == "multistep" else spent or _most(solver, len(t) - 1))


def build(name: str, noise: NoiseSchedule, t: Tensor, meta: dict | None = None, nfe: int | None = None) -> Tableau:
    """The named solver as a tableau, on the times t [S+1] (float64, falling from T to t_min).

    `nfe` (default: as many as S steps can use) matters to solvers whose steps take several evaluations.

    Raises UserError for an unknown name, for times that do not fall strictly within the noise schedule's range, and
    for an NFE that does not go with so many steps.
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    if t.ndim != 1 or len(t) < 2 or not (t.diff() < 0).all():
        raise UserError(f"steps must be at least two times, falling strictly, got {t.tolist()}")
    solver, _, afs = parse(name)
    spent = _most(solver, len(t) - 1) if nfe is None else costs(name, nfe)
    if len(spent) != len(t) - 1:
        raise UserError(f"{name} with {nfe} evaluations takes {len(spent)} steps, got {len(t) - 1}")
    if sum(spent) == afs:
        raise UserError(f"{name} on a single step would never ask the network: give it more steps")
    if solver.kind == "algorithm":
        net = Trace(noise, sum(spent), afs)
        return net.tableau(solver.make(net, t, spent), t, name, meta)
    return coefficients(name, noise, t, spent).tableau(noise, t, name, meta, afs=afs)


def _most(solver: Solver, steps: int) -> list[int]:
    """The costs of the largest NFE that the solver spends in so many steps."""
    plans = []
    for nfe in range(steps, 4 * steps + 1):
        try:
            plans.append(solver.plan(nfe))
        except UserError:
            continue
    return [plan for plan in plans if len(plan) == steps][-1]
