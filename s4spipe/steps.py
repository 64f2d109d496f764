"""Discretisations: N + 1 times t_0 = T > t_1 > ... > t_N = t_min for a solver with N steps."""

import torch
from torch import Tensor

from s4spipe.errors import UserError, unknown
from s4spipe.noise import NoiseSchedule


def logsnr(noise: NoiseSchedule, n: int) -> Tensor:
    """Uniform in lambda (DPM-Solver, Lu et al. 2022, sec. 3.4)."""
    start, end = (noise.lambda_(torch.tensor(t, dtype=torch.float64)) for t in (noise.T, noise.t_min))
    return noise.inverse(start + _ramp(n) * (end - start))


def edm(noise: NoiseSchedule, n: int, rho: float = 7.0) -> Tensor:
    """Uniform in (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. 5)."""
    start, end = (torch.exp(-noise.lambda_(torch.tensor(t, dtype=torch.float64)) / rho) for t in (noise.T, noise.t_min))
    return noise.inverse(-rho * (start + _ramp(n) * (end - start)).log())


def time_uniform(noise: NoiseSchedule, n: int, power: float = 1.0) -> Tensor:
    """Uniform in the noise schedule's time t; for VE noise t is sigma."""
    start, end = noise.T ** (1 / power), noise.t_min ** (1 / power)
    return (start + _ramp(n) * (end - start)) ** power


def time_quadratic(noise: NoiseSchedule, n: int) -> Tensor:
    """Uniform in sqrt(t) (DDIM, Song et al. 2021, App. D.2), t as in `time_uniform`."""
    return time_uniform(noise, n, power=2.0)


def vp_uniform(noise: NoiseSchedule, n: int, power: float = 1.0) -> Tensor:
    """Uniform in the time of the linear VP process that spans the same noise levels (Zhou et al., arXiv 2312.00094).

    On VE noise this is what time_uniform is on VP models. That process has (sigma/alpha)^2 =
    exp(beta_d t^2/2 + beta_min t) - 1 (Karras et al. 2022, App. B.2); its values at t = 1 and at the end, t = 1e-3, are
    linear equations for the betas.
    """
    eps = 1e-3
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (noise.T, noise.t_min))
    at_start, at_end = (torch.log1p(torch.exp(-2 * noise.lambda_(t))).item() for t in (start, end))
    beta_d = 2 * (at_start - at_end / eps) / (1 - eps)
    beta_min = at_start - beta_d / 2
    if beta_d * eps + beta_min <= 0:  # sigma/alpha would not rise everywhere
        raise UserError("no linear VP process spans these noise levels: use another schedule")
    t = (1 + _ramp(n) * (eps ** (1 / power) - 1)) ** power
    return noise.inverse(-0.5 * torch.expm1(beta_d * t**2 / 2 + beta_min * t).log())


def vp_quadratic(noise: NoiseSchedule, n: int) -> Tensor:
    """Uniform in the square root of the time of `vp_uniform`."""
    return vp_uniform(noise, n, power=2.0)


STEPS = {
    "time_uniform": time_uniform,
    "time_quadratic": time_quadratic,
    "edm": edm,
    "logsnr": logsnr,
    "vp_uniform": vp_uniform,
    "vp_quadratic": vp_quadratic,
}


def build(name: str, noise: NoiseSchedule, nfe: int) -> Tensor:
    """The named schedule's N + 1 times, float64, both ends exact. Raises UserError for an unknown name or N < 1."""
    if name not in STEPS:
        raise unknown("schedule", name, STEPS)
    if nfe < 1:
        raise UserError(f"nfe must be at least 1, got {nfe}")
    t = STEPS[name](noise, nfe)
    t[0], t[-1] = noise.T, noise.t_min
    return t


def _ramp(n: int) -> Tensor:
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)
