"""What a search minimises: a number for a whole solver, lower being better. It needs no gradient.

Every objective is computed by one process from all of its pairs, since a search divides the solvers that it tries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s4spipe.features.base import frechet
from s4spipe.learning.distance import DistanceFn as PairFn
from s4spipe.learning.pairs import Pairs, batches
from s4spipe.learning.refinement import GUARD, DistanceFn, FeatureFn, RewardFn
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau

INFINITE = float("inf")
SEED = 77_000_003  # of the first pair's fresh noises


@dataclass(frozen=True)
class Samples:
    """The samples that a solver makes from the noises of `pairs`.

    Attributes:
        denoiser: the model, (x, t, condition) -> x0 prediction.
        pairs: the teacher's.
        size: how many are in memory at a time.
    """

    denoiser: Any
    pairs: Pairs
    size: int

    @torch.no_grad()
    def seen(self, table: Tableau | None, look: Callable[[Tensor, Pairs], Sequence[Tensor]]) -> list[Tensor]:
        """What `look` says of samples x and of the pairs that they belong to, each [n, ...], float64 on the CPU.
        Without a solver, of the teacher's own."""
        found = []
        for index in batches(torch.arange(len(self.pairs)), self.size):
            some = self.pairs.take(index)
            x = some.x_0
            if table is not None:
                z = fresh(index, some.x_T, table.draws)
                x = sample(self.denoiser, table, some.x_T, some.condition, z=z, check=False)
            found.append([part.cpu().double() for part in look(x, some)])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]


def fresh(index: Tensor, like: Tensor, count: int) -> Tensor | tuple[()]:
    """The fresh noises [count, n, ...] of a solver that adds some, for pairs at `index` [n], in the shape of `like`:
    functions of the pair's place alone, so the same for all solvers. Fewer are the first of more."""
    if not count:
        return ()
    seeded = [torch.Generator().manual_seed(SEED + place) for place in index.tolist()]
    rows = [torch.stack([torch.randn(like.shape[1:], generator=draw) for _ in range(count)]) for draw in seeded]
    return torch.stack(rows, 1).to(like)


@dataclass(frozen=True)
class Imitation:
    """The mean distance between a solver's samples and the teacher's from the same noises."""

    samples: Samples
    distance: PairFn

    def __call__(self, table: Tableau) -> float:
        (each,) = self.samples.seen(table, lambda x, some: [self.distance(x, some.x_0)])
        return each.mean().item()


class Frechet:
    """The Fréchet distance between the features of a solver's samples and those of the teacher's, summed over several
    networks, each in units of its distance `at_start`.

    Args:
        samples: whose, and from which noises.
        feature_fn: the networks.
        start: the solver whose distance is 1 for each network.
        distance: of features [n, d] from the teacher's.

    Raises UserError if that distance is not finite and above 0.
    """

    def __init__(self, samples: Samples, feature_fn: FeatureFn, start: Tableau, distance: DistanceFn = frechet.between):
        self.samples, self.distance, self.look = samples, distance, lambda x, some: feature_fn(x)
        self.goals = samples.seen(None, self.look)
        self.at_start = self.distances(start)
        if not all(0 < value < INFINITE for value in self.at_start):
            raise UserError(f"the Fréchet distance of the start from the teacher must be finite and above 0, got "
                            f"{max(self.at_start):g}: choose another start, or another network")  # fmt: skip

    def distances(self, table: Tableau) -> list[float]:
        """The distance by each network; infinite for a solver that diverges."""
        return self.of(self.samples.seen(table, self.look))

    def of(self, parts: Sequence[Tensor]) -> list[float]:
        """The distance by each network, from the features of the samples."""
        if not all(part.isfinite().all() for part in parts):
            return [INFINITE] * len(parts)
        return [*map(self.distance, parts, self.goals)]

    def ratios(self, parts: Sequence[Tensor]) -> list[float]:
        """The same, in units of that of the start."""
        return [own / unit for own, unit in zip(self.of(parts), self.at_start, strict=True)]

    def __call__(self, table: Tableau) -> float:
        return sum(self.ratios(self.samples.seen(table, self.look)))


class Rewarded:
    """The negative of the mean reward of a solver's samples, and infinite where a network sees more than `GUARD` times
    the distance at the start: rewards are won by ruin if nothing stops it.

    Args:
        reward: samples [B, ...] and their conditions -> rewards [B]; higher is better.
        guard: tells the distances, of the same noises. Those of few samples are too large by what does not rise with
            the distance, so they should be extrapolated.
    """

    def __init__(self, reward: RewardFn, guard: Frechet):
        self.reward, self.guard = reward, guard

    def __call__(self, table: Tableau) -> float:
        guard = self.guard
        *parts, rewards = guard.samples.seen(
            table, lambda x, some: [*guard.look(x, some), self.reward(x, some.condition)]
        )
        return -rewards.mean().item() if max(guard.ratios(parts)) <= GUARD else INFINITE
