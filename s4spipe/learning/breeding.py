"""How a search without gradients makes new candidates from the best so far: by USF's rules for decisions, and by
AutoDiffusion's for times alone.

A candidate is kept as JSON-ready data. Every rule draws from the generator that it is given, and from nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, Protocol

import torch

from s4spipe.learning.genome import FORMS, ORDERS, SCALES, Genome, Step, of_classical
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry, timesteps
from s4spipe.solvers.best_schedules import USUAL

SEEDS = ("ddim", "dpmpp_2m", "unipc_bh2_3", "adams_bashforth_3", "deis_log_3")  # on each of the usual schedules
NARROWEST = 1e-3  # of a step of equal size in lambda


class Space(Protocol):
    """Where a search goes: the candidates of one NFE.

    `seeds` are the first candidates; `child` makes one from `parents`; `tableau` is the solver of a candidate.
    """

    def seeds(self) -> list[dict]: ...

    def child(self, draw: Random, parents: Sequence[dict]) -> dict: ...

    def tableau(self, candidate: dict, meta: dict) -> Tableau: ...


class Decisions:
    """Solvers as genomes; the rules are those of USF (Liu et al. 2023, arXiv 2312.07243) and its code.

    With probability 0.3, a child crosses two parents: it has the times, orders (with scale and rho), predictions and
    correctors of one or the other, each as a whole, or with probability 0.5, orders and predictions step by step from
    one or the other. It is always mutated. USF's searches have any NFE; here it is given, so a step that is inserted
    takes the place of another, and the step that AFS makes free is added.
    """

    def __init__(self, noise: NoiseSchedule, nfe: int):
        self.noise, self.nfe = noise, nfe

    def seeds(self) -> list[dict]:
        times = [timesteps.build(schedule, self.noise, self.nfe).tolist() for schedule in USUAL]
        return [of_classical(name, t).to_dict() for name in SEEDS for t in times]

    def child(self, draw: Random, parents: Sequence[dict]) -> dict:
        while True:
            parent = Genome.from_dict(draw.choice(parents))
            if draw.random() < 0.3:
                parent = self.crossed(draw, parent, Genome.from_dict(draw.choice(parents)))
            child = self.mutated(draw, parent)
            if apart(self.noise, child.t):
                return child.to_dict()

    def tableau(self, candidate: dict, meta: dict) -> Tableau:
        return Genome.from_dict(candidate).tableau(self.noise, meta=meta)

    def crossed(self, draw: Random, one: Genome, two: Genome) -> Genome:
        """A child of two parents, with the number of steps of the first."""
        two = self.resized(draw, two, one.afs)
        times, orders, forms, correctors = (draw.choice((one, two)) for _ in range(4))
        mixed = draw.random() < 0.5
        steps = []
        for i, step in enumerate(orders.steps):
            if mixed:
                step, form = draw.choice((one, two)).steps[i], draw.choice((one, two)).steps[i].form
            else:
                form = forms.steps[i].form
            steps.append(replace(step, form=form, corrects=correctors.steps[i].corrects))
        return Genome(times.t, tuple(steps), one.afs)

    def mutated(self, draw: Random, genome: Genome) -> Genome:
        """Each of the decisions anew with probability 0.3; times and relaxations are changed a little."""
        if draw.random() < 0.3:
            genome = self.resized(draw, genome, draw.random() < 0.5)
        if len(genome.steps) > 1 and draw.random() < 0.4:  # USF's 0.2 to insert and 0.2 to delete a step
            genome = self.inserted(draw, without(draw, genome))
        first, *inner, last = genome.t
        inner = [self.moved(draw, t) if draw.random() < 0.3 else t for t in inner]
        if draw.random() < 0.3:
            last = self.noise.t_min * draw.uniform(1, 1.5)  # 0.002 to 0.003 in EDM's time
        t = (first, *sorted(inner, reverse=True), last)
        return Genome(t, tuple(mutated_step(draw, step) for step in genome.steps), genome.afs)

    def moved(self, draw: Random, t: float) -> float:
        """A time times 1 + N(0, 0.08^2), or as it is if that is beyond the ends."""
        new = t * (1 + draw.gauss(0, 0.08))
        return new if self.noise.t_min < new < self.noise.T else t

    def resized(self, draw: Random, genome: Genome, afs: bool) -> Genome:
        """The genome with AFS or without; its steps are one more or fewer, as its NFE stays."""
        if afs > genome.afs:
            return replace(self.inserted(draw, genome), afs=True)
        return replace(without(draw, genome), afs=False) if afs < genome.afs else genome

    def inserted(self, draw: Random, genome: Genome) -> Genome:
        """The genome with one of its steps divided at a random lambda, both parts with its decisions."""
        i = draw.randrange(len(genome.steps))
        start, end = self.noise.lambda_(torch.tensor(genome.t[i : i + 2], dtype=torch.float64, device="cpu"))
        between = self.noise.inverse(start + draw.random() * (end - start)).item()
        t, steps = genome.t, genome.steps
        return replace(genome, t=(*t[: i + 1], between, *t[i + 1 :]), steps=(*steps[: i + 1], *steps[i:]))


def without(draw: Random, genome: Genome) -> Genome:
    """The genome without one of its inner times and the step that starts there."""
    i = draw.randrange(1, len(genome.steps))
    t, steps = genome.t, genome.steps
    return replace(genome, t=t[:i] + t[i + 1 :], steps=steps[:i] + steps[i + 1 :])


def mutated_step(draw: Random, step: Step) -> Step:
    """USF's code has no scale among what it changes; here it is drawn like the rest."""
    order, form, scale, rho, corrects = step.order, step.form, step.scale, step.rho, step.corrects
    if draw.random() < 0.3:
        (order,) = draw.choices(ORDERS, (0.2, 0.4, 0.3, 0.1))
    if draw.random() < 0.3:
        form = draw.choice(FORMS)
    if draw.random() < 0.3:
        scale = draw.choice(SCALES)
    if draw.random() < 0.3:
        rho += draw.gauss(0, 0.03)
    if draw.random() < 0.3:
        corrects = draw.random() < 0.5
    return Step(order, form, scale, rho, corrects)


