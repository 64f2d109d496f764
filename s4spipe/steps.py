"""Discretisations: N + 1 times t_0 = T > t_1 > ... > t_N = t_min for a solver with N steps."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from s4spipe.errors import UserError, unknown
from s4spipe.files import read_json
from s4spipe.noise import NoiseSchedule

FOLDER = Path("schedules")
SEARCHED = ("dmn", "gits")  # made by the stage `search`
Schedule = str | Sequence[float]


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


def build(schedule: Schedule, noise: NoiseSchedule, n: int) -> Tensor:
    """The N + 1 times of a schedule, float64, both ends exact.

    `schedule` is the name of a formula of `STEPS`; or the times themselves; or the name of a file schedules/<name>.json
    that holds either the times, or such lists by their number of steps, or a solver, whose steps are taken.

    Raises UserError for N < 1, an unknown name, and times that are not N + 1 numbers falling strictly from T to t_min
    or a little above (in the noise schedule's time).
    """
    if n < 1:
        raise UserError(f"nfe must be at least 1, got {n}")
    check(schedule)
    if isinstance(schedule, str) and schedule in STEPS:
        t = STEPS[schedule](noise, n)
        t[-1] = noise.t_min
    else:
        times, where = (_read(schedule, n), f"{_file(schedule)}: ") if isinstance(schedule, str) else (schedule, "")
        if len(times) != n + 1:
            raise UserError(f"{where}a schedule of {n} steps is {n + 1} times, got {len(times)}: {list(times)}")
        t = torch.tensor(times, dtype=torch.float64)
        if not (math.isclose(t[0], noise.T, rel_tol=1e-6) and noise.t_min * (1 - 1e-6) <= t[-1]):
            raise UserError(
                f"{where}a schedule for this model starts at {noise.T:g}, where its noise is all there is, and ends at "
                f"{noise.t_min:g} or above, got {list(times)}"
            )
        t[-1] = max(t[-1].item(), noise.t_min)
    t[0] = noise.T
    return t


def check(schedule: object, also: Sequence[str] = ()) -> None:
    """Raises UserError for what cannot be a schedule of any model and any number of steps, and is no name in `also`."""
    if isinstance(schedule, str):
        known = {*STEPS, *SEARCHED, *also, *(path.stem for path in FOLDER.glob("*.json"))}
        if schedule not in known:
            raise unknown("schedule", schedule, known)
    else:
        _check_times(schedule, "")


def _file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def _read(name: str, n: int) -> list[float]:
    path, times = _file(name), read_json(_file(name))
    if isinstance(times, dict) and "t" in times:  # a solver
        times = times["t"]
    elif isinstance(times, dict):
        if str(n) not in times:
            raise UserError(f"{path}: has no schedule of {n} steps, only of {', '.join(times)}")
        times = times[str(n)]
    _check_times(times, f"{path}: ")
    return times


def _check_times(times: object, where: str) -> None:
    if not isinstance(times, Sequence) or not all(type(t) in (int, float) and math.isfinite(t) for t in times):
        raise UserError(f"{where}a schedule is a name or a list of times, got {times!r}")
    if len(times) < 2 or not all(a > b for a, b in pairwise(times)):
        raise UserError(f"{where}the times of a schedule are at least two and fall strictly, got {list(times)}")


def _ramp(n: int) -> Tensor:
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)
