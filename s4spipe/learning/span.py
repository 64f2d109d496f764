"""One fit of a solver for several numbers of evaluations (NFEs): weights that are smooth functions of a step's place
and of the NFE. ConsistencySolver (arXiv 2512.13592) has a small network of a step's two times; here the functions give
tableaux, which are as fast as any, and are learned by Gauss-Newton steps.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s4spipe.learning import gauss_newton, starts
from s4spipe.learning.distance import Distance
from s4spipe.learning.families import Family
from s4spipe.learning.families.base import check_start
from s4spipe.learning.gauss_newton import PATIENT, Parameters, Problem
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau

LAGS = 4  # evaluations that a step weights by numbers that are learned
PLACES = 4  # degree of the polynomials in the place of a step
COUNTS = 4  # degree of those in 1 / NFE
ENDS = 2  # steps at either end that have functions of 1 / NFE of their own
SAME = 1e-6  # of the largest singular value, below which functions are taken to depend on one another


class Span(nn.Module):
    """A solver for each of several NFEs, with common numbers.

    With e_j the weights of the j-th evaluation, and y_i the weights of a state, every step of a start is written as

        y_{i+1} = kappa_i y_i + sum_{k<=i} g_ik e_{i-k}

    Learned: functions of (i, N), which are added to kappa_i and, for k < `LAGS`, to g_ik, in units of the state's size;
    one that is added to lambda(t_c[i]), in units of a step of equal ones; and one of N alone, added to ln c_0. All are
    sums of products u^p v^q with u = i / (N - 1), from 0 to 1, and v, linear in 1 / N, from 0 to 1; and of v^q at each
    of the first and the last `ENDS` steps.

    Args:
        solvers: the starts, of different NFEs; the initial parameters reproduce them.

    Raises:
        UserError: for a start that no family can have, starts of one NFE or of different noise, and weights by
            frequency.
    """

    def __init__(self, solvers: Sequence[Tableau]):
        super().__init__()
        self.starts = {table.nfe: table for table in sorted(solvers, key=lambda table: table.nfe)}
        if len(self.starts) < len(solvers) or len(solvers) < 2:
            raise UserError(f"a span needs solvers of two or more NFEs, each different, got "
                            f"{', '.join(str(table.nfe) for table in solvers) or 'none'}")  # fmt: skip
        first = solvers[0]
        for table in solvers:
            check_start(table)
            if table.basis.shape or table.noise != first.noise:
                raise UserError(f"a span needs plain weights and one noise schedule, which {table.name} with "
                                f"{table.nfe} evaluations does not have")  # fmt: skip
        self.noise, self.nfes = first.noise, list(self.starts)
        by_row = {0: functions(self.nfes, 0)} | {k: functions(self.nfes, k) for k in range(1, LAGS)}
        self.functions = {"x": by_row[0], "kappa": by_row[0]} | {f"g{k}": by_row[k] for k in range(LAGS)}
        self.numbers = nn.ParameterDict(
            {name: torch.zeros(of[self.nfes[-1]].shape[1], dtype=torch.float64) for name, of in self.functions.items()}
        )
        self.numbers["c_0"] = torch.zeros(min(COUNTS + 1, len(self.nfes)), dtype=torch.float64)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, nfe: int, name: str = "span", meta: dict | None = None) -> Tableau:
        """The tableau with `nfe` evaluations."""
        start, noise = self.starts[nfe], self.noise
        added = {key: self.functions[key][nfe] @ self.numbers[key] for key in self.functions}
        low, high = noise.lambda_(torch.tensor([noise.T, noise.t_min], dtype=torch.float64))
        lam = noise.lambda_(start.t_c) + (high - low) / nfe * added["x"]
        t_c = noise.inverse(lam.clamp(low, high)).clamp(noise.t_min, noise.T)
        c_0 = start.c_0 * (powers(self.nfes, nfe, len(self.numbers["c_0"])) @ self.numbers["c_0"]).exp()

        before = torch.cat([start.c_0[None], start.c]), torch.cat([torch.zeros_like(start.W[:1]), start.W])
        kappa = before[0][1:] / before[0][:-1]
        g = before[1][1:] - kappa[:, None] * before[1][:-1]
        times = torch.cat([start.t_c, start.t[-1:]])
        size = (noise.alpha(times) ** 2 + noise.sigma(times) ** 2).sqrt()
        kappa = kappa + size[1:] / size[:-1] * added["kappa"]
        lags = sum(torch.diag_embed(added[f"g{k}"], offset=-k) for k in range(min(LAGS, nfe)))
        g = g + size[1:, None] * lags
        c, W = [c_0], [torch.zeros_like(start.W[0])]
        for i in range(nfe):
            c.append(kappa[i] * c[-1])
            W.append(kappa[i] * W[-1] + g[i])
        return Tableau(start.t, t_c, torch.stack(c[1:]), torch.stack(W[1:]), noise, name, meta or {}, c_0)


class Member(Family):
    """What a span is at one NFE, as a family that has the span's parameters."""

    def __init__(self, span: Span, nfe: int):
        nn.Module.__init__(self)
        start = span.starts[nfe]
        self.span, self.init, self.noise, self.nfe, self.afs = span, start.name, span.noise, nfe, False
        self.register_buffer("t", start.t)
        self.times = None

    @property
    def parameter_count(self) -> int:
        return self.span.parameter_count

    def clip(self) -> None:
        """Nothing: times are clipped where the tableau is made."""

    def forward(self, name: str = "span", meta: dict | None = None) -> Tableau:
        return self.span(self.nfe, name, meta)


