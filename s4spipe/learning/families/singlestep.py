"""Single-step methods with learned intermediate points and weights."""

from typing import Any

import torch
from torch import Tensor, nn

from s4spipe.learning.correction import Correction
from s4spipe.learning.families.base import Family, Times, register
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry
from s4spipe.solvers.multistep import Multistep
from s4spipe.solvers.singlestep import SingleStep


@register("ss", "consistent")
@register("epd", "consistent", parallel=True)
class SS(Family):
    """Single-step methods with learned intermediate points and weights (S4S, Frankel et al. 2025, App. B).

    It starts from DPM-Solver-2S or -3S, or with `parallel` it is the EPD family (arXiv 2507.14797), whose intermediate
    points are reached from the start of the step alone.

    Learned: a correction u [p, p], lower triangular, to the table of every step, and a shift for every intermediate
    point, which lies at the fraction sigmoid(logit(r) + shift) of its step in lambda. The EPD paper also rescales
    directions and network times by up to 5 %; here the free weights and points do both.

    Args:
        init: the classical solver to start from.
        noise: the noise schedule.
        t: [S+1] steps.
        nfe: evaluations.
        times: learned times; None for fixed times.
        consistent: whether every row of weights keeps its sum.
        parallel: whether intermediate points may depend on the start of the step only.

    Raises:
        UserError: for an `init` that is not of this form, and for an NFE that it cannot have.
    """

    r_start: Tensor
    common = ("of_r",)  # where the network is evaluated

    def __init__(
        self,
        init: str,
        noise: NoiseSchedule,
        t: Tensor,
        nfe: int,
        times: Times | None = None,
        consistent: bool = False,
        parallel: bool = False,
    ):
        super().__init__(init, noise, t, nfe)
        evals = registry.evals_per_step(init, nfe)
        if len(evals) != len(t) - 1:
            raise UserError(f"{init} with {nfe} evaluations takes {len(evals)} steps, got {len(t) - 1}")
        start = registry.coefficients(init, noise, t, evals)
        if not isinstance(start, SingleStep):
            raise UserError(f"init {init!r} is not an exponential single-step method: use dpm_2s, dpm_3s, dpmpp_2s or, "
                            "for the family epd, parallel_midpoints")  # fmt: skip
        self.form, self.evals_per_step = start.form, evals
        corrections = []
        for i, (r, a) in enumerate(zip(start.r, start.a, strict=True)):
            mask = torch.ones_like(a).tril()
            if parallel:
                mask[:-1, 1:] = 0
            if ((1 - mask) * a).any():
                raise UserError(f"init {init!r} has intermediate points that depend on one another: use "
                                "parallel_midpoints")  # fmt: skip
            lam = noise.lambda_(t[i : i + 2])
            ends = torch.cat([noise.inverse(lam[0] + r * (lam[1] - lam[0])), t[i + 1 : i + 2]])
            step = Multistep(self.form, a)
            gains = torch.stack([step.step_weights(noise, torch.stack([t[i], end]))[1][0] for end in ends])
            corrections.append(Correction(a, (self.size(ends) / gains.abs())[:, None], mask, consistent))
        self.of_a: Any = nn.ModuleList(corrections)
        self.register_buffer("r_start", torch.cat(list(start.r)))
        self.of_r = nn.ParameterList([torch.zeros_like(self.r_start)])  # after of_a among the parameters
        self.times = times

    @classmethod
    def from_start(cls, start: Tableau, times: Times | None, **options: Any) -> Family:
        return cls(start.name, start.noise, start.t, start.nfe, times, **options)

    def learned(self) -> SingleStep:
        """The method with the current parameters."""
        nodes = self.r_start + torch.sigmoid(self.r_start.logit() + self.of_r[0]) - torch.sigmoid(self.r_start.logit())
        r = list(nodes.split([evals - 1 for evals in self.evals_per_step]))
        return SingleStep(self.form, r, [correction() for correction in self.of_a])

    @property
    def parameter_count(self) -> int:
        return sum(correction.count for correction in self.of_a) + len(self.r_start)

    def metadata(self) -> dict[str, Any]:
        now = self.learned()
        return {"form": self.form, "r": [r.tolist() for r in now.r], "a": [a.tolist() for a in now.a]}

    def forward(self, name: str = "ss", meta: dict | None = None) -> Tableau:
        return self.learned().tableau(self.noise, self.steps()[0], name, meta, self.afs)
