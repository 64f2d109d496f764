"""Families in which every step weights all earlier states and evaluations."""

from typing import Any

import torch
from torch import Tensor, nn

from s4spipe.learning.correction import Correction
from s4spipe.learning.families.base import Family, Times, check_start, register
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry
from s4spipe.solvers.multistep import Multistep
from s4spipe.solvers.symbolic import Trace


@register("gs")
class GS(Family):
    """Weights on all past states and evaluations, added to a classical solver's step (arXiv 2510.17699, eq. 9).

        x_{i+1} = [the classical step] + sum_{j<=i} A[i, j] x_j + sum_{j<=i} C[i, j] d_j

    Learned: A [N, N] and C [N, N], both lower triangular, so m = N (N + 1). The paper starts from DPM-Solver++(3M).

    Args:
        init: the classical solver to start from.
        noise: the noise schedule.
        t: [N+1] steps.
        times: learned times; None for fixed times.

    Raises:
        UserError: for an `init` that is not a multistep method in the data form without a corrector.
    """

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, times: Times | None = None):
        rows = len(t) - 1
        super().__init__(init, noise, t, rows - registry.parse(init)[2])
        self._base(t)
        size, mask = self.size(t), torch.ones(rows, rows, dtype=torch.float64).tril()
        zero = torch.zeros(rows, rows, dtype=torch.float64)
        self.of_A = Correction(zero, size[1:, None] / size[:-1], mask)
        self.of_C = Correction(zero, size[1:, None], mask)
        self.times = times

    @classmethod
    def from_start(cls, start: Tableau, times: Times | None, **options: Any) -> Family:
        return cls(start.name, start.noise, start.t, times)

    def _base(self, t: Tensor) -> Multistep:
        base = registry.coefficients(self.init, self.noise, t)
        if not isinstance(base, Multistep) or base.form != "data" or base.corrector is not None:
            raise UserError(
                f"init {self.init!r} is not a multistep method in the data form without a corrector: use dpmpp_3m"
            )
        return base

    @property
    def parameter_count(self) -> int:
        return self.of_A.count + self.of_C.count

    def metadata(self) -> dict[str, Any]:
        return {"A": self.of_A().tolist(), "C": self.of_C().tolist()}

    def forward(self, name: str = "gs", meta: dict | None = None) -> Tableau:
        t, t_c = self.steps()
        base = self._base(t)
        keep, gain = base.step_weights(self.noise, t)
        A, C = self.of_A(), self.of_C()
        net = Trace(self.noise, len(A), self.afs)
        x, d = [net.x_T], []
        for i in range(len(A)):
            d.append(net.data(x[i], t_c[i]))
            step = keep[i] * x[i] + gain[i] * sum(w * e for w, e in zip(base.b[i], reversed(d), strict=False))
            x.append(step + sum(A[i, j] * x[j] + C[i, j] * d[j] for j in range(i + 1)))
        return net.tableau(x[-1], t, name, meta)


@register("bns")
class BNS(Family):
    """Every c and W of the tableau (bespoke non-stationary solvers, Shaul et al. 2024, arXiv 2403.01329).

    Learned: a correction to (c, W) [N, N+1]. It starts from any classical solver. With learned times, only the times
    shown to the network move: c and W do not depend on the schedule.

    Args:
        init: the classical solver to start from.
        noise: the noise schedule.
        t: [S+1] steps.
        nfe: evaluations; by default, as many as S steps can have.
        times: learned times; None for fixed times.

    Raises:
        UserError: for learned times with an `init` whose network times are not those of its steps.
    """

    t_c: Tensor
    c_0: Tensor

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, nfe: int | None = None, times: Times | None = None):
        start = registry.build(init, noise, t, nfe=nfe)
        super().__init__(init, noise, t, start.nfe)
        if times is not None and start.nfe != len(t) - 1:
            raise UserError(f"init {init!r} has network times that are not those of its steps: they cannot be learned")
        self.register_buffer("t_c", start.t_c)
        self.register_buffer("c_0", start.c_0)
        self.of_table = _of_table(self, start)
        self.times = times

    @classmethod
    def from_start(cls, start: Tableau, times: Times | None, **options: Any) -> Family:
        return cls(start.name, start.noise, start.t, start.nfe, times)

    @property
    def parameter_count(self) -> int:
        return self.of_table.count

    def forward(self, name: str = "bns", meta: dict | None = None) -> Tableau:
        t, t_c = self.steps() if self.times is not None else (self.t, self.t_c)
        table = self.of_table()
        return Tableau(t, t_c, table[:, 0], table[:, 1:], self.noise, name, meta or {}, self.c_0)


