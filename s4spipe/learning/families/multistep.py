"""Linear multistep methods with learned coefficients, with and without a corrector."""

from typing import Any

import torch
from torch import Tensor

from s4spipe.learning.correction import Correction
from s4spipe.learning.families.base import Family, Times, register
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry
from s4spipe.solvers.multistep import Multistep


@register("lms", "order", "consistent", "shared")
@register("dss", order=None, consistent=True)
class LMS(Family):
    """A linear multistep method with separate coefficients for every step (S4S, Frankel et al. 2025, App. B).

    Learned: u [N, k], and with a corrector (see PC) another u [N-1, k+1]. With `order` N, `consistent` and learned
    times, started from `euler`, it is DSS (arXiv 2505.21114).

    Args:
        init: the classical solver to start from.
        noise: the noise schedule.
        t: [N+1] steps.
        order: history length k; None means the whole history.
        times: learned times; None for fixed times.
        consistent: whether every row of coefficients keeps its sum.
        shared: whether all steps share one row of corrections. The coefficients then do not depend on time, apart from
            the shorter history of the first steps.

    Raises:
        UserError: for an order below 1 or above N, and for an `init` that is no multistep method of this order.
    """

    corrects = False
    of_corrector: Correction | None

    def __init__(
        self,
        init: str,
        noise: NoiseSchedule,
        t: Tensor,
        order: int | None,
        times: Times | None = None,
        consistent: bool = False,
        shared: bool = False,
    ):
        rows = len(t) - 1
        super().__init__(init, noise, t, rows - registry.parse(init)[2])
        order = rows if order is None else order
        if not 1 <= order <= rows:
            raise UserError(f"order must be between 1 and the NFE ({rows}), got {order}")
        start = registry.coefficients(init, noise, t)
        if not isinstance(start, Multistep):
            raise UserError(f"init {init!r} is not a multistep method: use another one, or the family ss")
        if self.corrects != (start.corrector is not None):
            raise UserError(self._wrong_corrector(init))
        if start.b[:, order:].any():
            raise UserError(f"init {init!r} looks back further than order {order}: raise the order or change init")
        self.order, self.form = order, start.form
        _, gain = start.step_weights(noise, t)
        scale = (self.size(t)[1:] / gain.abs())[:, None]

        def correction(first: Tensor, scale: Tensor, width: int) -> Correction:
            padded = torch.zeros(len(first), width, dtype=torch.float64)
            kept = min(width, first.shape[1])
            padded[:, :kept] = first[:, :kept]
            # Row i of b weights evaluations i, i-1, .. 0; the corrector, applied at the end of step i, has one more.
            used = torch.arange(width) <= torch.arange(len(first))[:, None] + width - order
            return Correction(padded, scale, used.double(), consistent, shared)

        self.of_b = correction(start.b, scale, order)
        self.of_corrector = None
        if start.corrector is not None:
            self.of_corrector = correction(start.corrector, scale[:-1], order + 1)
        self.times = times

    @classmethod
    def from_start(cls, start: Tableau, times: Times | None, **options: Any) -> Family:
        return cls(start.name, start.noise, start.t, options.pop("order"), times, **options)

    @torch.no_grad()
    def randomise(self, seed: int) -> None:
        """Replace all initial coefficients by draws from N(0, 1)."""
        generator = torch.Generator().manual_seed(seed)
        for correction in self._corrections():
            start = correction.start
            start.copy_(correction.mask * torch.randn(start.shape, generator=generator, dtype=start.dtype))

    def _corrections(self) -> list[Correction]:
        return [self.of_b] if self.of_corrector is None else [self.of_b, self.of_corrector]

    def _wrong_corrector(self, init: str) -> str:
        known = registry.CLASSICAL
        possible = [n for n, s in known.items() if s.kind == "multistep" and n.startswith("unipc") == self.corrects]
        if self.corrects:
            problem = "has no corrector, which a predictor-corrector method needs"
        else:
            problem = "has a corrector, which a linear multistep method does not have"
        return f"init {init!r} {problem}: use one of {', '.join(sorted(possible))}"

    @property
    def b(self) -> Tensor:
        """The coefficients [N, k], newest evaluation first."""
        return self.of_b()

    @property
    def corrector(self) -> Tensor | None:
        """The corrector's coefficients [N-1, k+1]."""
        return None if self.of_corrector is None else self.of_corrector()

    @property
    def parameter_count(self) -> int:
        """m = sum_i min(i, k) for LMS: the entries that are used, less one per row if the rows keep their sums."""
        return sum(correction.count for correction in self._corrections())

    def metadata(self) -> dict[str, Any]:
        entries = {"b": self.b, "b_start": self.of_b.start}
        if self.of_corrector is not None:
            entries |= {"corrector": self.of_corrector(), "corrector_start": self.of_corrector.start}
        return {"form": self.form} | {name: value.tolist() for name, value in entries.items()}

    def forward(self, name: str = "lms", meta: dict | None = None) -> Tableau:
        t, t_c = self.steps()
        return Multistep(self.form, self.b, self.corrector).tableau(self.noise, t, name, meta, t_c, self.afs)


@register("pc", "order", "consistent", "shared")
class PC(LMS):
    """A predictor-corrector method with the same NFE (S4S, Frankel et al. 2025, App. B): UniPC with learned weights.

    The corrector re-computes x_i from x_{i-1}, using the past evaluations and the new one, which stays in the history.
    The last step has no corrector. Arguments and errors are those of LMS.
    """

    corrects = True
