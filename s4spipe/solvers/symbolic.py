"""From the algorithm of a solver to its tableau, by running it once on symbols."""

from collections.abc import Callable

import torch
from torch import Tensor

from s4spipe.models.noise import NoiseSchedule
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN, Basis


class Trace:
    """Stands in for the network while a solver runs on symbols, and records the evaluations.

    A state is the vector [2 capacity + 2, *K] of its weights on (x_T, d_0, d_1, .., z_0, z_1, .., 1), with fresh noises
    z. A solver starts from `x_T`, and may only add states, the constant `one` among them, and multiply them by weights
    [*K] or numbers. `tableau` then returns what it did.

    Args:
        noise: the noise schedule.
        capacity: at least the number of evaluations that the solver makes, and of noises that it draws.
        afs: make the first evaluation without the network (analytic first step, Dockhorn et al. 2022, arXiv 2210.05475,
            sec. 3.3). It uses the denoiser of data N(m, 1), D = m + alpha (x - alpha m) / (alpha^2 + sigma^2), since
            x_T is almost indistinguishable from pure noise. m is 0, or what is given instead of True: the mean of the
            data, which at that noise a network would say, too.
        basis: what a weight multiplies; K is its shape.
    """

    def __init__(self, noise: NoiseSchedule, capacity: int, afs: bool | Tensor = False, basis: Basis = PLAIN):
        self.noise, self.capacity, self.basis = noise, capacity, basis
        self.afs, self.mean = afs is not False, afs if isinstance(afs, Tensor) else None
        unit = torch.eye(2 * capacity + 2, dtype=torch.float64)
        self.unit = unit.view(*unit.shape, *[1] * len(basis.shape)).expand(*unit.shape, *basis.shape)
        self.x_T, self.one = self.unit[0], self.unit[-1]
        self.points: list[Tensor] = []
        self.times: list[Tensor] = []
        self.t_z: list[Tensor] = []
        self.drawn = 0

    def data(self, y: Tensor, t: Tensor) -> Tensor:
        """The x0 prediction at the state y and time t."""
        if self.afs:
            self.afs = False
            alpha, sigma = self.noise.alpha(t), self.noise.sigma(t)
            share = alpha / (alpha**2 + sigma**2)
            if self.mean is None:
                return share * y
            return share * y + (1 - share * alpha) * (self.mean if self.basis.shape else 1) * self.one
        self.points.append(y)
        self.times.append(t)
        return self.unit[len(self.points)]

    def eps(self, y: Tensor, t: Tensor) -> Tensor:
        """The noise prediction (y - alpha D) / sigma at the state y and time t."""
        return (y - self.noise.alpha(t) * self.data(y, t)) / self.noise.sigma(t)

    def velocity(self, y: Tensor, t: Tensor) -> Tensor:
        """dy/dt = alpha'(t) D + sigma'(t) eps of the probability flow, in the time of the noise schedule."""
        one = torch.ones_like(t)
        alpha, d_alpha = torch.func.jvp(self.noise.alpha, (t,), (one,))[:2]
        sigma, d_sigma = torch.func.jvp(self.noise.sigma, (t,), (one,))[:2]
        data = self.data(y, t)
        return d_alpha * data + d_sigma * (y - alpha * data) / sigma

    def fresh(self, s: Tensor, u: Tensor) -> Tensor:
        """A fresh standard normal noise: the increment of the solver's Brownian motion between the times s and u, over
        its standard deviation (see `Tableau`). The next one must begin at u."""
        self.t_z = self.t_z or [s]
        if s != self.t_z[-1]:
            raise ValueError(f"the last noise ended at {self.t_z[-1]:g}, and this one begins at {s:g}")
        self.t_z.append(u)
        return self.unit[self.capacity + len(self.t_z) - 1]

    def independent(self) -> Tensor:
        """A fresh standard normal noise that is no increment of a path. No solver may add noises of both kinds."""
        self.drawn += 1
        return self.unit[self.capacity + self.drawn]

    def predict(self, form: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The prediction that a form of `Multistep` uses."""
        return {"data": self.data, "noise": self.eps, "velocity": self.velocity}[form]

    def tableau(self, end: Tensor, t: Tensor, name: str, meta: dict | None = None) -> Tableau:
        """The tableau of the solver whose last state is `end`, with the steps t [S+1]. It has a constant if one was
        added."""
        nfe = len(self.points)
        states = torch.stack([*self.points, end])
        t_c, c, W, beta = torch.stack(self.times), states[1:, 0], states[1:, 1 : nfe + 1], states[:, -1]
        m = torch.ones(1, dtype=beta.dtype) if self.mean is None or self.basis.shape else self.mean
        extras = {"beta": beta, "m": m} if beta.detach().any() else {}
        if self.t_z:
            V = states[:, self.capacity + 1 : self.capacity + len(self.t_z)]
            extras |= {"V": V.clone(), "t_z": torch.stack(self.t_z)}
        elif self.drawn:
            V = states[:, self.capacity + 1 : self.capacity + self.drawn + 1]
            extras |= {"V": V.clone()} if V.requires_grad or V.any() else {}
        return Tableau(t, t_c, c, W, self.noise, name, meta or {}, states[0, 0], self.basis, **extras)
