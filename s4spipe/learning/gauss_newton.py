"""Learning a solver by Gauss-Newton steps with Levenberg-Marquardt damping. A solver has a few dozen parameters, so a
dozen steps achieve what takes first-order methods thousands.

The distance of a pair is a function of ||r||^2, where r is the difference between the student's sample and the
teacher's, or what a network sees of it. So its Gauss-Newton curvature in the parameters is w J^T J, with J the
derivatives of r and w = 2 d distance / d ||r||^2. J itself is never computed. For a random v with independent standard
normal entries, E (v^T J)^T (v^T J) = J^T J, and v^T J is a single backward pass, whatever the number of parameters. So
a step costs as much as five passes through the solver.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from s4spipe.learning import adjoint
from s4spipe.learning.distance import Distance, DistanceFn
from s4spipe.learning.families import Banded, Family
from s4spipe.learning.pairs import Pairs, batches
from s4spipe.learning.task import Task, kind
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import Basis

PROBES = 2  # random vectors v per pair
DAMPINGS = 6  # dampings to try, each larger, before a step is given up
FIRST_DAMPING, LEAST_DAMPING = 1e-2, 1e-5
KEPT = 0.7  # of the past steps' curvature where it is a running mean, while steps have their full length
AVERAGED = 3  # best steps whose mean is tried at the end


@dataclass(frozen=True)
class Pace:
    """How long the steps are, and when a fit ends.

    Weights by frequency, or for several NFEs, are too many numbers for the pairs and the probes of one step. So their
    curvature is a running mean, and their steps are shorter, as those of full length scatter around the minimum.

    Attributes:
        few: the steps' lengths while there are few parameters. Each serves until it brings no more progress; after the
            last one the fit ends.
        many: the same for many parameters.
        patience, progress: a length brings no more progress if in the last `patience` steps the lowest loss on the
            validation pairs has fallen by less than this fraction.
    """

    few: tuple[float, ...]
    many: tuple[float, ...]
    patience: int
    progress: float


BRISK = Pace((1.0,), (0.5,), patience=3, progress=0.02)  # as chosen on three models: docs/results/free.md
PATIENT = Pace((1.0,), (1.0, 0.5, 0.25), patience=4, progress=0.0)


class Parameters:
    """The learned parameters of a student, as one vector."""

    def __init__(self, student: Family, learns: tuple[str, ...]):
        self.student, self.learns = student, learns
        self.chosen = {name: p for name, p in student.named_parameters() if kind(name) in learns}

    def get(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.chosen.values()])

    def gradient(self) -> Tensor:
        """That of the last backward pass; 0 where it did not come."""
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.chosen.values()])

    @torch.no_grad()
    def put(self, vector: Tensor) -> None:
        """Set the parameters, clipped to their ranges."""
        for p, part in zip(self.chosen.values(), self._parts(vector), strict=True):
            p.copy_(part)
        self.student.clip()

    def _parts(self, vector: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.chosen.values()]
        return [part.view_as(p) for part, p in zip(vector.split(sizes), self.chosen.values(), strict=True)]

    def table(self) -> Tableau | None:
        """The tableau, or None if the parameters define no valid solver (for instance if its times do not fall)."""
        try:
            return self.student()
        except UserError:
            return None

    def jacobian(self) -> Tensor:
        """[entries, P]: the derivatives of the tableau's entries by the parameters."""

        def entries(vector: Tensor) -> Tensor:
            given = dict(zip(self.chosen, self._parts(vector), strict=True))
            return adjoint.entries(torch.func.functional_call(self.student, given, ()))

        with torch.enable_grad():
            return torch.autograd.functional.jacobian(entries, self.get())


class Objective(Protocol):
    """What Gauss-Newton steps minimise.

    Attributes:
        parameters: what it is a function of.
        nfe: network evaluations that `loss` makes for a pair.
        many: whether there are too many parameters for the pairs and the probes of one step (see `KEPT`).
    """

    @property
    def parameters(self) -> Parameters: ...

    @property
    def nfe(self) -> int: ...

    @property
    def many(self) -> bool: ...

    def loss(self, pairs: Pairs) -> float:
        """The loss of the parameters as they are; infinite where they define no solver."""

    def linearised(self, pairs: Pairs, number: int) -> tuple[float, Tensor, Tensor]:
        """The loss, its gradient [P] and its Gauss-Newton curvature [P, P]; `number` is the seed of the probes."""


