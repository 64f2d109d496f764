"""Refining a solver by what its samples are like together, instead of one by one: the Fréchet distance between the
features of its samples and of the teacher's, from the same noises.

A solver with few evaluations cannot send every noise to the teacher's image, and a mean of distances makes it blur what
it cannot reach. Its images can still be distributed as the teacher's are. Both sides see the same noises, so that most
of the error of a finite sample cancels. The features' network must not be the one that judges the solver afterwards.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from s4spipe import ranks
from s4spipe.distill import adjoint
from s4spipe.distill.gauss_newton import Parameters, probe
from s4spipe.families import Family
from s4spipe.files import Scratch
from s4spipe.pairs import Pairs, batches
from s4spipe.sampling import sample

TRIES = 5  # of a step, each a quarter as long as the one before, until the distance falls
DAMPING = 1e-3  # of the curvature that the first step goes by


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] of features [n, d]."""
    return features.mean(0), torch.cov(features.T)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def distance(features: Tensor, goal: tuple[Tensor, Tensor]) -> tuple[float, Tensor]:
    """The Fréchet distance of features [n, d] to a `goal` (mean, covariance), and its slope by the features, times n.

    The distance is the least mean of |f - T f|^2 over maps T that bring the features' mean and covariance to the
    goal's; the minimum is T f = mean_r + A (f - mean), A = S_r^1/2 (S_r^1/2 S S_r^1/2)^-1/2 S_r^1/2 (Dowson and Landau
    1982; Olkin and Pukelsheim 1982). At a minimum the slope is that with T held: 2 (f - T f). Features that are no
    numbers are infinitely far.
    """
    if not features.isfinite().all():
        return float("inf"), torch.zeros_like(features)
    (mean, S), (mean_r, S_r) = statistics(features), goal
    r = root(S_r)
    values, vectors = torch.linalg.eigh(r @ S @ r)
    values = values.clamp(min=0)
    kept = values > 1e-10 * values.max()  # with fewer samples than features S has no more directions
    A = r @ (vectors * torch.where(kept, values, torch.inf).rsqrt()) @ vectors.T @ r
    value = (mean - mean_r).square().sum() + S.trace() + S_r.trace() - 2 * values.sqrt().sum()
    centred = features - mean
    unbiased = len(features) / (len(features) - 1)  # as the covariance
    return value.item(), 2 * (unbiased * (centred - centred @ A) + mean - mean_r)


@dataclass(frozen=True)
class Problem:
    """What is minimised: over the samples of `pairs`, seen by `see` (samples -> features [B, d], differentiable)."""

    parameters: Parameters
    denoiser: Callable
    pairs: Pairs
    see: Callable[[Tensor], Tensor]
    at_once: int

    def goal(self) -> tuple[Tensor, Tensor]:
        """The teacher's statistics."""
        return statistics(self._gather(self.features(some.x_0) for _, some in self._own()))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return self.see(x).cpu().double()

    def _own(self) -> Iterator[tuple[Tensor, Pairs]]:
        """This process's pairs, some at a time, with their places."""
        for index in batches(ranks.share(torch.arange(len(self.pairs))), self.at_once):
            yield index, self.pairs.take(index)

    def _gather(self, rows: Iterable[Tensor]) -> Tensor:
        return ranks.gather(torch.cat(list(rows)), ranks.share(torch.arange(len(self.pairs))), len(self.pairs))

    @torch.no_grad()
    def value(self, goal: tuple[Tensor, Tensor]) -> float:
        """The distance; infinite where the parameters are no solver."""
        if (table := self.parameters.table()) is None:
            return float("inf")
        ends = (sample(self.denoiser, table, some.x_T, some.condition) for _, some in self._own())
        return distance(self._gather(map(self.features, ends)), goal)[0]

    def value_and_slope(
        self, goal: tuple[Tensor, Tensor], number: int | None = None, below: float = float("inf")
    ) -> tuple[float, Tensor, Tensor]:
        """The distance, its slope [P], and with the probes' seed `number` the curvature [P, P] of the mean of
        |f - T f|^2, to Gauss and Newton, T held. Where the distance is not `below`, nothing but it is computed."""
        table, count = self.parameters.table(), len(self.parameters.get())
        slope, curvature = torch.zeros(count).double(), torch.zeros(count, count).double()
        if table is None:
            return float("inf"), slope, curvature
        by_parameters = self.parameters.jacobian()
        paths = [(*own, adjoint.run(self.denoiser, table, own[1].x_T, own[1].condition)) for own in self._own()]
        value, by_features = distance(self._gather(self.features(path.end) for _, _, path in paths), goal)
        if not value < below:
            return value, slope, curvature
        for index, some, path in paths:
            end = path.end.detach().requires_grad_()
            with torch.enable_grad():
                seen = self.see(end)
            outputs = [by_features[index]]
            if number is not None:
                outputs.append(2**0.5 * probe(number, index, seen.detach()))
            by_end = [torch.autograd.grad(seen, end, o.to(seen), retain_graph=True)[0] for o in outputs]
            by_entries = adjoint.derivatives(self.denoiser, table, path, torch.stack(by_end), some.condition)
            rows = by_entries.cpu().double() @ by_parameters
            slope += rows[0].sum(0)
            if number is not None:
                curvature += rows[1].T @ rows[1]
        total = ranks.add_up(torch.cat([slope, curvature.flatten()])) / len(self.pairs)
        return value, total[:count], total[count:].view(count, count)