class Times:
    """The times of a classical solver; the rules are those of AutoDiffusion (Li et al. 2023, arXiv 2309.10438) and its
    code.

    New times are from a grid of 1000, uniform in the time of a linear VP process. Half of the children are mutants, in
    which each time is replaced, with probability 0.25, by an unused one; 3 of 10 are crossovers, with each time from
    one or the other parent; the rest is drawn anew.
    """

    def __init__(self, name: str, noise: NoiseSchedule, nfe: int):
        self.name, self.noise, self.nfe = name, noise, nfe
        self.steps = len(registry.evals_per_step(name, nfe))
        if registry.parse(name)[0].noisy or registry.needs_statistics(name):
            raise UserError(f"the times of {name} cannot be searched: choose a solver without fresh noise and "
                            "statistics of the model")  # fmt: skip
        first, *self.grid, last = timesteps.build("vp_uniform", noise, 1000).tolist()
        self.ends = first, last

    def seeds(self) -> list[dict]:
        return [{"t": timesteps.build(schedule, self.noise, self.steps).tolist()} for schedule in USUAL]

    def child(self, draw: Random, parents: Sequence[dict]) -> dict:
        while True:
            kind, inner = draw.random(), draw.choice(parents)["t"][1:-1]
            if kind < 0.5:
                kept = [t for t in inner if draw.random() >= 0.25]
            elif kind < 0.8:
                kept = [draw.choice(both) for both in zip(inner, draw.choice(parents)["t"][1:-1], strict=True)]
            else:
                kept = []
            kept = list(dict.fromkeys(kept))  # two parents may have given the same
            new = draw.sample([t for t in self.grid if t not in kept], len(inner) - len(kept))
            t = [self.ends[0], *sorted([*kept, *new], reverse=True), self.ends[1]]
            if apart(self.noise, t):
                return {"t": t}

    def tableau(self, candidate: dict, meta: dict) -> Tableau:
        t = torch.tensor(candidate["t"], dtype=torch.float64, device="cpu")
        return registry.build(self.name, self.noise, t, {"solver": self.name, **meta}, self.nfe)


def apart(noise: NoiseSchedule, t: Sequence[Any]) -> bool:
    """Whether times fall, with steps that are not so small that rounding would decide the weights."""
    gaps = noise.lambda_(torch.tensor(t, dtype=torch.float64, device="cpu")).diff()
    return bool((gaps > NARROWEST * gaps.sum() / len(gaps)).all())