@dataclass(frozen=True)
class Problem:
    """The mean distance between a student's samples and the teacher's, an `Objective`."""

    parameters: Parameters
    denoiser: Callable
    distance: Distance
    micro_batch_size: int

    @property
    def nfe(self) -> int:
        return self.parameters.student.nfe

    @property
    def many(self) -> bool:
        return bool(self.parameters.student().basis.shape)

    def loss(self, pairs: Pairs) -> float:
        return mean_distance(self.parameters.table(), self.denoiser, pairs, self.distance, self.micro_batch_size)

    def linearised(self, pairs: Pairs, number: int) -> tuple[float, Tensor, Tensor]:
        table, count = self.parameters.student(), len(self.parameters.get())
        by_parameters = self.parameters.jacobian()
        loss, slope, curvature = 0.0, torch.zeros(count).double(), torch.zeros(count, count).double()
        for index in batches(distributed.shard(torch.arange(len(pairs))), self.micro_batch_size):
            some = pairs.take(index)
            path = adjoint.run(self.denoiser, table, some.x_T, some.condition)
            end = path.end.detach().requires_grad_()
            with torch.enable_grad():
                residual = self.distance.residual(end, some.x_0)
                distances = self.distance.of(residual)
            (by_residual,) = torch.autograd.grad(distances.sum(), residual, retain_graph=True)
            weight = by_residual.norm(dim=1) / residual.detach().norm(dim=1).clamp(min=1e-30)
            root = (weight / PROBES).sqrt()[:, None]
            outputs = [by_residual, *(root * probe(number, index, residual.detach(), k) for k in range(PROBES))]
            by_end = [torch.autograd.grad(residual, end, output, retain_graph=True)[0] for output in outputs]
            by_entries = adjoint.derivatives(self.denoiser, table, path, torch.stack(by_end), some.condition)
            rows = by_entries.cpu().double() @ by_parameters
            loss += distances.detach().sum().item()
            slope += rows[0].sum(0)
            curvature += rows[1:].flatten(0, 1).T @ rows[1:].flatten(0, 1)
        sums = torch.cat([torch.tensor([loss], dtype=torch.float64), slope, curvature.flatten()])
        total, slope, curvature = (distributed.all_reduce(sums) / len(pairs)).split([1, count, count**2])
        return total.item(), slope, curvature.view(count, count)


def fit(
    task: Task, learns: tuple[str, ...], distance: Distance, batch_size: int, steps: int, pace: Pace = PATIENT
) -> list[dict]:
    """Learn the student in place, and leave it at the parameters that are best on the validation pairs.

    This minimises the mean `distance` between the student's samples and the teacher's. See `minimise`.
    """
    problem = Problem(Parameters(task.student, learns), task.denoiser, distance, task.micro_batch_size)
    return minimise(problem, task, batch_size, steps, pace)


def minimise(problem: Objective, task: Task, batch_size: int, steps: int, pace: Pace) -> list[dict]:
    """Minimise an objective, and leave its parameters where it is lowest on the validation pairs.

    Every step draws `batch_size` new pairs and solves (H + mu diag H) delta =
    -g (Levenberg 1944; Marquardt 1963). mu grows until the loss on these pairs falls, and shrinks after that. With
    many parameters, H is a running mean over the steps. When the validation pairs have seen no progress for a while,
    steps become shorter, go on from the best parameters, and past steps count for more. The fit ends after `steps`
    steps, or when the shortest bring no progress. At the end, the mean of the best steps is a candidate too (see
    `mix`).

    Several processes divide every batch. Progress is saved in the task's scratch after every step.

    Args:
        problem: what to minimise.
        task: the pairs, the scratch, the seed and the description; its student is not used.
        batch_size: pairs of a step.
        steps: at most.
        pace: when they become shorter, and when the fit ends before that.

    Returns:
        The losses, as from `s4spipe.learning.adam.fit`: one row per step, without moves, and with the network
        evaluations so far (a backward pass counts as one). The last row is that of the mean.
    """
    training, validation, parameters = task.training, task.validation, problem.parameters

    if not (state := task.scratch.load("fit")):
        loss = problem.loss(validation)
        first = {"epoch": 0, "learns": "", "train": None, "validation": loss, "evaluations": 0}
        best = [(loss, parameters.get())]
        state = {"now": parameters.get(), "best": best, "damping": FIRST_DAMPING, "history": [first], "curvature": None}
        state |= {"turn": 0, "since": 0}
    lengths = pace.many if problem.many else pace.few
    history, damping, turn, since = (state[key] for key in ("history", "damping", "turn", "since"))
    parameters.put(state["now"])
    distributed.barrier()  # all have read how far the fit was before one goes on

    rest = range(len(history) - 1, steps)
    for step in (bar := distributed.progress(rest, task.description, steps, initial=len(history) - 1)):
        if stalled(history, since, pace):
            if turn + 1 == len(lengths):
                break
            turn, since = turn + 1, len(history) - 1
            parameters.put(state["best"][0][1])
        length = lengths[turn]
        kept = 1 - (1 - KEPT) * length if problem.many else 0.0
        number = task.seed * 100_003 + step
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(number))
        batch, before = training.take(order[:batch_size]), parameters.get()
        start, gradient, curvature = problem.linearised(batch, number)
        if kept and state["curvature"] is not None:
            curvature = kept * state["curvature"] + (1 - kept) * curvature
        spent = len(batch) * adjoint.evaluations(problem.nfe, 1 + PROBES)
        floor = 1e-2 * curvature.diag().max() + 1e-30  # parameters with little effect take small steps
        for _ in range(DAMPINGS):
            damped = curvature + damping * torch.diag(curvature.diag() + floor)
            parameters.put(before - length * torch.linalg.solve(damped, gradient))
            spent += len(batch) * problem.nfe
            if problem.loss(batch) < start:
                damping = max(damping / 5, LEAST_DAMPING)
                break
            damping *= 5
        else:
            parameters.put(before)
        row = {"epoch": step + 1, "learns": "+".join(parameters.learns), "train": start}
        row["validation"] = problem.loss(validation)
        row["evaluations"] = history[-1]["evaluations"] + spent + len(validation) * problem.nfe
        best = sorted([*state["best"], (row["validation"], parameters.get())], key=lambda met: met[0])[:AVERAGED]
        history.append(row)
        bar.set_postfix(validation=f"{row['validation']:.2e}")
        state = {"now": parameters.get(), "best": best, "damping": damping, "history": history}
        state |= {"turn": turn, "since": since}
        state["curvature"] = curvature if kept else None
        if distributed.is_main():
            task.scratch.save("fit", state)

    loss, tried = mix(parameters, state["best"], lambda: problem.loss(validation))
    spent = history[-1]["evaluations"] + tried * len(validation) * problem.nfe
    last = {"epoch": len(history), "learns": "mean", "train": None, "validation": loss, "evaluations": spent}
    return [*history, last]


