"""The rows of the comparison: a solver for a model, an NFE and a seed, with what it took to find it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks.rivals.problems.problem import FeatureFn, Problem
from s4spipe.features.base import frechet
from s4spipe.features.random import joined
from s4spipe.learning import (
    adam,
    distance,
    families,
    frequency,
    gauss_newton,
    objective,
    refinement,
    search,
    starts,
    whitening,
)
from s4spipe.learning.families import Family, Free, Times
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises, draw, independent
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN
from s4spipe.solvers import registry, searched_schedules, statistics, timesteps
from s4spipe.solvers.dpm_v3 import Statistics

CLASSICAL = ("ddim", "dpmpp_2m", "dpmpp_3m", "ipndm", "deis_tab", "unipc_bh1", "unipc_bh2")
SCHEDULES = ("time_uniform", "time_quadratic", "edm", "logsnr", "vp_uniform", "vp_quadratic")
ORDER = 3
DISTANCE = distance.pseudo_huber
MICRO_BATCH_SIZE = 200
ADAM_BATCH_SIZE, LEARNING_RATE = 20, 0.03
NEWTON_BATCH_SIZE, NEWTON_STEPS = 200, 10
STATISTICS_GRID, STATISTICS_SAMPLES = 60, 256  # the defaults of params.yaml
FREE_START, SKIP = "dpmpp_3m", (0.0, 0.1, 0.2, 0.3)

Cost = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What a row is given: a problem, an NFE and a seed, with the pairs of that seed.

    Attributes:
        budget: evaluations that a rival may spend on a fit, for every evaluation of a sample.
        others: the pairs after those to learn from, of the same stream.
    """

    problem: Problem
    nfe: int
    seed: int
    budget: int
    training: Pairs
    validation: Pairs
    scratch: Scratch
    others: Pairs | None = None

    @property
    def noise(self) -> NoiseSchedule:
        return self.problem.denoiser.noise_schedule

    @property
    def order(self) -> int:
        """The history of multistep families: no longer than there are evaluations."""
        return min(ORDER, self.nfe)

    def classical(self, solver: str, schedule: str) -> Tableau:
        return registry.make(solver, schedule, self.noise, self.nfe)

    def task(self, student: Family) -> Task:
        return Task(student, self.problem.denoiser, self.training, self.validation, self.scratch, self.seed,
                    MICRO_BATCH_SIZE)  # fmt: skip


def best_classical(cell: Cell) -> tuple[Tableau, Cost]:
    """The best classical solver on its best schedule."""
    return best(cell, {f"{solver}, {on}": cell.classical(solver, on) for solver in CLASSICAL for on in SCHEDULES})


def unipc(cell: Cell) -> tuple[Tableau, Cost]:
    """UniPC on its best schedule."""
    return best(cell, {on: cell.classical("unipc_bh2", on) for on in SCHEDULES})


def dpm_v3(cell: Cell) -> tuple[Tableau, Cost]:
    """DPM-Solver-v3 on its best schedule, with statistics of the pairs' samples."""
    known = known_statistics(cell.problem, cell.training, cell.seed)
    table, cost = best(cell, {on: registry.make("dpm_v3", on, cell.noise, cell.nfe, statistics=known)
                              for on in SCHEDULES})  # fmt: skip
    return table, cost | {"evaluations": cost["evaluations"] + 4 * STATISTICS_GRID * STATISTICS_SAMPLES}


@lru_cache(maxsize=1)
def known_statistics(problem: Problem, training: Pairs, seed: int) -> Statistics:
    """Statistics of the model; two derivatives in forward mode a sample and point of the grid, each as dear as two
    evaluations."""
    some = training.take(torch.arange(min(STATISTICS_SAMPLES, len(training))))
    noises = Noises("statistics", seed, len(some))
    z = independent(problem.denoiser, noises, range(len(some)), 2)
    found = statistics.estimate(problem.denoiser, statistics.Data(some.x_0, some.condition, z), STATISTICS_GRID,
                                MICRO_BATCH_SIZE)  # fmt: skip
    assert found is not None  # a single process has them
    return found


def best(cell: Cell, tables: dict[str, Tableau]) -> tuple[Tableau, Cost]:
    """The table with the smallest Fréchet distance to the teacher, by the judge's own features and on the pairs: the
    most that a classical row can get."""
    pairs, judge = cell.training, cell.problem.judge
    goal = frechet.statistics(judge(pairs.x_0).double())

    @torch.no_grad()
    def score(table: Tableau) -> float:
        ends = [_samples(cell, table, index) for index in torch.arange(len(pairs)).split(MICRO_BATCH_SIZE)]
        return frechet.distance_and_slope(judge(torch.cat(ends)).double(), goal)[0]

    name = min(tables, key=lambda name: score(tables[name]))
    return tables[name], {"evaluations": len(tables) * len(pairs) * cell.nfe, "solver": name}


