"""Searching for a solver without gradients: by evolution, for any number that tells how good a solver is.

The Fréchet distance of its samples is meant, which no other learner here uses from so far away. Noises must be the same
for every candidate: with fresh ones, the best of many is the luckiest (USF's code draws them anew).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch

from s4spipe.learning.breeding import Decisions, Space, Times
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime import distributed
from s4spipe.runtime.checks import MOST_NFE, whole
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import timesteps

Objective = Callable[[Tableau], float]  # lower is better; what is not finite is infinitely bad


@dataclass(frozen=True)
class Settings:
    """Settings of `evolve`.

    Attributes:
        generations: how many are bred, after that of the seeds.
        candidates: in each of them. They are divided among the processes.
        parents: the best so far, from which parents are drawn uniformly.
        solver: a classical solver whose times alone are searched; None for all decisions of a multistep solver.
        seed: of all that is drawn.
    """

    generations: int = 10
    candidates: int = 50
    parents: int = 15
    solver: str | None = None
    seed: int = 0


def evolve(
    noise: NoiseSchedule,
    nfe: int,
    objective: Objective,
    settings: Settings,
    scratch: Scratch,
    validation: Objective | None = None,
) -> tuple[Tableau, list[dict[str, Any]]]:
    """Search for the solver with the lowest objective by evolution.

    The candidates are the genomes of `s4spipe.learning.genome`, bred as in USF (Liu et al. 2023, arXiv 2312.07243), or
    with `settings.solver` times, bred as in AutoDiffusion (Li et al. 2023, arXiv 2309.10438). The first are classical
    solvers on the usual schedules. All that were ever evaluated are the population. Progress is saved in the scratch
    after every generation. Each candidate's draws depend on the seed and its number alone, so that a search that was
    killed, or is divided among processes, finds the same.

    Args:
        noise: the noise schedule.
        nfe: the evaluations of every candidate.
        objective: tells how good a solver is. With several processes, it is called in one of them for each candidate,
            so it must not wait for the others.
        settings: how long to search, and where.
        scratch: where progress is saved; its key must tell noise, nfe, objective and settings apart.
        validation: the objective from other noises, say. Of the solvers that were the best so far after some
            generation, the one that it finds best is returned, so that it is not the luckiest of many.

    Returns:
        The best solver, and one row for each candidate: generation, candidate (JSON-ready data), value (None if it was
        not finite), and validation for those that it saw. The solver's `meta` has candidate and value.

    Raises:
        UserError: for settings that are out of range, and if the objective was never finite.
    """
    timesteps.check_noise(noise)
    nfe = whole("nfe", nfe, most=MOST_NFE)
    for name, least in (("generations", 0), ("candidates", 1), ("parents", 1), ("seed", 0)):
        whole(f"{name} of a search", getattr(settings, name), least)
    space: Space = Decisions(noise, nfe) if settings.solver is None else Times(settings.solver, noise, nfe)
    history: list[dict[str, Any]] = (scratch.load("search") or {"history": []})["history"]
    distributed.barrier()  # all have read how far the search was before one goes on
    done = 1 + history[-1]["generation"] if history else 0
    count = 1 + settings.generations
    for generation in (bar := distributed.progress(range(done, count), "search", count, initial=done)):
        best = [row["candidate"] for row in ranked(history)[: settings.parents]]
        draws = (Random(f"{settings.seed}/{len(history) + k}") for k in range(settings.candidates))
        candidates = space.seeds() if generation == 0 else [space.child(draw, best) for draw in draws]
        found = evaluated([partial(space.tableau, candidate, {}) for candidate in candidates], objective)
        history += [
            {"generation": generation, "candidate": candidate, "value": value if math.isfinite(value) else None}
            for candidate, value in zip(candidates, found, strict=True)
        ]
        if not (order := ranked(history)):
            raise UserError("search: the objective was not finite for any of the classical solvers that it starts from")
        bar.set_postfix(best=f"{order[0]['value']:.4g}")
        if distributed.is_main():
            scratch.save("search", {"history": history})
    first = ranked(history)[0]
    if validation is not None:
        best_so_far = leaders(history)
        seen = evaluated([partial(space.tableau, row["candidate"], {}) for row in best_so_far], validation)
        for row, value in zip(best_so_far, seen, strict=True):
            row["validation"] = value if math.isfinite(value) else None
        first = best_so_far[min(range(len(seen)), key=seen.__getitem__)]
    return space.tableau(first["candidate"], {"candidate": first["candidate"], "value": first["value"]}), history


def ranked(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose value is finite, the lowest first."""
    return sorted((row for row in history if row["value"] is not None), key=lambda row: row["value"])


def leaders(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that were the best so far after some generation."""
    found: list[dict[str, Any]] = []
    for generation in range(1 + history[-1]["generation"]):
        best = ranked([row for row in history if row["generation"] <= generation])[0]
        if not found or best is not found[-1]:
            found.append(best)
    return found


def evaluated(tables: list[Callable[[], Tableau | None]], objective: Objective) -> list[float]:
    """The objective of each solver, infinite where it is not finite or there is no solver. The processes divide them.

    A solver is given by a function that makes it, in the process that needs it, one after another.
    """
    places = distributed.shard(torch.arange(len(tables)))
    values = []
    for place in places.tolist():
        table = tables[place]()
        value = math.inf if table is None else float(objective(table))
        values.append(value if math.isfinite(value) else math.inf)
    return distributed.gather(torch.tensor(values, dtype=torch.float64), places, len(tables)).tolist()