def widened(task: Task, basis: Basis, fit: Callable[[Task], list[dict]]) -> tuple[Family, list[dict]]:
    """Fit plain numbers, and then, from there, numbers for each band of the basis, if it has bands.

    The numbers of all bands at once would stop where they are worse than plain ones: a step's probes are too few to
    tell them apart while the samples are far from the teacher's.

    Args:
        task: its student has plain numbers.
        basis: the bands; PLAIN for none.
        fit: `fit` above, with all but the task.

    Returns:
        The student that was learned last, and the losses of both fits as one history.
    """
    history, student = fit(task), task.student
    if basis.shape:
        student = Banded.around(student, basis)
        more = fit(replace(task, student=student, scratch=task.scratch.within("bands")))
        last = history[-1]
        history += [
            row | {"epoch": last["epoch"] + row["epoch"], "evaluations": last["evaluations"] + row["evaluations"]}
            for row in more[1:]
        ]
    return student, history


def stalled(history: list[dict], since: int, pace: Pace) -> bool:
    """Whether the last steps brought no progress on the validation pairs; none before `since` count."""
    losses = [row["validation"] for row in history]
    if len(losses) - 1 - since < pace.patience:
        return False
    return not min(losses) < (1 - pace.progress) * min(losses[: -pace.patience])


def mix(parameters: Parameters, best: list[tuple[float, Tensor]], loss: Callable[[], float]) -> tuple[float, int]:
    """Set the best parameters, or their mean with those of the next best that lower the loss.

    Steps on some of the pairs scatter around the minimum of the loss on all pairs, and their mean is closer to it
    (Polyak and Juditsky 1992). Candidates are added one by one, as in Wortsman et al. 2022 (arXiv 2203.05482).

    Returns:
        The loss, and how often it was evaluated.
    """
    (low, first), *others = best
    taken = [first]
    for _, other in others:
        parameters.put(_mean([*taken, other]))
        if (new := loss()) < low:
            low, taken = new, [*taken, other]
    parameters.put(_mean(taken))
    return low, len(others)


def _mean(vectors: list[Tensor]) -> Tensor:
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total / len(vectors)


def probe(number: int, index: Tensor, like: Tensor, k: int = 0) -> Tensor:
    """The k-th random v of every pair in `index`, in the shape of `like`, independent of how the pairs are divided."""
    seeds = ((number * 1_000_003 + row) * PROBES + k for row in index.tolist())
    drawn = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]
    return torch.stack(drawn).to(like)


@torch.no_grad()
def mean_distance(
    table: Tableau | None, denoiser: Callable, pairs: Pairs, distance: DistanceFn, micro_batch_size: int
) -> float:
    """The mean distance between a tableau's samples and the teacher's; infinite without a tableau or finite samples."""
    if table is None:
        return float("inf")
    own, total = distributed.shard(torch.arange(len(pairs))), torch.zeros(1, dtype=torch.float64)
    for index in batches(own, micro_batch_size):
        some = pairs.take(index)
        total += distance(sample(denoiser, table, some.x_T, some.condition, check=False), some.x_0).cpu().double().sum()
    mean = distributed.all_reduce(total).item() / len(pairs)
    return mean if mean == mean else float("inf")
