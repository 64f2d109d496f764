"""Learned times and a learned scale of the states."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from s4spipe.learning.families.base import Family, Times, register
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry
from s4spipe.solvers.multistep import Multistep
from s4spipe.solvers.symbolic import Trace

CONTROLS = 32  # points of the curve, as in the paper


@register("bezier")
class Bezier(Family):
    """Euler or iPNDM along another path between the same ends (BezierFlow, arXiv 2512.13255).

    The solver runs on r x instead of x, which obeys d(r x)/dt = r (x d ln r/dt + dx/dt). ln r is a Bezier curve over
    lambda, of 32 control points, the first and the last of which are 0. With learned times, each pair of a path's
    alpha and sigma can be had, at the steps, as r alpha(t) and r sigma(t). The paper has a curve for each of the two,
    and both must be monotone.

    Solvers in the data or the noise form do not see r, so the start must be `euler` or `ipndm_v`, on any schedule. Of
    VE noise, `ipndm_v` is iPNDM.

    Learned: the inner control points.

    Args:
        init: the classical solver to start from.
        noise: the noise schedule.
        t: [N+1] steps.
        times: learned times; None for fixed times.

    Raises:
        UserError: for an `init` that does not have the velocity form.
    """

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, times: Times | None = None):
        super().__init__(init, noise, t, len(t) - 1 - registry.parse(init)[2])
        start = registry.coefficients(init, noise, t)
        if not isinstance(start, Multistep) or start.form != "velocity":
            raise UserError(f"init {init!r} does not see a scale of the states: use euler or ipndm_v")
        self.b = start.b
        self.curve = nn.Parameter(torch.zeros(CONTROLS - 2, dtype=torch.float64))
        self.times = times

    @classmethod
    def from_start(cls, start: Tableau, times: Times | None, **options: Any) -> Family:
        return cls(start.name, start.noise, start.t, times)

    @property
    def parameter_count(self) -> int:
        return len(self.curve)

    def metadata(self) -> dict[str, Any]:
        return {"curve": self.curve.tolist()}

    def log_scale(self, t: Tensor) -> Tensor:
        """ln r at times t [n]."""
        low, high = self.noise.lambda_(torch.stack([self.t[0], self.t[-1]]))
        w = ((self.noise.lambda_(t) - low) / (high - low))[:, None]
        degree = CONTROLS - 1
        k = torch.arange(1, degree, dtype=torch.float64)
        ways = torch.tensor([math.comb(degree, int(i)) for i in k], dtype=torch.float64)
        return (ways * w**k * (1 - w) ** (degree - k)) @ self.curve

    def forward(self, name: str = "bezier", meta: dict | None = None) -> Tableau:
        t, t_c = self.steps()
        net = Trace(self.noise, len(t_c), self.afs)
        log_r, slope = torch.func.jvp(self.log_scale, (t,), (torch.ones_like(t),))[:2]
        r = log_r.exp()
        x = net.x_T
        slopes: list[Tensor] = []  # newest first
        for i, h in enumerate(t.diff()):
            slopes.insert(0, r[i] * (slope[i] * x + net.velocity(x, t_c[i])))
            moved = h * sum(b * past for b, past in zip(self.b[i], slopes, strict=False))
            x = (r[i] * x + moved) / r[i + 1]
        return net.tableau(x, t, name, meta)
