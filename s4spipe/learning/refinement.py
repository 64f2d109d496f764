"""Refining a solver by the distribution of its samples instead of by pairs. This minimises the Fréchet distance between
the features of its samples and those of the teacher's samples from the same noises.

A solver with few evaluations cannot map every noise to the teacher's image, and minimising a mean distance blurs the
images that it cannot reach. The distribution of its images can still match the teacher's. Because both sides start from
the same noises, most of the finite-sample error cancels. The features must not come from the network that measures FID
afterwards.

What one network does not see may get worse while what it sees gets better. So the features of several networks stand
side by side, each scaled so that its own distance is 1 at the start, and no step is kept after which any of them sees
more distance than at the start.

A reward, a number for each image that shall rise, may stand beside the distance. Rewards are won by ruin if nothing
stops it: the same networks do, each within `GUARD` of its distance at the start.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s4spipe.features.base import frechet
from s4spipe.learning import adjoint
from s4spipe.learning.gauss_newton import Parameters, probe
from s4spipe.learning.pairs import Pairs, batches
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample

FeatureFn = Callable[[Tensor], Sequence[Tensor]]  # samples [B, ...] -> features [B, d] of each network
RewardFn = Callable[[Tensor, Tensor | None], Tensor]  # samples [B, ...], their conditions [B] -> rewards [B]
DistanceFn = Callable[[Tensor, Tensor], float]  # of features [n, d] of samples from those of the teacher's

SHORTENINGS = 5  # step lengths to try, each a quarter of the previous one, until the distance falls
DAMPING = 1e-3  # of the curvature in the first step
EXACT = 1e-9  # a network's distance, of the variance of its features, below which the samples are the teacher's
LEAST = 1e-3  # what is told apart of the validation pairs' distance, of about 2 at the start
GUARD = 1.1  # with a reward, a network's distance may rise to so many times that at the start
ROUNDING = 1e-15  # a variance of features, of their mean square, below which they are all the same


@dataclass(frozen=True)
class Values:
    """What the objective is made of: the distance by all features, by those of each network, and the mean reward."""

    distance: float
    distances: Sequence[float]
    reward: float | None = None


@dataclass(frozen=True)
class Problem:
    """The objective: the Fréchet distance between the samples from the noises of `pairs` and the teacher's, less the
    mean of `reward`.

    `feature_fn` and `reward` must be differentiable. `networks` has for each how many features it has, and what they
    are multiplied by. `reward` gets what the reward function says as `rate` (r - `base`).
    """

    parameters: Parameters
    denoiser: Callable
    pairs: Pairs
    feature_fn: FeatureFn
    micro_batch_size: int
    networks: Sequence[tuple[int, float]] = ()
    reward: RewardFn | None = None
    rate: float = 1.0
    base: float = 0.0

    @torch.no_grad()
    def scaled(self) -> "Problem":
        """The same problem, each network's features scaled so that their own distance is 1, and the reward so that it
        is 0 at the start, and its standard deviation over the teacher's samples `rate`.

        Raises UserError for a network whose features are the same for all samples, and for such a reward.
        """
        widths = [part.shape[1] for part in self.feature_fn(self.pairs.x_0[:1])]
        plain = replace(self, networks=[(width, 1.0) for width in widths], rate=1.0)
        goal, networks = plain.goal(), []
        start = plain.values(goal)
        rate, base = self.rate, 0.0
        if self.reward:
            goal, rewards = goal[:, :-1], goal[:, -1]
            if start.reward is None or not rewards.isfinite().all():
                raise UserError("refine.reward: it is not finite for the samples of the teacher or of the solver to "
                                "refine, or those are not: use another one, or none")  # fmt: skip
            if rewards.var().item() <= ROUNDING * rewards.square().mean().item():
                raise UserError("refine.reward: it is the same for all of the teacher's samples, so nothing can be "
                                "learned from it: use another one, or none")  # fmt: skip
            rate, base = rate / rewards.std().item(), start.reward
        sizes = [part.mean(0).square().sum().item() for part in goal.split(widths, 1)]
        variances = [part.var(0).sum().item() for part in goal.split(widths, 1)]
        for width, distance, size, variance in zip(widths, start.distances, sizes, variances, strict=True):
            if variance <= ROUNDING * size:
                raise blind()
            networks.append((width, max(distance, EXACT * variance) ** -0.5))
        return replace(self, networks=networks, rate=rate, base=base)

    def goal(self) -> Tensor:
        """What is seen of the teacher's samples, [n, d] or [n, d+1]."""
        return self._gather(self.features(some.x_0, some.condition) for _, some in self._own())

    def seen(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The features [B, d] of all networks, scaled; with a reward, [B, d+1], the last one being that."""
        parts = [scale * part for (_, scale), part in zip(self.networks, self.feature_fn(x), strict=True)]
        if self.reward:
            parts.append(self.rate * (self.reward(x, condition)[:, None] - self.base))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def features(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.seen(x, condition).cpu().double()

    def _own(self) -> Iterator[tuple[Tensor, Pairs]]:
        """The pairs of this process, in micro-batches, with their indices."""
        for index in batches(distributed.shard(torch.arange(len(self.pairs))), self.micro_batch_size):
            yield index, self.pairs.take(index)

    def _gather(self, rows: Iterable[Tensor]) -> Tensor:
        return distributed.gather(
            torch.cat(list(rows)), distributed.shard(torch.arange(len(self.pairs))), len(self.pairs)
        )

    def parts(self, seen: Tensor) -> tuple[Tensor, Tensor | None]:
        """The features [n, d] in what was seen, and the rewards [n], if there are any."""
        return (seen[:, :-1], seen[:, -1]) if self.reward else (seen, None)

    @torch.no_grad()
    def values(self, goal: Tensor, distance: DistanceFn = frechet.between) -> Values:
        """What the objective is made of; infinite if the parameters define no valid solver, or one that diverges."""
        diverged = Values(float("inf"), [float("inf")] * len(self.networks))
        if (table := self.parameters.table()) is None:
            return diverged
        ends = (
            (sample(self.denoiser, table, some.x_T, some.condition, check=False), some.condition)
            for _, some in self._own()
        )
        seen = self._gather(self.features(*end) for end in ends)
        if not seen.isfinite().all():
            return diverged
        (features, rewards), (goal, _) = self.parts(seen), self.parts(goal)
        widths = [width for width, _ in self.networks]
        each = [*map(distance, features.split(widths, 1), goal.split(widths, 1))]
        reward = None if rewards is None else rewards.mean().item() / self.rate + self.base
        return Values(distance(features, goal), each, reward)

    def value_and_slope(
        self, goal: Tensor, number: int | None = None, below: float = float("inf")
    ) -> tuple[float, Tensor, Tensor]:
        """The objective, its gradient [P] and, if a seed of the probes (`number`) is given, the Gauss-Newton curvature
        [P, P] of the mean of |f - T f|^2 with T held fixed. If the objective is not less than `below`, only that is
        computed."""
        table, count = self.parameters.table(), len(self.parameters.get())
        slope, curvature = torch.zeros(count).double(), torch.zeros(count, count).double()
        if table is None:
            return float("inf"), slope, curvature
        by_parameters = self.parameters.jacobian()
        paths = [(*own, adjoint.run(self.denoiser, table, own[1].x_T, own[1].condition)) for own in self._own()]
        seen = self._gather(self.features(path.end, some.condition) for _, some, path in paths)
        features, rewards = self.parts(seen)
        value, by_seen = frechet.distance_and_slope(features, frechet.statistics(self.parts(goal)[0]))
        if rewards is not None:
            value -= rewards.mean().item()
            by_seen = torch.cat([by_seen, -torch.ones_like(rewards)[:, None]], 1)
        if not value < below:
            return value, slope, curvature
        for index, some, path in paths:
            end = path.end.detach().requires_grad_()
            with torch.enable_grad():
                own = self.seen(end, some.condition)
            outputs = [by_seen[index]]
            if number is not None:
                drawn = 2**0.5 * probe(number, index, self.parts(own.detach())[0])
                outputs.append(torch.cat([drawn, torch.zeros_like(own[:, drawn.shape[1] :])], 1))
            by_end = [torch.autograd.grad(own, end, o.to(own), retain_graph=True)[0] for o in outputs]
            by_entries = adjoint.derivatives(self.denoiser, table, path, torch.stack(by_end), some.condition)
            rows = by_entries.cpu().double() @ by_parameters
            slope += rows[0].sum(0)
            if number is not None:
                curvature += rows[1].T @ rows[1]
        total = distributed.all_reduce(torch.cat([slope, curvature.flatten()])) / len(self.pairs)
        return value, total[:count], total[count:].view(count, count)


def refine(
    task: Task, feature_fn: FeatureFn, steps: int, reward: RewardFn | None = None, weight: float = 1.0
) -> list[dict]:
    """Refine all parameters of the student in place by BFGS, and leave it at those that are best on the validation
    pairs (its start, if nothing is better). Of these, only such count after which no network sees more distance there
    than at the start.

    The first step uses the Gauss-Newton curvature (see `Problem.value_and_slope`). It is too large, because T would
    change too. So the inverse is then scaled to the curvature that was observed, and updated (Nocedal and Wright 2006,
    sec. 6.1). Several processes divide the pairs. Progress is saved in the task's scratch after every step.

    With a reward, the objective is the distance less `weight` times the rise of the mean reward, in units of its
    standard deviation over the teacher's samples. The distance at the start is 1 for each network. A network may then
    see `GUARD` times as much distance as at the start.

    Args:
        task: the student, what it learns from, and where progress is saved.
        feature_fn: the networks.
        steps: of BFGS, at most.
        reward: higher is better. It must be differentiable by the samples.
        weight: of the reward.

    Returns:
        One row per step: epoch, train, validation, the network evaluations so far (a backward pass counts as one), and
        the mean reward of the validation samples, if there is a reward.

    Raises:
        UserError: for a network whose features, or a reward whose values, are the same for all samples.
    """
    training, validation, nfe = task.training, task.validation, task.student.nfe
    parameters = Parameters(task.student, (COEFFICIENTS, TIMES))
    problem = Problem(parameters, task.denoiser, training, feature_fn, task.micro_batch_size, (), reward, weight)
    state = task.scratch.load("refine")
    problem = replace(problem, **state["scales"]) if state else problem.scaled()
    judge = replace(problem, pairs=validation)
    goals = problem.goal(), judge.goal()
    if not state:
        value, slope, curvature = problem.value_and_slope(goals[0], task.seed)
        damped = curvature + DAMPING * torch.diag(curvature.diag() + curvature.diag().mean())
        if not damped.any():
            raise blind()
        validation_row, limits = watched(judge, goals[1])
        spent = len(training) * (adjoint.evaluations(nfe, 2) + nfe)
        first = {"epoch": 0, "train": value, **validation_row, "evaluations": spent}
        state = {"slope": slope, "inverse": torch.linalg.inv(damped), "history": [first], "stuck": False}
        state |= {"now": parameters.get(), "best": parameters.get(), "least": first["validation"], "limits": limits}
        state["scales"] = {"networks": problem.networks, "rate": problem.rate, "base": problem.base}
        if distributed.is_main():
            task.scratch.save("refine", state)
    distributed.barrier()  # all must have read the progress before one continues

    done = len(state["history"]) - 1
    for step in (bar := distributed.progress(range(done, steps), task.description, steps, initial=done)):
        if state["stuck"]:
            break
        state = step_of_bfgs(problem, goals[0], state, first=step == 0)
        parameters.put(state["now"])
        row, (seen, distances) = state["history"][-1], watched(judge, goals[1])
        row |= {"epoch": step + 1, **seen}
        row["evaluations"] += len(validation) * nfe
        allowed = (GUARD if reward else 1.0) * torch.tensor(state["limits"])
        if row["validation"] < state["least"] and (torch.tensor(distances) <= allowed).all():
            state |= {"best": state["now"], "least": row["validation"]}
        bar.set_postfix(validation=f"{row['validation']:.2e}")
        if distributed.is_main():
            task.scratch.save("refine", state)

    parameters.put(state["best"])
    return state["history"]


def watched(judge: Problem, goal: Tensor) -> tuple[dict[str, float], Sequence[float]]:
    """The objective on the validation pairs, with the reward, and the distance that each network sees. The pairs are
    few, and what their number adds to a distance rises while the distance falls: so distances are extrapolated to
    infinitely many."""
    found = judge.values(goal, frechet.extrapolated)
    value = max(found.distance, LEAST)
    if found.reward is None:
        return {"validation": value}, found.distances
    return {"validation": value - judge.rate * (found.reward - judge.base), "reward": found.reward}, found.distances


def steps_at(steps: int, nfe: int) -> int:
    """How many steps a refinement makes whose `steps` in params.yaml are these: so many at 6 evaluations and more, and
    at fewer, which leave more to refine, as many as take the same time."""
    return max(steps, 6 * steps // nfe)


def blind() -> UserError:
    return UserError("perceptual.network: its features are the same whatever the solver, so it cannot refine: use "
                     "another network, or leave refined empty")  # fmt: skip


def step_of_bfgs(problem: Problem, goal: Tensor, state: dict, first: bool) -> dict:
    """The state after a step; `stuck` if no step length lowers the distance."""
    parameters, x, slope, inverse = problem.parameters, state["now"], state["slope"], state["inverse"]
    value, spent = state["history"][-1]["train"], state["history"][-1]["evaluations"]
    direction = -inverse @ slope
    for shortened in range(SHORTENINGS):
        parameters.put(x + direction / 4**shortened)
        new, new_slope, _ = problem.value_and_slope(goal, below=value)
        nfe = parameters.student.nfe
        spent += len(problem.pairs) * (adjoint.evaluations(nfe, 1) if new < value else nfe)
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