def refine(
    student: Family,
    denoiser: Callable,
    training: Pairs,
    validation: Pairs,
    see: Callable[[Tensor], Tensor],
    *,
    at_once: int,
    steps: int,
    seed: int,
    scratch: Scratch,
    description: str = "refine",
) -> list[dict]:
    """Refine all parameters of `student` in place by BFGS, leave it at the best on `validation` (its own start, if
    nothing is better), and return the distances after every step.

    The first step goes by the curvature to Gauss and Newton (see `Problem.value_and_slope`), which is too large, as T
    would follow; after it the inverse is scaled to what was met, and updated (Nocedal and Wright 2006, sec. 6.1).

    The history has a row a step: epoch, train, validation, and the network's evaluations so far (a backward pass
    through one counts as one). Several processes divide the pairs. Progress is saved to `scratch` after every step.
    """
    parameters = Parameters(student, ("coefficients", "times"))
    problem = Problem(parameters, denoiser, training, see, at_once)
    judge = Problem(parameters, denoiser, validation, see, at_once)
    goals, nfe = (problem.goal(), judge.goal()), student.nfe
    if not (state := scratch.load("refine")):
        value, slope, curvature = problem.value_and_slope(goals[0], seed)
        damped = curvature + DAMPING * torch.diag(curvature.diag() + curvature.diag().mean())
        spent = len(training) * adjoint.cost(nfe, 2)
        first = {"epoch": 0, "train": value, "validation": judge.value(goals[1]), "evaluations": spent}
        state = {"slope": slope, "inverse": torch.linalg.inv(damped), "history": [first], "stuck": False}
        state |= {"now": parameters.get(), "best": parameters.get()}
        if ranks.first():
            scratch.save("refine", state)
    ranks.wait()  # all have read how far it was before one goes on

    done = len(state["history"]) - 1
    for step in (bar := ranks.progress(range(done, steps), description, steps, initial=done)):
        if state["stuck"]:
            break
        state = step_of_bfgs(problem, goals[0], state, first=step == 0)
        parameters.put(state["now"])
        row = state["history"][-1]
        row |= {"epoch": step + 1, "validation": judge.value(goals[1])}
        row["evaluations"] += len(validation) * nfe
        if row["validation"] < min(past["validation"] for past in state["history"][:-1]):
            state["best"] = state["now"]
        bar.set_postfix(validation=f"{row['validation']:.2e}")
        if ranks.first():
            scratch.save("refine", state)

    parameters.put(state["best"])
    return state["history"]


def step_of_bfgs(problem: Problem, goal: tuple[Tensor, Tensor], state: dict, first: bool) -> dict:
    """The state after a step; `stuck` where no length of it lowers the distance."""
    parameters, x, slope, inverse = problem.parameters, state["now"], state["slope"], state["inverse"]
    value, spent = state["history"][-1]["train"], state["history"][-1]["evaluations"]
    direction = -inverse @ slope
    for shortened in range(TRIES):
        parameters.put(x + direction / 4**shortened)
        new, new_slope, _ = problem.value_and_slope(goal, below=value)
        nfe = parameters.student.nfe
        spent += len(problem.pairs) * (adjoint.cost(nfe, 1) if new < value else nfe)
        if new < value:
            break
    else:
        return state | {"stuck": True, "history": [*state["history"], {"train": value, "evaluations": spent}]}
    s, y = parameters.get() - x, new_slope - slope
    if (curved := (s @ y).item()) > 0:
        if first:
            inverse = inverse * (curved / (y @ inverse @ y))
        keep = torch.eye(len(s)).double() - torch.outer(s, y) / curved
        inverse = keep @ inverse @ keep.T + torch.outer(s, s) / curved
    history = [*state["history"], {"train": new, "evaluations": spent}]
    return {**state, "now": parameters.get(), "slope": new_slope, "inverse": inverse, "history": history}
