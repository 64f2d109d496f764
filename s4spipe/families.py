"""Learned families: differentiable maps from parameters to a tableau, starting exactly at a classical solver."""

import torch
from torch import Tensor, nn

from s4spipe import classical
from s4spipe.errors import UserError
from s4spipe.multistep import Multistep
from s4spipe.noise import NoiseSchedule
from s4spipe.tableau import Tableau


class Times(nn.Module):
    """Learned steps and network times (S4S-Alt, Frankel et al. 2025, Sec. 3.2 and App. F).

    tau(i) = sum_{n>=i} softmax(xi)_n falls from 1; rescaled affinely onto [lambda(T), lambda(t_min)] it gives the
    steps, both ends fixed. The network sees a time t_c[i] of its own, with lambda(t_c[i]) = lambda(t_i) +
    clip(xi_c[i], -delta, delta), delta = a min_i (lambda_{i+1} - lambda_i), except at i = 0. Shifts are in lambda like
    the steps themselves: in t, the last steps of a VE schedule, all but equal in t, would leave no room for the first.
    xi_c is kept in units of delta, so that one learning rate fits all.

    Args:
        t: [N+1] steps to start from; they are matched exactly.
        decoupling: a; 0 keeps the network times equal to the steps.
    """

    def __init__(self, noise: NoiseSchedule, t: Tensor, decoupling: float = 0.5):
        super().__init__()
        self.noise, self.decoupling = noise, decoupling
        self.register_buffer("ends", t[[0, -1]])
        self.register_buffer("lam", noise.lambda_(self.ends))
        gaps = noise.lambda_(t).diff()
        # softmax(xi)_i is proportional to step i's share of lambda; the last entry is removed by the rescaling.
        self.xi = nn.Parameter(torch.cat([gaps, gaps.mean()[None]]).log())
        self.xi_c = nn.Parameter(torch.zeros(len(t) - 1, dtype=t.dtype))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The steps t [N+1] and the network times t_c [N]."""
        tau = torch.softmax(self.xi, 0).flip(0).cumsum(0).flip(0)
        share = (tau[0] - tau) / (tau[0] - tau[-1])  # 0 at T, 1 at t_min
        lam = self.lam[0] + share * (self.lam[1] - self.lam[0])
        inner = self.noise.inverse(lam[1:-1])
        t = torch.cat([self.ends[:1], inner, self.ends[1:]])
        delta = self.decoupling * lam.diff().min()
        shifted = lam[1:-1] + delta * self.xi_c[1:].clamp(-1, 1)
        return t, torch.cat([t[:1], self.noise.inverse(shifted)])


class LMS(nn.Module):
    """A linear multistep method with coefficients of its own for every step (S4S, Frankel et al. 2025, App. B).

    The learned parameter is u [N, k], with b[i, j] = start[i, j] + s_i u[i, j]. The scale s_i makes a unit of u move
    the state by one unit of its own size sqrt(alpha_i^2 + sigma_i^2) for an evaluation of unit variance; without it one
    learning rate would not fit the first and the last steps, whose weights differ by orders of magnitude.

    Args:
        init: the classical solver whose coefficients on `t` are the start.
        order: history length k.
        times: learned times, or None for the fixed steps `t`.

    Raises UserError for an order below 1 or above N, and for an init that a multistep method of this order cannot be.
    """

    def __init__(self, init: str, noise: NoiseSchedule, t: Tensor, order: int, times: Times | None = None):
        super().__init__()
        nfe = len(t) - 1
        if not 1 <= order <= nfe:
            raise UserError(f"order must be between 1 and the NFE ({nfe}), got {order}")
        start = classical.coefficients(init, noise, t)
        if start.corrector is not None:
            possible = [n for n in classical.CLASSICAL if classical.coefficients(n, noise, t).corrector is None]
            raise UserError(
                f"init {init!r} has a corrector, which a linear multistep method has not: use one of "
                f"{', '.join(sorted(possible))}"
            )
        if start.b[:, order:].any():
            raise UserError(f"init {init!r} looks back further than order {order}: raise the order or change init")
        self.noise, self.order, self.form, self.times = noise, order, start.form, times
        b = torch.zeros(nfe, order, dtype=torch.float64)
        width = min(order, start.b.shape[1])
        b[:, :width] = start.b[:, :width]
        alpha, sigma = noise.alpha(t), noise.sigma(t)
        _, gain = start.step_weights(noise, t)
        self.register_buffer("t", t)
        self.register_buffer("start", b)
        self.register_buffer("scale", ((alpha**2 + sigma**2).sqrt()[1:] / gain.abs())[:, None])
        self.u = nn.Parameter(torch.zeros_like(b))

    @property
    def b(self) -> Tensor:
        """The coefficients [N, k], newest evaluation first."""
        return self.start + self.scale * self.u

    @property
    def parameter_count(self) -> int:
        """m = sum_i min(i, k): the entries of b that reach an evaluation."""
        return sum(min(i, self.order) for i in range(1, len(self.t)))

    @torch.no_grad()
    def clip(self) -> None:
        """Bring parameters that left their range back to its border."""
        if self.times is not None:
            self.times.xi_c.clamp_(-1, 1)

    def forward(self, name: str = "lms", meta: dict | None = None) -> Tableau:
        t, t_c = (self.t, None) if self.times is None else self.times()
        return Multistep(self.form, self.b).tableau(self.noise, t, name, meta, t_c)