def gits(cell: Cell, points: int = 60, noises: int = 64, solver: str = "ipndm_4") -> tuple[Tableau, Cost]:
    """iPNDM on the schedule of GITS, with its paper's coefficient."""
    fine, denoiser = timesteps.build("edm", cell.noise, points), cell.problem.denoiser
    x_T, condition = draw(denoiser, "search", cell.seed, range(noises))
    with torch.inference_mode():
        costs = searched_schedules.jump_costs(denoiser, x_T, condition, solver, fine)
    t = fine[searched_schedules.cheapest_paths(costs, 1.15)[cell.nfe]]
    return registry.build("ipndm", cell.noise, t), {"evaluations": noises * points}


def dmn(cell: Cell) -> tuple[Tableau, Cost]:
    """UniPC on the schedule of DMN."""
    t = searched_schedules.dmn(cell.noise, cell.nfe, "logsnr")
    return registry.build("unipc_bh2", cell.noise, t), {"evaluations": 0}


def learned(cell: Cell, settings: dict[str, Any]) -> tuple[Tableau, Cost]:
    """A family by Adam, within the budget: `whitened` as the pipeline's is, or else plainly, as rivals have it."""
    learns, radius, whitened = settings["learns"], settings["radius"], settings.get("whitened", False)
    start = cell.classical(settings["solver"], settings["schedule"])
    times = None if learns == "coefficients" else Times(cell.noise, start.t)
    student = families.make(settings["family"], start, times, order=cell.order)
    spent = partial(spending, cell, radius, whitened)
    epochs = next(n for n in count() if spent(phases(learns, n + 1)) > cell.budget)
    chosen = phases(learns, epochs)
    rates = adam.Adam(ADAM_BATCH_SIZE, LEARNING_RATE, radius, plain=not whitened)
    adam.fit(cell.task(student), chosen, DISTANCE, rates)
    return student(), {"evaluations": spent(chosen) * cell.nfe}


def spending(cell: Cell, radius: float, whitened: bool, phases: Sequence[adam.Phase]) -> int:
    """Network evaluations of learning by Adam, for every evaluation of a sample."""
    each = (3 + (radius > 0)) * len(cell.training) + len(cell.validation)
    begun = whitened * sum(COEFFICIENTS in phase.learns for phase in phases if phase.epochs)
    return sum(phase.epochs for phase in phases) * each + begun * whitening.EVALUATIONS


def phases(learns: str, epochs: int) -> list[adam.Phase]:
    """So many epochs for times, coefficients, both jointly, or alternating after two for the times."""
    if learns == "alternating":
        turns = [(TIMES,), (TIMES,), *([(TIMES,), (COEFFICIENTS,)] * math.ceil(epochs / 2))]
        return [adam.Phase(turn, 1) for turn in turns[:epochs]]
    what = {"joint": (COEFFICIENTS, TIMES), "times": (TIMES,), "coefficients": (COEFFICIENTS,)}[learns]
    return [adam.Phase(what, epochs)]


def newton(cell: Cell, students: Sequence[Family], settings: dict[str, Any]) -> tuple[Family, int]:
    """The most promising student by Gauss-Newton, in bands if the settings say so, and the evaluations spent.
    Validation is by all pairs."""
    trial, denoiser = cell.training.take(torch.arange(starts.TRIAL_PAIRS)), cell.problem.denoiser
    student = min(students, key=lambda s: gauss_newton.mean_distance(s(), denoiser, trial, DISTANCE, MICRO_BATCH_SIZE))
    basis = frequency.bands(cell.training.x_0) if settings.get("bands") else PLAIN
    metric = by_features(cell, settings["seeing"], student(), trial) if "seeing" in settings else DISTANCE
    pace = {"patient": gauss_newton.PATIENT, "brisk": gauss_newton.BRISK}[settings.get("pace", "patient")]
    fit = partial(gauss_newton.fit, learns=(COEFFICIENTS, TIMES), distance=metric, batch_size=NEWTON_BATCH_SIZE,
                  steps=settings.get("steps", NEWTON_STEPS), pace=pace)  # fmt: skip
    student, history = gauss_newton.widened(cell.task(student), basis, fit)
    return student, len(students) * starts.TRIAL_PAIRS * cell.nfe + history[-1]["evaluations"]


