"""Classical solvers by name: their orders, their evaluations per step, and their tableaux."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.checks import MOST_NFE, whole
from s4spipe.runtime.errors import UserError, shown, unknown
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import classical, dpm_v3, singlestep, stochastic, timesteps
from s4spipe.solvers.dpm_v3 import Statistics
from s4spipe.solvers.multistep import Multistep
from s4spipe.solvers.singlestep import SingleStep
from s4spipe.solvers.symbolic import Trace
from s4spipe.solvers.timesteps import Schedule


def _one_each(nfe: int) -> list[int]:
    return [1] * nfe


def _groups(nfe: int, size: int) -> list[int]:
    """Steps of `size` evaluations each; the remainder goes to a last step."""
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


def _two_first(nfe: int, name: str) -> list[int]:
    if nfe < 2:
        raise UserError(f"{name} spends 2 evaluations on its first step: NFE must be at least 2, got {nfe}")
    return [2] + [1] * (nfe - 2)


@dataclass(frozen=True)
class Solver:
    """An entry of the registry.

    Attributes:
        kind: what `make` is.
        make: for "multistep", (noise, t, order) -> Multistep; for "singlestep", (noise, t, evals_per_step) ->
            SingleStep; for "algorithm", (trace, t, evals_per_step) -> last state; for "statistical", which needs
            statistics of the model, (trace, t, order, statistics) -> last state.
        orders: the orders that the solver exists in.
        default: the order that a name without an order means.
        plan: NFE -> the evaluations of each step.
        number: what the number after the name is.
        noisy: whether it adds fresh noises, as a solver of an SDE does.
    """

    kind: Literal["multistep", "singlestep", "algorithm", "statistical"]
    make: Callable
    orders: tuple[int, ...]
    default: int
    plan: Callable[[int], list[int]] = _one_each
    number: str = "order"
    noisy: bool = False


def _noisy(kind: Literal["multistep", "algorithm"], make: Callable, orders: Sequence[int], default: int, plan: Callable
           = _one_each, number: str = "order") -> Solver:  # fmt: skip
    return Solver(kind, make, tuple(orders), default, plan, number, noisy=True)


def _family(make: Callable, **options) -> Solver:
    """A multistep solver of orders 1 to 4; the papers usually use 3."""
    return Solver("multistep", partial(make, **options), (1, 2, 3, 4), 3)


CLASSICAL: dict[str, Solver] = {
    "ddim": Solver("multistep", classical.ddim, (1,), 1),
    "euler": Solver("multistep", classical.euler, (1,), 1),
    "dpm_2m": Solver("multistep", partial(classical.dpm_multistep, form="noise"), (2,), 2),
    "dpm_3m": Solver("multistep", partial(classical.dpm_multistep, form="noise"), (3,), 3),
    "dpm_2s": Solver("singlestep", partial(classical.dpm_singlestep, form="noise"), (2,), 2, _pairs),
    "dpm_3s": Solver("singlestep", partial(classical.dpm_singlestep, form="noise"), (3,), 3, _dpm_fast),
    "dpmpp_2m": Solver("multistep", classical.dpm_multistep, (2,), 2),
    "dpmpp_3m": Solver("multistep", classical.dpm_multistep, (3,), 3),
    "dpmpp_2s": Solver("singlestep", partial(classical.dpm_singlestep, form="data"), (2,), 2, _pairs),
    "parallel_midpoints": Solver("singlestep", classical.parallel_midpoints, (2,), 2, _threes),
    "heun": Solver("algorithm", singlestep.heun, (2,), 2, _pairs),
    "fdpm": Solver("algorithm", singlestep.fdpm, (1,), 1, partial(_two_first, name="fdpm")),
    "pndm": Solver("algorithm", singlestep.pndm, (4,), 4, _runge_kutta_first),
    "plms": Solver("algorithm", singlestep.pndm, (4,), 4, partial(_two_first, name="plms")),
    "ipndm": _family(classical.ipndm),
    "ipndm_v": _family(classical.ipndm, form="velocity"),
    "deis_tab": _family(classical.lagrange, clock="t"),
    "deis_rhoab": _family(classical.lagrange, clock="rho"),
    "deis_log": _family(classical.lagrange, clock="lambda"),
    "adams_bashforth": _family(classical.lagrange, clock="lambda", form="data"),
    "unipc_bh1": _family(classical.unipc, variant="bh1"),
    "unipc_bh2": _family(classical.unipc, variant="bh2"),
    "unip_bh1": _family(classical.unipc, variant="bh1", corrects=False),
    "unip_bh2": _family(classical.unipc, variant="bh2", corrects=False),
    "unipc_bh1_eps": _family(classical.unipc, variant="bh1", form="noise"),
    "unipc_bh2_eps": _family(classical.unipc, variant="bh2", form="noise"),
    "dpm_v3": Solver("statistical", dpm_v3.dpm_v3, (1, 2, 3), 3),
    "ddim_eta": _noisy("multistep", stochastic.ddim_eta, range(1, 101), 100, number="eta in percent"),
    "dpmpp_sde": _noisy("algorithm", stochastic.dpmpp_sde, (2,), 2, _pairs),
    "dpmpp_2m_sde": _noisy("multistep", stochastic.dpmpp_2m_sde, (1, 2), 2),
    "sa_solver": _noisy("multistep", stochastic.sa_solver, (1, 2, 3, 4), 2),
}


STATISTICAL = tuple(name for name, solver in CLASSICAL.items() if solver.kind == "statistical")


OF_MEAN = "_afs_mean"


def needs_statistics(name: str) -> bool:
    """Whether a solver can be built only with statistics of the model. Raises UserError for an unknown name."""
    return parse(name)[0].kind == "statistical" or name.endswith(OF_MEAN)


def parse(name: str) -> tuple[Solver, int, bool]:
    """Split a name such as `ipndm`, `ipndm_4`, `ipndm_4_afs` or `ipndm_4_afs_mean`.

    Args:
        name: a name in `CLASSICAL`, possibly with an order (of `ddim_eta`, eta in percent), possibly with `_afs` or
            `_afs_mean` at the very end.

    Returns:
        The solver, its order, and whether its first step is analytic (AFS).

    Raises:
        UserError: for an unknown name, or an order that the solver does not have.
    """
    if not isinstance(name, str):
        raise UserError(f"a classical solver is given by its name, got {shown(name)}")
    plain = name.removesuffix(OF_MEAN).removesuffix("_afs")
    base, order = plain, None
    if plain not in CLASSICAL and (match := re.fullmatch(r"(.+)_([1-9][0-9]{0,2})", plain)):
        base, order = match[1], int(match[2])
    if base not in CLASSICAL:
        raise unknown("classical solver", name, CLASSICAL)
    solver = CLASSICAL[base]
    order = solver.default if order is None else order
    if order not in solver.orders:
        numbers = " or ".join(map(str, solver.orders)) if len(solver.orders) < 9 else f"1 to {solver.orders[-1]}"
        raise UserError(f"{base} has {solver.number} {numbers}, got {order} in {name!r}")
    return solver, order, plain != name


def evals_per_step(name: str, nfe: int) -> list[int]:
    """How a solver spends its evaluations.

    Args:
        name: the solver's name.
        nfe: evaluations in all.

    Returns:
        The evaluations of each step. They sum to `nfe`, or to `nfe` + 1 under AFS, where the first one needs no
        network.

    Raises:
        UserError: for an unknown name, or an NFE that the solver cannot have.
    """
    solver, _, afs = parse(name)
    return solver.plan(whole("nfe", nfe, most=MOST_NFE) + afs)


def coefficients(
    name: str, noise: NoiseSchedule, t: Tensor, spent: Sequence[int] | None = None
) -> Multistep | SingleStep:
    """The coefficients of a multistep or single-step solver.

    Args:
        name: the solver's name.
        noise: the noise schedule.
        t: [S+1] times.
        spent: evaluations of each step; by default, as many as S steps can have.

    Raises:
        UserError: for an unknown name, and for a solver of neither kind (heun, fdpm, pndm, plms, dpm_v3).
    """
    t = _steps(noise, t)
    solver, order, _ = parse(name)
    if solver.kind not in ("multistep", "singlestep"):
        raise UserError(f"{name} is neither a multistep nor an exponential single-step method: use another one here")
    with torch.device("cpu"):  # as the times, whatever torch's default device is
        return solver.make(noise, t, order if solver.kind == "multistep" else spent or _most(solver, len(t) - 1))


def build(
    name: str,
    noise: NoiseSchedule,
    t: Tensor,
    meta: dict | None = None,
    nfe: int | None = None,
    statistics: Statistics | None = None,
) -> Tableau:
    """A classical solver as a tableau.

    Args:
        name: the solver's name.
        noise: the noise schedule.
        t: [S+1] times, falling from T to t_min; converted to float64 on the CPU.
        meta: provenance, for the tableau's `meta`.
        nfe: evaluations; by default, as many as S steps can have. It matters only to solvers whose steps take several.
        statistics: of the model; only dpm_v3, and an analytic first step with the mean, need them.

    Raises:
        UserError: for an unknown name, for times that do not fall strictly within the range of the noise schedule, for
            an NFE that does not go with S steps, and if statistics are needed and missing, or of other noise levels.
    """
    t = _steps(noise, t)
    solver, order, afs = parse(name)
    first: bool | Tensor = afs
    if needs_statistics(name):
        if statistics is None:
            raise UserError(f"{name} needs statistics of the model; in the pipeline, statistics_for asks for them")
        if name.endswith(OF_MEAN):
            if statistics.mean is None:
                raise UserError(f"{name} needs the mean of the model's samples, which these statistics do not have")
            first = statistics.mean
    spent = _most(solver, len(t) - 1) if nfe is None else evals_per_step(name, nfe)
    if len(spent) != len(t) - 1:
        raise UserError(f"{name} with {nfe} evaluations takes {len(spent)} steps, got {len(t) - 1}")
    if sum(spent) == afs:
        raise UserError(f"{name} with a single step would never call the network: give it more steps")
    with torch.device("cpu"):  # as the times, whatever torch's default device is
        if solver.kind == "statistical" and statistics is not None:  # which it has, as it needs them
            net = Trace(noise, sum(spent), first, statistics.basis)
            return net.tableau(solver.make(net, t, order, statistics), t, name, meta)
        if solver.kind == "algorithm":
            net = Trace(noise, sum(spent), first)
            return net.tableau(solver.make(net, t, spent), t, name, meta)
        return coefficients(name, noise, t, spent).tableau(noise, t, name, meta, afs=first)


def _steps(noise: object, t: Any) -> Tensor:
    """The times t [S+1] of steps, float64 on the CPU.

    Raises UserError for anything else, and for what is no noise schedule.
    """
    timesteps.check_noise(noise)
    try:
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    except (NotImplementedError, TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"steps must be a list of times, got {shown(t)}") from None
    if t.ndim != 1 or len(t) < 2 or not (t.diff() < 0).all():
        raise UserError(f"steps must be at least two times, falling strictly, got {shown(t.tolist())}")
    return t


def _most(solver: Solver, steps: int) -> list[int]:
    """The evaluations per step of the largest NFE that the solver has with this number of steps."""
    plans = []
    for nfe in range(steps, 4 * steps + 1):
        try:
            plans.append(solver.plan(nfe))
        except UserError:
            continue
    return [plan for plan in plans if len(plan) == steps][-1]


def make(
    name: str,
    schedule: Schedule,
    noise: NoiseSchedule,
    nfe: int,
    named: Mapping[str, Any] | None = None,
    statistics: Statistics | None = None,
) -> Tableau:
    """A classical solver on a schedule, as a tableau. Its meta records `solver` and `schedule`.

    Args:
        name: the solver's name.
        schedule, named: as for `timesteps.build`.
        noise: the noise schedule.
        nfe: evaluations.
        statistics: as for `build`.

    Raises:
        UserError: as `timesteps.build` and `build` do.
    """
    t = timesteps.build(schedule, noise, len(evals_per_step(name, nfe)), named)
    return build(name, noise, t, {"solver": name, "schedule": schedule}, nfe, statistics)
