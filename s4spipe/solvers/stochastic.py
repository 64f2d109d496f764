"""Solvers of the SDE: short functions from a noise schedule and times to coefficients, and algorithms on symbols.

With y = alpha x / sigma^2 and s = e^(2 lambda), the signal-to-noise ratio, the reverse SDE of all noise schedules is

    dy = D ds + dW

with W a Brownian motion in the clock s (divide the update of DDIM with eta = 1 by sigma^2 / alpha). So one path of W is
a sample's noise whatever the solver and its steps are, and a solver draws normalised increments of it.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from s4spipe.models.noise import NoiseSchedule
from s4spipe.solvers.classical import dpm_multistep, gauss_legendre, interpolated
from s4spipe.solvers.multistep import Multistep, fresh_weight, step_weights
from s4spipe.solvers.symbolic import Trace


def ddim_eta(noise: NoiseSchedule, t: Tensor, percent: int) -> Multistep:
    """DDIM with eta = percent / 100 (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    In x, with D = net(x, t[i]), one step adds noise of the standard deviation

        new = eta sigma[i+1] sqrt(1 - e^(-2 h)),    and    x = alpha[i+1] D + sqrt(sigma[i+1]^2 - new^2) eps + new z

    eta = 1 is the ancestral sampling of DDPM, the Euler ancestral method of k-diffusion and diffusers, and
    SDE-DPM-Solver++(1), on any noise schedule; eta = 0 is DDIM.
    """
    h, eta = noise.lambda_(t).diff(), percent / 100
    g = h if eta == 1 else -0.5 * torch.log1p(eta**2 * torch.expm1(-2 * h))
    return Multistep("data", torch.ones(len(h), 1, dtype=t.dtype), g=g)


def dpmpp_2m_sde(noise: NoiseSchedule, t: Tensor, order: int) -> Multistep:
    """SDE-DPM-Solver++(2M), and (1) as order 1 (Lu et al. 2022, arXiv 2211.01095, sec. 5): the coefficients of
    DPM-Solver++(2M) in a step of the SDE."""
    return Multistep("data", dpm_multistep(noise, t, order).b, g=noise.lambda_(t).diff())


def sa_solver(noise: NoiseSchedule, t: Tensor, order: int, tau: float = 1.0) -> Multistep:
    """SA-Solver in the data form with a constant tau (Xue et al. 2023, arXiv 2309.05019, Alg. 1, eq. 14 and 17).

    Predictor and corrector interpolate D in lambda through at most `order` points, of which the corrector's first is
    the new one, and integrate exactly against e^((1 + tau^2) lambda). Through two points, the authors' code and
    diffusers take h^2/2 for the integral of lambda - lambda_i, as UniPC's bh1 does; so does this.
    """
    lam = noise.lambda_(t)
    h, rate, n = lam.diff(), 1 + tau**2, len(lam) - 1
    nodes, weights = gauss_legendre(t.dtype)
    b = torch.zeros(n, order, dtype=t.dtype)
    corrector = torch.zeros(n - 1, order + 1, dtype=t.dtype)

    def row(i: int, known: Tensor) -> Tensor:
        """The weights of the values at `known` [p], newest first, in the step from lam[i]."""
        if len(known) == 2:
            r = (known - lam[i]) / h[i]  # one of them is 0, as lam[i] is known
            slope = rate * h[i] / (-2 * torch.expm1(-rate * h[i])) / (r[0] - r[1])
            return torch.stack([slope, -slope]) + (r == 0)
        x = lam[i] + h[i] * (nodes + 1) / 2
        return interpolated(known, x, weights * torch.exp(rate * (x - lam[i + 1])))

    for i in range(n):
        p = min(order, i + 1, n - i)
        b[i, :p] = row(i, lam[i - p + 1 : i + 1].flip(0))
        if i < n - 1:
            p = min(order, i + 2, n - i + 1)
            corrector[i, :p] = row(i, lam[i - p + 2 : i + 2].flip(0))
    return Multistep("data", b, corrector, g=tau**2 * h)


def dpmpp_sde(net: Trace, t: Tensor, evals_per_step: Sequence[int]) -> Tensor:
    """DPM-Solver++ SDE of k-diffusion (`sample_dpmpp_sde` with r = 1/2 and eta = 1), in which a step of two evaluations
    uses the prediction at its middle in lambda (DPM-Solver++(2S), Lu et al. 2022, arXiv 2211.01095, for the SDE).

    Both of its updates are along one path: their noises are W(middle) - W(start) and W(end) - W(start). A step with one
    evaluation is of first order.
    """
    noise, x = net.noise, net.x_T

    def step(d: Tensor, z: Tensor, s: Tensor, u: Tensor) -> Tensor:
        h = noise.lambda_(u) - noise.lambda_(s)
        keep, gain = step_weights(noise, s, u, "data", h)
        return keep * x + gain * d + fresh_weight(noise, u, h) * z

    for (s, u), evals in zip(pairwise(t), evals_per_step, strict=True):
        d = net.data(x, s)
        if evals == 1:
            x = step(d, net.fresh(s, u), s, u)
            continue
        half = (noise.lambda_(u) - noise.lambda_(s)) / 2
        middle = noise.inverse(noise.lambda_(s) + half)
        first = net.fresh(s, middle)
        d = net.data(step(d, first, s, middle), middle)
        second = net.fresh(middle, u)
        share = 1 / (1 + torch.exp(2 * half))  # of the first half in the clock of the whole step
        x = step(d, share.sqrt() * first + (1 - share).sqrt() * second, s, u)
    return x