def by_features(cell: Cell, feature_fn: FeatureFn, start: Tableau, pairs: Pairs) -> distance.Distance:
    """The pipeline's distance `perceptual_huber`, by a network's features."""
    with torch.no_grad():
        ends = sample(cell.problem.denoiser, start, pairs.x_T, pairs.condition)
    return distance.robust([lambda x, y: feature_fn(x) - feature_fn(y)], ends, pairs.x_0)


def fitted(cell: Cell, settings: dict[str, Any]) -> tuple[Tableau, Cost]:
    """A family fitted as `free` is, its times learned too, from the best of the schedules."""
    tables = [cell.classical(settings["solver"], schedule) for schedule in SCHEDULES]
    students = [families.make(settings["family"], t, Times(cell.noise, t.t), order=cell.order) for t in tables]
    student, spent = newton(cell, students, settings)
    return student(), {"evaluations": spent}


def free(cell: Cell, settings: dict[str, Any]) -> tuple[Tableau, Cost]:
    """The solver `free`, or `free_bands`, by the pipeline's way. Settings: `refine` is how many steps of refinement it
    has, `late` whether it learns c_0, and `mean` in what form its states may have the samples' mean."""
    student, spent = free_fit(cell, settings)
    if "refine" in settings:
        spent += refined(cell, settings, student, partial(with_random, cell.problem, cell.problem.seen))
    return student(), {"evaluations": spent}


def refined(cell: Cell, settings: dict[str, Any], student: Family, seen: refinement.FeatureFn) -> int:
    """Refine a student in place by what is seen of its samples; the evaluations spent. With `watch`, so many of the
    cell's other pairs say which step is kept, and there are more steps at few evaluations, as in the pipeline."""
    steps = settings["refine"]
    if "watch" in settings:
        assert cell.others is not None
        watch = cell.others.take(torch.arange(settings["watch"]))
        cell, steps = replace(cell, validation=watch), refinement.steps_at(steps, cell.nfe)
    return refinement.refine(cell.task(student), seen, steps)[-1]["evaluations"]


def free_fit(cell: Cell, settings: dict[str, Any]) -> tuple[Family, int]:
    """The fit of `free`, and the evaluations spent."""
    late = settings.get("late", True)
    tables = [cell.classical(FREE_START, schedule) for schedule in SCHEDULES]
    tables = [starts.late(table, skip) for table in tables for skip in SKIP] if late else tables
    if "mean" in settings:
        m = starts.mean(cell.training.x_0, settings["mean"])
        tables = [starts.with_constant(table, m) for table in tables]
    return newton(cell, [Free(table, late) for table in tables], settings)


def with_random(problem: Problem, net: FeatureFn, x: Tensor) -> list[Tensor]:
    """What a refinement sees of samples, as the pipeline's does: by a network, and by random features."""
    return [net(x), joined(problem.denoiser.decode(x))]


def searched(cell: Cell, settings: dict[str, Any]) -> tuple[Tableau, Cost]:
    """A search among genomes, or among the times of `solver`, by the Fréchet distance that `seen` sees, as the
    pipeline's does."""
    start = cell.classical(settings["start"], settings["schedule"])
    objectives = [
        objective.Frechet(
            objective.Samples(cell.problem.denoiser, pairs, MICRO_BATCH_SIZE), lambda x: [cell.problem.seen(x)], start
        )
        for pairs in (cell.training, cell.validation)
    ]
    chosen = search.Settings(settings["generations"], settings["candidates"], solver=settings.get("solver"),
                             seed=cell.seed)  # fmt: skip
    table, history = search.evolve(cell.noise, cell.nfe, objectives[0], chosen, cell.scratch, objectives[1])
    judged = sum("validation" in row for row in history)
    return table, {"evaluations": (len(history) * len(cell.training) + judged * len(cell.validation)) * cell.nfe}


SPECIAL: dict[str, Callable[[Cell], tuple[Tableau, Cost]]] = {
    "classical": best_classical,
    "unipc": unipc,
    "dpm_v3": dpm_v3,
    "gits": gits,
    "dmn": dmn,
}
BY = {"adam": learned, "gauss_newton": fitted, "free": free, "search": searched}


def make(row: str, settings: dict[str, Any], cell: Cell) -> tuple[Tableau, Cost]:
    """The row's solver by its settings in params.yaml, and what it cost: network evaluations, and seconds of a core."""
    started = time.process_time()
    table, cost = SPECIAL[row](cell) if row in SPECIAL else BY[settings.get("by", "adam")](cell, settings)
    return table, cost | {"seconds": time.process_time() - started}


def _samples(cell: Cell, table: Tableau, index: Tensor) -> Tensor:
    """The table's samples from the noises of some pairs."""
    some = cell.training.take(index)
    return sample(cell.problem.denoiser, table, some.x_T, some.condition)