@register("free", "late")
class Free(Family):
    """Every number of the tableau: c_0, t_c, c and W, all at once.

    Learned: x [N], the shifts of the network times in lambda; corrections to (c, W) [N, N+1] and to ln c_0; and to
    beta [N+1], if the start adds a constant to its states (`s4spipe.learning.starts.with_constant`). No time is
    fixed: c_0 and t_c[0] choose the noise level of the first evaluation. At T, where all other solvers make it, the
    network can only answer with the mean of the data. The steps t stay those of the start, only as a record of it.

    Every weight has a correction for each of its numbers, if the tableau has weights by frequency.

    Args:
        start: any tableau; the initial parameters reproduce it.
        late: whether c_0 is learned, and beta[0]. Otherwise they stay those of the start, such as 1 and 0.
    """

    by_band = constant = True
    lam: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, start: Tableau, late: bool = True):
        nn.Module.__init__(self)
        check_start(start, self.constant)
        noise, n = start.noise, start.nfe
        self.init, self.noise, self.nfe, self.afs, self.start = start.name, noise, n, False, start
        self.register_buffer("t", start.t)
        lam = noise.lambda_(torch.stack([start.t_c, *[torch.full_like(start.t_c, t) for t in (noise.T, noise.t_min)]]))
        for name, value in zip(("lam", "low", "high"), lam, strict=True):
            self.register_buffer(name, value)
        self.x = nn.Parameter(torch.zeros(n, dtype=torch.float64))
        self.of_table = _of_table(self, start)
        one = torch.ones(1, 1, *start.basis.shape, dtype=torch.float64)
        self.late, self.of_ln_c_0 = late, Correction(0 * one, one, late * one)
        self.times = None
        self.of_beta = None
        if start.beta is not None:
            mask = torch.ones_like(start.beta)
            mask[0] = late
            size = self.size(torch.cat([start.t_c, start.t[-1:]]))
            self.of_beta = Correction(start.beta, size.view(-1, *[1] * len(start.basis.shape)), mask)

    @classmethod
    def from_start(cls, start: Tableau, times: Times | None, late: bool = True, **options: Any) -> Family:
        return cls(start, late)

    @property
    def parameter_count(self) -> int:
        of_beta = 0 if self.of_beta is None else self.of_beta.count
        return self.of_table.count + self.nfe + self.of_ln_c_0.count + of_beta

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the network times to the range of the noise schedule."""
        self.x.clamp_(self.low - self.lam, self.high - self.lam)

    def forward(self, name: str = "free", meta: dict | None = None) -> Tableau:
        start, table = self.start, self.of_table()
        t_c = self.noise.inverse(self.lam + self.x).clamp(self.noise.t_min, self.noise.T)
        c_0 = start.c_0 * self.of_ln_c_0()[0, 0].exp()
        beta = None if self.of_beta is None else self.of_beta()
        return Tableau(start.t, t_c, table[:, 0], table[:, 1:], self.noise, name, meta or {}, c_0, start.basis, beta,
                       start.m)  # fmt: skip


def _of_table(family: Family, start: Tableau) -> Correction:
    """The correction to (c, W). The states of a single-step solver also lie between its steps, so each row is scaled by
    the size of a state at its network time."""
    size = family.size(torch.cat([start.t_c[1:], start.t[-1:]]))[:, None]
    first = torch.cat([start.c[:, None], start.W], 1)
    scale = torch.cat([size / start.noise.sigma_T, size.expand(-1, start.nfe)], 1)
    mask = torch.cat([torch.ones(start.nfe, 1), torch.ones(start.nfe, start.nfe).tril()], 1).double()
    each = (..., *[None] * (first.ndim - 2))  # for every number of a weight
    return Correction(first, scale[each], mask[each].expand_as(first))
