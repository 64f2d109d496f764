"""Schedules: the N + 1 times t_0 = T > t_1 > ... > t_N of a solver with N steps; t_N is t_min, or above."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s4spipe.models.noise import NoiseSchedule, VPDiscrete, alphas_cumprod
from s4spipe.runtime.checks import MOST_NFE, is_number, whole
from s4spipe.runtime.errors import UserError, shown, unknown

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
    """Uniform in the time t of the noise schedule; for VE noise, t is sigma."""
    start, end = noise.T ** (1 / power), noise.t_min ** (1 / power)
    return (start + _ramp(n) * (end - start)) ** power


def time_quadratic(noise: NoiseSchedule, n: int) -> Tensor:
    """Uniform in sqrt(t) (DDIM, Song et al. 2021, App. D.2), with t as in `time_uniform`."""
    return time_uniform(noise, n, power=2.0)


def vp_uniform(noise: NoiseSchedule, n: int, power: float = 1.0) -> Tensor:
    """Uniform in the time of the linear VP process that spans the same noise levels (Zhou et al., arXiv 2312.00094).

    For VE noise, this is what time_uniform is for VP models. The process has (sigma/alpha)^2 =
    exp(beta_d t^2/2 + beta_min t) - 1 (Karras et al. 2022, App. B.2). Its values at t = 1 and at the end, t = 1e-3,
    give two linear equations for the betas.
    """
    eps = 1e-3
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (noise.T, noise.t_min))
    at_start, at_end = (torch.log1p(torch.exp(-2 * noise.lambda_(t))).item() for t in (start, end))
    beta_d = 2 * (at_start - at_end / eps) / (1 - eps)
    beta_min = at_start - beta_d / 2
    if beta_d + beta_min <= 0:  # sigma/alpha would fall towards t = 1
        raise UserError("no linear VP process spans these noise levels: use another schedule")
    t = (1 + _ramp(n) * (eps ** (1 / power) - 1)) ** power
    return noise.inverse(-0.5 * torch.expm1(beta_d * t**2 / 2 + beta_min * t).log())


def vp_quadratic(noise: NoiseSchedule, n: int) -> Tensor:
    """Uniform in the square root of the time of `vp_uniform`."""
    return vp_uniform(noise, n, power=2.0)


# What the lists of Align Your Steps (Sabour et al., arXiv 2404.14507), of 10 steps, have between their ends. Those of
# SD 1.5 and SDXL are timesteps of these models; that of SVD is sigma/alpha.
ALIGNED = {
    "ays_sd15": (850, 736, 645, 545, 455, 343, 233, 124, 24),
    "ays_sdxl": (845, 730, 587, 443, 310, 193, 116, 53, 13),
    "ays_svd": (54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


def aligned(noise: NoiseSchedule, n: int, name: str) -> Tensor:
    """The noise levels sigma/alpha of a list in `ALIGNED`, between T and t_min of this model.

    For n other than 10, log(sigma/alpha) is interpolated linearly over the index of the step, as the authors do.
    """
    inner = torch.tensor(ALIGNED[name], dtype=torch.float64)
    inner = -inner.log() if name == "ays_svd" else _stable_diffusion().lambda_(inner)
    start, end = (noise.lambda_(torch.tensor(t, dtype=torch.float64)) for t in (noise.T, noise.t_min))
    if not start < inner[0] <= inner[-1] < end:
        high, low, most, least = (math.exp(-lam) for lam in (inner[0], inner[-1], start, end))
        raise UserError(
            f"{name} has noise levels sigma/alpha of {high:.3g} to {low:.3g} between its ends, which must be within "
            f"those of the model, {most:.3g} to {least:.3g}: use another schedule"
        )
    lam = torch.cat([start[None], inner, end[None]])
    index = np.linspace(0, len(lam) - 1, n + 1)
    return noise.inverse(torch.from_numpy(np.interp(index, np.arange(len(lam)), lam.numpy())))


def _stable_diffusion() -> NoiseSchedule:
    """The noise schedule of SD 1.5 and SDXL."""
    return VPDiscrete(alphas_cumprod("scaled_linear", 0.00085, 0.012, 1000))


# By the number of steps: n, rho and m of `karras_cut`.
CUTS = {4: (8, 5.0, 5), 5: (8, 5.0, 6), 6: (8, 5.0, 6), 7: (12, 7.0, 9), 8: (12, 7.0, 9)}


def karras_cut(noise: NoiseSchedule, n: int) -> Tensor:
    """The grid of "Hyperparameters are all you need" (arXiv 2510.02390), for 4 to 8 steps; it ends above t_min.

    A grid like `edm`, of n points with the exponent rho, is cut at its point m (from 0). The times lie between T and
    the time of that point, uniform in t^(1/1.2), with t the time of the noise schedule; for VE noise, t is sigma.
    """
    if n not in CUTS:
        raise UserError(f"karras_cut is published for 4 to 8 steps, got {n}: use another schedule")
    points, rho, cut = CUTS[n]
    end, power = edm(noise, points - 1, rho)[cut], 1.2
    return (noise.T ** (1 / power) + _ramp(n) * (end ** (1 / power) - noise.T ** (1 / power))) ** power


# On any noise schedule, for any number of steps.
FORMULAS = {
    "time_uniform": time_uniform,
    "time_quadratic": time_quadratic,
    "edm": edm,
    "logsnr": logsnr,
    "vp_uniform": vp_uniform,
    "vp_quadratic": vp_quadratic,
}
# Made for some noise levels or numbers of steps, and refused elsewhere.
PUBLISHED: dict[str, Callable[[NoiseSchedule, int], Tensor]] = {
    **{name: partial(aligned, name=name) for name in ALIGNED},
    "karras_cut": karras_cut,
}
BUILT_IN: dict[str, Callable[[NoiseSchedule, int], Tensor]] = {**FORMULAS, **PUBLISHED}


def build(schedule: Schedule, noise: NoiseSchedule, n: int, named: Mapping[str, Any] | None = None) -> Tensor:
    """The times of a schedule.

    Args:
        schedule: a name in `BUILT_IN` or in `named`, or the times themselves.
        noise: the noise schedule.
        n: the number of steps.
        named: schedules by name, each as a JSON file holds it: the times, lists of times by their number of steps, or a
            solver, whose times are taken.

    Returns:
        n + 1 times, float64 on the CPU. The first is exactly T; the last is exactly t_min for a name in
            `BUILT_IN` other than karras_cut.

    Raises:
        UserError: for n < 1, an unknown name, a published schedule that is not for this noise schedule or this n, and
            times that are not n + 1 numbers falling strictly from T to t_min or above.
    """
    check_noise(noise)
    n = whole("nfe", n, most=2 * MOST_NFE)  # a first step without the network comes on top
    named = {} if named is None else named
    if not isinstance(named, Mapping):
        raise UserError(f"named schedules must be a mapping from names, got {shown(named)}")
    check(schedule, named)
    if isinstance(schedule, str) and schedule in BUILT_IN:
        with torch.device("cpu"):  # whatever torch's default device is
            t = BUILT_IN[schedule](noise, n)
        if schedule != "karras_cut":
            t[-1] = noise.t_min
    else:
        times, where = schedule, ""
        if isinstance(schedule, str):
            times, where = _of(named[schedule], schedule, n), f"{schedule}: "
        if len(times) != n + 1:
            raise UserError(f"{where}a schedule of {n} steps is {n + 1} times, got {len(times)}: {shown(list(times))}")
        t = torch.tensor(times, dtype=torch.float64, device="cpu")
        if not (math.isclose(t[0], noise.T, rel_tol=1e-6) and noise.t_min * (1 - 1e-6) <= t[-1]):
            raise UserError(
                f"{where}a schedule for this model must start at {noise.T:g} (pure noise) and end at "
                f"{noise.t_min:g} or above, got {shown(list(times))}"
            )
        t[-1] = max(t[-1].item(), noise.t_min)
    t[0] = noise.T
    return t


def check_noise(noise: object) -> None:
    """Raises UserError for what is no noise schedule."""
    if not isinstance(noise, NoiseSchedule):
        raise UserError(f"noise must be a noise schedule, such as denoiser.noise_schedule, got {shown(noise)}")


def check(schedule: object, known: Iterable[str] = ()) -> None:
    """Raises UserError for what cannot be a schedule, whatever the model and the number of steps: a name that is
    neither built in nor in `known`, or a list that is not strictly falling times."""
    if isinstance(schedule, str):
        known = {*BUILT_IN, *known}
        if schedule not in known:
            raise unknown("schedule", schedule, known)
    else:
        _check_times(schedule, "")


def check_file(content: Any, where: str) -> None:
    """Raises UserError if `content`, of a JSON file, is not a schedule; `where` names the file."""
    content = content["t"] if isinstance(content, dict) and "t" in content else content
    for times in content.values() if isinstance(content, dict) else [content]:
        _check_times(times, f"{where}: ")


def _of(content: Any, name: str, n: int) -> Sequence[float]:
    """The times of n steps, from the content of a schedule's file."""
    if isinstance(content, dict) and "t" in content:  # a solver
        content = content["t"]
    elif isinstance(content, dict):
        if str(n) not in content:
            raise UserError(f"{name}: has no schedule of {n} steps, only of {', '.join(content)}")
        content = content[str(n)]
    _check_times(content, f"{name}: ")
    return content


def _check_times(times: object, where: str) -> None:
    if not isinstance(times, Sequence) or not all(is_number(t) and math.isfinite(t) for t in times):
        raise UserError(f"{where}a schedule is a name or a list of times, got {shown(times)}")
    if len(times) < 2 or not all(a > b for a, b in pairwise(times)):
        raise UserError(f"{where}the times of a schedule are at least two and fall strictly, got {shown(list(times))}")


def _ramp(n: int) -> Tensor:
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)
