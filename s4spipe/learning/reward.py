"""Learning a solver's numbers for a reward that has no gradient: what people prefer, a count of objects, a metric.

Evolution strategies move the numbers by what the objective says of random changes to them. They need far more solvers
than Gauss-Newton or a refinement, and are for objectives that those cannot have.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from s4spipe.learning.families import Family
from s4spipe.learning.gauss_newton import Parameters
from s4spipe.learning.search import Objective, evaluated
from s4spipe.learning.task import COEFFICIENTS, TIMES, check_history
from s4spipe.runtime import distributed
from s4spipe.runtime.checks import is_number, whole
from s4spipe.runtime.errors import UserError, shown
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.tableau import Tableau


@dataclass(frozen=True)
class Settings:
    """Settings of `evolve_parameters`.

    Attributes:
        steps: how many.
        pairs: of opposite changes in each step, which are divided among the processes.
        spread: the standard deviation of a change, in units of the family's parameters, at the start.
        shrink: what the spread is multiplied by after a step that is no better on the validation objective.
        seed: of all that is drawn.
    """

    steps: int = 50
    pairs: int = 16
    spread: float = 0.03
    shrink: float = 0.8
    seed: int = 0


def evolve_parameters(
    student: Family, objective: Objective, validation: Objective, settings: Settings, scratch: Scratch
) -> list[dict[str, Any]]:
    """Learn all parameters of the student in place by an antithetic Gaussian evolution strategy, and leave it at those
    with the lowest `validation` (its start, if nothing is lower).

    A step evaluates `objective` at p + s e_i and p - s e_i for normal e_i, and moves p by

        -s sum_i w_i e_i / |w|,    w_i = rank of the objective at p + s e_i, less that at p - s e_i

    among all of the step (Salimans et al. 2017, arXiv 1703.03864, sec. 2, with ranks for values; here the length of
    a step is that of a change). Ranks make the step the same for any increasing function of the objective, and values
    that are not finite the last. A step after which `validation` is no lower is undone, and the spread shrinks.
    Progress is saved in the scratch after every step; the draws of a step depend on the seed and its number alone.

    Args:
        student: the family; it is changed.
        objective: Tableau -> float, lower is better, the negative of a reward. With several processes, it is called in
            one of them for each solver, so it must not wait for the others.
        validation: the same from other noises, say, so that the solver is not the luckiest of many.
        settings: how long, and how far.
        scratch: where progress is saved; its key must tell student, objectives and settings apart.

    Returns:
        One row for each step, the first for the start: epoch, train (the mean of the step's finite values, or None),
        validation, spread, and evaluations (of either objective, so far).

    Raises:
        UserError: for settings that are out of range, and if `validation` was never finite.
    """
    _check(settings)
    parameters = Parameters(student, (COEFFICIENTS, TIMES))
    if not (state := scratch.load("evolve_parameters")):
        (start,) = evaluated([partial(_solver, parameters, parameters.get())], validation)
        first = {"epoch": 0, "train": None, "validation": start, "spread": settings.spread, "evaluations": 1}
        state = {"best": parameters.get(), "least": start, "spread": settings.spread, "history": [first]}
    distributed.barrier()  # all have read how far it was before one goes on

    done = len(state["history"]) - 1
    for step in (bar := distributed.progress(range(done, settings.steps), "evolve", settings.steps, initial=done)):
        best, spread, history = state["best"], state["spread"], state["history"]
        draw = torch.Generator().manual_seed(settings.seed * 100_003 + step)
        e = torch.randn(settings.pairs, len(best), dtype=best.dtype, generator=draw)
        changed = [best + sign * spread * row for sign in (1, -1) for row in e]
        values = torch.tensor(
            evaluated([partial(_solver, parameters, p) for p in changed], objective), dtype=best.dtype
        )
        w = ranks(values[: settings.pairs], values) - ranks(values[settings.pairs :], values)
        new = best - spread * (w @ e) / w.norm().clamp(min=1e-30)
        (value,) = evaluated([partial(_solver, parameters, new)], validation)
        parameters.put(new)
        finite = values[values.isfinite()]
        row = {"epoch": step + 1, "train": finite.mean().item() if len(finite) else None, "validation": value}
        row |= {"spread": spread, "evaluations": history[-1]["evaluations"] + len(values) + 1}
        if value < state["least"]:
            state |= {"best": parameters.get(), "least": value}
        else:
            state |= {"spread": spread * settings.shrink}
        state |= {"history": [*history, row]}
        bar.set_postfix(validation=f"{value:.3e}")
        if distributed.is_main():
            scratch.save("evolve_parameters", state)

    parameters.put(state["best"])
    check_history(state["history"], "evolve_parameters")
    return state["history"]


def ranks(some: Tensor, values: Tensor) -> Tensor:
    """How many of `values` [n] each of `some` [m] is above; half of those that it is equal to count."""
    above, equal = some[:, None] > values, some[:, None] == values
    return above.double().sum(1) + equal.double().sum(1) / 2


def _solver(parameters: Parameters, at: Tensor) -> Tableau | None:
    with torch.no_grad():
        parameters.put(at)
        return parameters.table()


def _check(settings: Settings) -> None:
    for name, least in (("steps", 0), ("pairs", 1), ("seed", 0)):
        whole(f"{name} of an evolution", getattr(settings, name), least)
    if not is_number(settings.spread) or not 0 < settings.spread < float("inf"):
        raise UserError(f"spread of an evolution must be a number above 0, got {shown(settings.spread)}")
    if not is_number(settings.shrink) or not 0 < settings.shrink <= 1:
        raise UserError(f"shrink of an evolution must be above 0 and at most 1, got {shown(settings.shrink)}")
