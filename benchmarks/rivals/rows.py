"""The rows of the comparison: a solver for a model, an NFE and a seed, with what it took to find it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.rivals.models import Model
from s4spipe import classical, distance, search, steps
from s4spipe.distill import fit as adam
from s4spipe.distill import frechet, free, gauss_newton
from s4spipe.families import FAMILIES, Family, Free, Times
from s4spipe.files import Scratch
from s4spipe.pairs import Pairs, draw
from s4spipe.params import Fit
from s4spipe.sampling import sample
from s4spipe.tableau import Tableau

CLASSICAL = ("ddim", "dpmpp_2m", "dpmpp_3m", "ipndm", "deis_tab", "unipc_bh1", "unipc_bh2")
SCHEDULES = ("time_uniform", "time_quadratic", "edm", "logsnr", "vp_uniform", "vp_quadratic")
APART = distance.pseudo_huber
AT_ONCE, BATCH, RATE = 200, 20, 0.03
FIT = Fit(init="dpmpp_3m", starts=list(SCHEDULES), distance="pseudo_huber", pairs=1, validation_pairs=1, batch_size=200,
          steps=10, seed=0)  # fmt: skip
REFINEMENTS = 3


@dataclass
class Task:
    """One cell's circumstances. Rows of a model share the pairs of a seed."""

    model: Model
    nfe: int
    seed: int
    budget: int
    training: Pairs
    validation: Pairs
    scratch: Scratch

    @property
    def noise(self):
        return self.model.denoiser.noise_schedule

    def schedule(self, name: str, solver: str) -> Tensor:
        return steps.build(name, self.noise, len(classical.costs(solver, self.nfe)))


def best_classical(task: Task) -> tuple[Tableau, dict]:
    """The classical solver and schedule with the smallest Fréchet distance to the teacher, in the judge's own eyes and
    on the pairs: the most that a classical row can get."""
    pairs = task.training
    goal = frechet.statistics(task.model.judge(pairs.x_0).double())

    @torch.no_grad()
    def score(table: Tableau) -> float:
        ends = [_sampled(task, table, pairs.take(index)) for index in torch.arange(len(pairs)).split(AT_ONCE)]
        return frechet.distance(task.model.judge(torch.cat(ends)).double(), goal)[0]

    tables = [
        classical.build(solver, task.noise, task.schedule(schedule, solver), {"row": f"{solver}, {schedule}"})
        for solver in CLASSICAL
        for schedule in SCHEDULES
    ]
    return min(tables, key=score), {"evaluations": len(tables) * len(pairs) * task.nfe}


def gits(task: Task, points: int = 60, noises: int = 64, solver: str = "ipndm_4") -> tuple[Tableau, dict]:
    """iPNDM on the schedule of GITS, with its paper's coefficient."""
    fine = steps.build("edm", task.noise, points)
    x_T, condition = draw(task.model.denoiser, "search", task.seed, range(noises))
    with torch.inference_mode():
        costs = search.jump_costs(task.model.denoiser, x_T, condition, solver, fine)
    t = fine[search.cheapest_paths(costs, 1.15)[task.nfe]]
    return classical.build("ipndm", task.noise, t), {"evaluations": noises * points}


def dmn(task: Task) -> tuple[Tableau, dict]:
    """UniPC on the schedule of DMN."""
    return classical.build("unipc_bh2", task.noise, search.dmn(task.noise, task.nfe, "logsnr")), {"evaluations": 0}


def learned(task: Task, settings: dict) -> tuple[Tableau, dict]:
    """A family by Adam, within the budget."""
    init, learns, t = settings["init"], settings["learns"], task.schedule(settings["steps"], settings["init"])
    times = None if learns == "coefficients" else Times(task.noise, t)
    student = FAMILIES[settings["family"]](init, task.noise, t, task.nfe, 3, times, False)
    each = (3 + (settings["radius"] > 0)) * len(task.training) + len(task.validation)
    epochs = task.budget // each
    adam.fit(student, plan(learns, epochs), task.model.denoiser, task.training, task.validation, APART,
             batch_size=BATCH, at_once=AT_ONCE, learning_rate=RATE, radius=settings["radius"], seed=task.seed,
             scratch=task.scratch)  # fmt: skip
    return student(), {"evaluations": epochs * each * task.nfe}


def plan(learns: str, epochs: int) -> list[adam.Phase]:
    """So many epochs for times, coefficients, both jointly, or alternating after two for the times."""
    both = (adam.COEFFICIENTS, adam.TIMES)
    if learns == "alternating":
        turns = [(adam.TIMES,), (adam.TIMES,), *([(adam.TIMES,), (adam.COEFFICIENTS,)] * math.ceil(epochs / 2))]
        return [adam.Phase(turn, 1) for turn in turns[:epochs]]
    return [adam.Phase({"joint": both, "times": (adam.TIMES,), "coefficients": (adam.COEFFICIENTS,)}[learns], epochs)]


def newton(task: Task, students: list[Family]) -> tuple[Family, int]:
    """The most promising student by Gauss-Newton, and the evaluations spent; all validation pairs see it."""
    some, denoiser = task.training.take(torch.arange(free.TRIED)), task.model.denoiser
    student = min(students, key=lambda s: gauss_newton.mean_distance(s(), denoiser, some, APART, AT_ONCE))
    history = gauss_newton.fit(student, (adam.COEFFICIENTS, adam.TIMES), denoiser, task.training, task.validation,
                               APART, seed=task.seed, steps=FIT.steps, batch_size=FIT.batch_size, at_once=AT_ONCE,
                               scratch=task.scratch)  # fmt: skip
    return student, len(students) * free.TRIED * task.nfe + history[-1]["evaluations"]


def fitted(task: Task, settings: dict) -> tuple[Tableau, dict]:
    """A family fitted as `free` is, its times learned too, from the best of the schedules."""
    init, family = settings["init"], FAMILIES[settings["family"]]
    students = [
        family(init, task.noise, t, task.nfe, 3, Times(task.noise, t), False)
        for t in (task.schedule(name, init) for name in SCHEDULES)
    ]
    student, spent = newton(task, students)
    return student(), {"evaluations": spent}


def ours(task: Task, refined: bool) -> tuple[Tableau, dict]:
    """The solver `free`, with the pipeline's settings."""
    student, spent = newton(task, [Free(start) for start in free.starts(FIT, task.noise, task.nfe)])
    if refined:
        history = frechet.refine(student, task.model.denoiser, task.training, task.validation, task.model.seen,
                                 at_once=AT_ONCE, steps=REFINEMENTS, seed=task.seed, scratch=task.scratch)  # fmt: skip
        spent += history[-1]["evaluations"]
    return student(), {"evaluations": spent}


def make(row: str, rows: dict[str, dict], task: Task) -> tuple[Tableau, dict]:
    """The row's solver, and what it cost: network evaluations and seconds of a core."""
    special: dict[str, Callable] = {
        "classical": best_classical,
        "gits": gits,
        "dmn": dmn,
        "free_fit": lambda task: ours(task, refined=False),
        "free": lambda task: ours(task, refined=True),
    }
    started = time.process_time()
    if row in special:
        table, cost = special[row](task)
    else:
        by = fitted if rows[row].get("optimizer") == "gauss_newton" else learned
        table, cost = by(task, rows[row])
    return table, cost | {"seconds": time.process_time() - started}


def _sampled(task: Task, table: Tableau, pairs: Pairs) -> Tensor:
    return sample(task.model.denoiser, table, pairs.x_T, pairs.condition)
