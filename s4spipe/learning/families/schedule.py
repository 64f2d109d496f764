"""Learned times alone."""

from typing import Any

from torch import Tensor

from s4spipe.learning.families.base import Family, Times, register
from s4spipe.models.noise import NoiseSchedule
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry
from s4spipe.solvers.singlestep import SingleStep


@register("fixed")
class Fixed(Family):
    """A classical solver whose coefficients follow the steps. With learned times, it is LD3 (arXiv 2405.15506).

    Args:
        init: the classical solver.
        noise: the noise schedule.
        t: [S+1] steps.
        nfe: evaluations.
        times: learned times; None for fixed times.

    Raises:
        UserError: for an NFE that does not go with `init` and S steps.
    """

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, nfe: int, times: Times | None = None):
        super().__init__(init, noise, t, nfe)
        self.times = times
        self()  # raises for an NFE and an init that do not go together

    @classmethod
    def from_start(cls, start: Tableau, times: Times | None, **options: Any) -> Family:
        return cls(start.name, start.noise, start.t, start.nfe, times)

    @property
    def parameter_count(self) -> int:
        """The number of times, which are all that is learned: N - 1 inner steps and as many network times."""
        return max(1, 2 * (len(self.t) - 2))

    def forward(self, name: str = "fixed", meta: dict | None = None) -> Tableau:
        t, t_c = self.steps()
        evals = registry.evals_per_step(self.init, self.nfe)
        coefficients = registry.coefficients(self.init, self.noise, t, evals)
        if isinstance(coefficients, SingleStep):
            return coefficients.tableau(self.noise, t, name, meta, self.afs)
        return coefficients.tableau(self.noise, t, name, meta, t_c, self.afs)
