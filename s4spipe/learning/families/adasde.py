"""Single-step solvers with a learned amount of fresh noise in every step."""

from typing import Any

import torch
from torch import Tensor, nn

from s4spipe.learning.families.base import Family, Times, register
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry
from s4spipe.solvers.multistep import step_weights
from s4spipe.solvers.symbolic import Trace

DIRECTION, TIME = 0.05, 0.2  # how far the direction and the time of a midpoint may be scaled
MOST = 0.2  # g: a step's noise level rises to (1 + g) times its own at most


@register("adasde")
class AdaSDE(Family):
    """DPM-Solver-2 whose steps begin with fresh noise (AdaSDE, arXiv 2510.23285).

    In y = x/alpha and rho = sigma/alpha, a step from rho to rho' is

        rho^ = (1 + g) rho,    y^ = y + sqrt(rho^^2 - rho^2) z
        rho_m = rho'^r rho^^(1-r),    y_m = y^ + (rho_m - rho^) eps(y^, rho^)
        y' = y^ + (rho' - rho^) (1 + a) eps(y_m, (1 + b) rho_m)

    Learned for each step: v, with g = min(v^2, 0.2), so that the weight of the noise is smooth in v; the shift of r in
    its logit; and a and b, within 5 % and 20 %. The first step, whose state is noise already, adds none. A last step of
    one evaluation is DDIM's.

    Args:
        init: `dpm_2s`, which the initial parameters give.
        noise: the noise schedule.
        t: [S+1] steps.
        nfe: evaluations.
        times: learned times; None for fixed times.

    Raises:
        UserError: for another `init`, and for an NFE that does not go with S steps.
    """

    noisy = True

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, nfe: int, times: Times | None = None):
        super().__init__(init, noise, t, nfe)
        if init != "dpm_2s":
            raise UserError(f"the family adasde starts from dpm_2s, not {init!r}")
        self.evals = registry.evals_per_step(init, nfe)
        if len(self.evals) != len(t) - 1:
            raise UserError(f"{init} with {nfe} evaluations takes {len(self.evals)} steps, got {len(t) - 1}")
        pairs = sum(evals == 2 for evals in self.evals)
        self.v = nn.Parameter(torch.zeros(len(t) - 2, dtype=torch.float64))
        self.midpoints = nn.Parameter(torch.zeros(pairs, 3, dtype=torch.float64))  # of r, a and b
        self.times = times

    @classmethod
    def from_start(cls, start: Tableau, times: Times | None, **options: Any) -> Family:
        return cls(start.name, start.noise, start.t, start.nfe, times)

    @property
    def parameter_count(self) -> int:
        return self.v.numel() + self.midpoints.numel()

    @torch.no_grad()
    def clip(self) -> None:
        super().clip()
        self.v.clamp_(-(MOST**0.5), MOST**0.5)

    def metadata(self) -> dict[str, Any]:
        return {"g": self.v.square().clamp(max=MOST).tolist(), "midpoints": self.midpoints.tolist()}

    def forward(self, name: str = "adasde", meta: dict | None = None) -> Tableau:
        noise, (t, _) = self.noise, self.steps()
        net, lam, midpoints = Trace(noise, self.nfe), noise.lambda_(t), iter(self.midpoints)
        x = net.x_T

        def time(lam: Tensor) -> Tensor:
            return noise.inverse(lam).clamp(noise.t_min, noise.T)

        def step(x: Tensor, s: Tensor, u: Tensor, eps: Tensor) -> Tensor:
            keep, gain = step_weights(noise, s, u, "noise")
            return keep * x + gain * eps

        for i, evals in enumerate(self.evals):
            s, u = t[i], t[i + 1]
            if i > 0:
                v = self.v[i - 1].clamp(-(MOST**0.5), MOST**0.5)
                s = s + noise.inverse(lam[i] - torch.log1p(v**2)) - noise.inverse(lam[i])  # exactly t[i] for v = 0
                spread = noise.sigma(t[i]) / noise.alpha(t[i]) * v * (2 + v**2).sqrt()
                x = noise.alpha(s) * (x / noise.alpha(t[i]) + spread * net.independent())
            first = net.eps(x, s)
            if evals == 1:
                x = step(x, s, u, first)
                continue
            shift, a, b = next(midpoints)
            middle = noise.lambda_(s) + torch.sigmoid(shift) * (lam[i + 1] - noise.lambda_(s))
            at = time(middle - torch.log1p(TIME * torch.tanh(b)))
            y = step(x, s, time(middle), first) / noise.alpha(time(middle))  # the same y at another level
            x = step(x, s, u, (1 + DIRECTION * torch.tanh(a)) * net.eps(noise.alpha(at) * y, at))
        return net.tableau(x, t, name, meta)