def powers(nfes: Sequence[int], nfe: int, count: int) -> Tensor:
    """1, v, v^2, .. [count], with v linear in 1 / NFE, 0 for the most evaluations and 1 for the fewest."""
    v = (1 / nfe - 1 / max(nfes)) / (1 / min(nfes) - 1 / max(nfes))
    return torch.tensor([v**q for q in range(count)], dtype=torch.float64)


def functions(nfes: Sequence[int], first: int) -> dict[int, Tensor]:
    """The functions at the steps i = `first` .. N-1 for every N, each [N - first, F]. Over all of them, they are
    orthogonal and of mean square 1, so that one damping suits all numbers."""
    rows = []
    for nfe in nfes:
        v, last = powers(nfes, nfe, min(COUNTS + 1, len(nfes))), nfe - 1 - first
        for i in range(nfe - first):
            u = torch.tensor([(i / max(last, 1)) ** p for p in range(PLACES + 1)], dtype=torch.float64)
            ends = torch.tensor([float(i == s) for s in range(ENDS)] + [float(last - i == e) for e in range(ENDS)])
            rows.append(torch.outer(torch.cat([u, ends.double()]), v).flatten())
    values = torch.zeros(0, 0, dtype=torch.float64)
    if rows:
        left, sizes, _ = torch.linalg.svd(torch.stack(rows), full_matrices=False)
        values = left[:, sizes > SAME * sizes[0]] * len(rows) ** 0.5
    parts = values.split([max(nfe - first, 0) for nfe in nfes])
    return dict(zip(nfes, parts, strict=True))


@dataclass(frozen=True)
class Problems:
    """The geometric mean, over the NFEs of a span, of the mean distance to the teacher's samples: an `Objective` to
    which every NFE matters as much, whatever the size of its distances."""

    members: Sequence[Problem]

    @property
    def parameters(self) -> Parameters:
        return self.members[0].parameters

    @property
    def nfe(self) -> int:
        return sum(member.nfe for member in self.members)

    @property
    def many(self) -> bool:
        return True

    def loss(self, pairs: Pairs) -> float:
        return _geometric([member.loss(pairs) for member in self.members])

    def linearised(self, pairs: Pairs, number: int) -> tuple[float, Tensor, Tensor]:
        """As for one problem, but that the gradient and the curvature are those of the logarithm."""
        found = [member.linearised(pairs, number) for member in self.members]
        shares = [1 / (len(found) * max(loss, 1e-300)) for loss, _, _ in found]
        slopes = torch.stack([share * slope for share, (_, slope, _) in zip(shares, found, strict=True)])
        curved = torch.stack([share * curvature for share, (_, _, curvature) in zip(shares, found, strict=True)])
        return _geometric([loss for loss, _, _ in found]), slopes.sum(0), curved.sum(0)


def _geometric(losses: Sequence[float]) -> float:
    if not all(map(math.isfinite, losses)):
        return math.inf
    return math.exp(sum(math.log(max(loss, 1e-300)) for loss in losses) / len(losses))


def fit(span: Span, task: Task, distance: Distance, batch_size: int, steps: int) -> list[dict[str, Any]]:
    """Learn a span in place, by Gauss-Newton steps (see `gauss_newton.minimise`).

    Args:
        span: what to learn.
        task: the rest; its student is not used.
        distance: l2 or pseudo_huber.
        batch_size: pairs of a step, for every NFE the same.
        steps: at most.

    Returns:
        The history, whose losses are geometric means over the NFEs.
    """
    learns = (COEFFICIENTS, TIMES)
    members = [Problem(Parameters(Member(span, nfe), learns), task.denoiser, distance, task.micro_batch_size)
               for nfe in span.nfes]  # fmt: skip
    return gauss_newton.minimise(Problems(members), task, batch_size, steps, PATIENT)


def choose(candidates: Mapping[int, Sequence[Tableau]], loss: Callable[[Tableau], float]) -> list[Tableau]:
    """A start for every NFE, from what each may start from: all on the same schedule, and what they skip (see
    `starts.late`) linear in 1 / NFE, so that what is learned can be smooth. The mean logarithm of the loss is lowest,
    interpolated between the skips that were given.

    Args:
        candidates: by NFE, tableaux whose meta has `schedule`, and `skip` where the fraction that they skip is not 0.
        loss: of a tableau.

    Raises UserError if only late starts are among them.
    """
    by_schedule: dict[str, dict[int, dict[float, Tableau]]] = {}
    for nfe, tables in candidates.items():
        for table in tables:
            on = by_schedule.setdefault(str(table.meta["schedule"]), {}).setdefault(nfe, {})
            on[table.meta.get("skip", 0.0)] = table
    skips = sorted(on)
    if skips[0] != 0:
        raise UserError(f"a spanning solver needs 0.0 among the fractions to skip of its start, got {skips}")
    best: tuple[float, list[Tableau]] = (math.inf, [])
    for found in by_schedule.values():
        losses = {nfe: [math.log(max(loss(on[skip]), 1e-300)) for skip in skips] for nfe, on in found.items()}
        for few, more in itertools.product(skips, skips):
            skipped = {nfe: more + (few - more) * powers(list(found), nfe, 2)[1].item() for nfe in found}
            mean = sum(np.interp(skip, skips, losses[nfe]) for nfe, skip in skipped.items()) / len(found)
            if mean < best[0] or not best[1]:
                best = mean, [starts.late(found[nfe][0.0], skip) for nfe, skip in skipped.items()]
    return best[1]
