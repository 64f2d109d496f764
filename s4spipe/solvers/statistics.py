"""The statistics of a model that DPM-Solver-v3 needs (Zheng et al. 2023, arXiv 2310.13268, sec. 3.1), from its samples.

Samples are noised at every lambda of a grid, each with the same noise everywhere, so that the estimates are smooth
functions of lambda. With y = x / alpha, D the x0 prediction, E the mean over samples, and ' the derivative by lambda
along the probability flow, dx/dlambda = (log alpha)' x - alpha (y - D):

    l = E[diag d(sigma eps)/dx] = 1 - alpha E[v * (dD/dx) v]        v: random signs
    f = (1 - l) y - D,  f' = -l' y - (1 - l) (y - D) - D'           f is N of `dpm_v3`
    s = Cov(f, f') / Var(f),  b = E f' - s E f                      for every number of a sample

Both derivatives of D are exact directional derivatives, in forward mode.
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.noise import precision
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_tensors
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.tableau.basis import MOST_AXES, transformed
from s4spipe.solvers.dpm_v3 import Statistics

SMALLEST = 1e-6  # a deviation of f below this fraction of the samples' size is rounding: f is constant, and s is 0
CHECKED = 16  # samples on which derivatives are compared with differences
STEP = 0.05  # of the finite difference that tells whether derivatives are right, in units of sigma
AGREE = 0.3  # how far they may be from it, as a fraction; half precision makes differences inexact


@dataclass(frozen=True)
class Data:
    """What statistics are estimated from.

    Attributes:
        x_0: samples [K, ...] of the model.
        condition: theirs, [K]; None for a model without.
        z: [2, K, ...] standard normal noises: those that the samples are noised with, and those whose signs are v.
    """

    x_0: Tensor
    condition: Tensor | None
    z: Tensor

    def batch(self, index: slice, denoiser: Denoiser) -> "Data":
        """Some of the samples, on the model's device and in the dtype of states there."""
        device, dtype = denoiser.device, precision(denoiser.device)
        condition = None if self.condition is None else self.condition[index].to(device)
        return Data(self.x_0[index].to(device, dtype), condition, self.z[:, index].to(device, dtype))


def estimate(
    denoiser: Denoiser, data: Data, grid: int, batch_size: int, scratch: Scratch | None = None
) -> Statistics | None:
    """The statistics of a model.

    Several processes share the points of the grid between them; the main process then returns the statistics, the
    others None. They need a `scratch` that all can see. The result depends neither on the batch size nor on the number
    of processes, but for rounding.

    Args:
        denoiser: the model.
        data: its samples, and the noises to use.
        grid: points of lambda, at equal distances from one end of the model's range to the other; at least 3.
        batch_size: samples in memory at a time.
        scratch: where finished points are kept; None keeps none.

    Raises:
        UserError: for a network without forward-mode derivatives, or with wrong ones.
    """
    noise, count = denoiser.noise_schedule, len(data.x_0)
    ends = noise.lambda_(torch.tensor([noise.T, noise.t_min], dtype=torch.float64, device="cpu"))
    lam = torch.linspace(ends[0].item(), ends[1].item(), grid, dtype=torch.float64, device="cpu")
    with warnings.catch_warnings():  # in the first of its derivatives, torch uses what it has deprecated itself
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
        check(denoiser, data.batch(slice(CHECKED), denoiser), lam[grid // 2])

    def means(point: int) -> Tensor:
        def make() -> dict[str, Tensor]:
            batches = (data.batch(slice(start, start + batch_size), denoiser) for start in range(0, count, batch_size))
            parts = [sums(denoiser, batch, lam[point]).cpu().double() for batch in batches]
            return {"means": torch.stack(parts).sum(0) / count}

        return (make() if scratch is None else scratch.once(f"means-{point}", make))["means"]

    own = distributed.progress(distributed.shard(range(grid)), "statistics", unit="lambda")
    found = {point: means(point) for point in own}
    distributed.barrier()
    if not distributed.is_main():
        return None
    rest = (point for point in range(grid) if point not in found)  # the other processes' share is there to be read
    found |= {point: means(point) for point in rest}
    return of_means(lam, torch.stack([found[point] for point in range(grid)]))


def sums(denoiser: Denoiser, batch: Data, lam: Tensor) -> Tensor:
    """[9, ...]: the sums over a batch of alpha v * (dD/dx) v, y, D, D', y^2, y D, D^2, y D', D D' at one lambda."""
    noise, one = denoiser.noise_schedule, torch.ones_like(lam)
    t, dt = torch.func.jvp(noise.inverse, (lam,), (one,))[:2]
    alpha, dalpha = torch.func.jvp(lambda at: noise.alpha(noise.inverse(at)), (lam,), (one,))[:2]
    t, dt, alpha, dalpha, sigma = (value.to(batch.x_0) for value in (t, dt, alpha, dalpha, noise.sigma(t)))
    z, v = batch.z
    v = torch.where(v < 0, -1.0, 1.0).to(v)
    x = alpha * batch.x_0 + sigma * z
    y = x / alpha
    D, Jv = derivative(denoiser, x, t, batch.condition, (v, torch.zeros_like(t)))
    _, dD = derivative(denoiser, x, t, batch.condition, (dalpha / alpha * x - alpha * (y - D), dt))
    return torch.stack([part.sum(0) for part in (alpha * v * Jv, y, D, dD, y * y, y * D, D * D, y * dD, D * dD)])


def of_means(lam: Tensor, means: Tensor) -> Statistics:
    """The statistics from the means [G, 9, ...] of what `sums` sums, at the grid lam [G]."""
    rest, y, D, dD, yy, yD, DD, y_dD, D_dD = means.unbind(1)  # rest = 1 - l
    slope = -torch.gradient(rest, spacing=(lam,), dim=0, edge_order=2)[0]  # l'
    f, df = rest * y - D, -slope * y - rest * (y - D) - dD
    variance = rest**2 * yy - 2 * rest * yD + DD - f**2
    y_df, D_df = -slope * yy - rest * (yy - yD) - y_dD, -slope * yD - rest * (yD - DD) - D_dD
    covariance = rest * y_df - D_df - f * df
    s = torch.where(variance > SMALLEST**2 * DD.mean(), covariance / variance, 0.0)
    return Statistics(lam, 1 - rest, s, df - s * f)


def derivative(
    denoiser: Denoiser, x: Tensor, t: Tensor, condition: Tensor | None, along: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """D(x, t, condition), and its derivative along a direction of (x, t).

    Raises UserError if the network has no derivatives in forward mode.
    """
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have none
            D, dD = torch.func.jvp(lambda x, t: denoiser(x, t, condition), (x, t), along)[:2]
    except (NotImplementedError, RuntimeError) as error:
        if not isinstance(error, NotImplementedError) and not re.search("forward|jvp|functorch|vmap", str(error)):
            raise
        reason = str(error).strip().splitlines()[0][:150]
        raise UserError(f"statistics need derivatives of the network in forward mode (torch.func.jvp), which it does "
                        f"not have ({reason})") from None  # fmt: skip
    return D.to(x), dD.to(x)


def check(denoiser: Denoiser, batch: Data, lam: Tensor) -> None:
    """Raises UserError if the network's derivatives are not those of its outputs, as where a part of it is detached."""
    noise = denoiser.noise_schedule
    t, dt = (part.to(batch.x_0) for part in torch.func.jvp(noise.inverse, (lam,), (torch.ones_like(lam),))[:2])
    x, along = noise.alpha(t) * batch.x_0 + noise.sigma(t) * batch.z[0], noise.sigma(t) * batch.z[1]
    _, own = derivative(denoiser, x, t, batch.condition, (along, dt))
    with torch.no_grad():
        ahead, behind = (denoiser(x + h * along, t + h * dt, batch.condition).to(x) for h in (STEP, -STEP))
    difference = (ahead - behind) / (2 * STEP)
    if not (own - difference).norm() <= AGREE * difference.norm():
        raise UserError("statistics need derivatives of the network, and those that it has are not those of its "
                        "outputs; a part of it is probably computed without torch, or detached")  # fmt: skip


def mean_and_power(x_0: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [...] of samples [K, ...], and the mean square of their deviation from it at every frequency [...].

    Frequencies are those of the DCT-II over the axes after the first of a sample, three at most.
    """
    x, axes = x_0.double(), min(x_0.ndim - 2, MOST_AXES)
    mean = x.mean(0)
    return mean, transformed(x - mean, axes).square().mean(0)


def read(path: str | Path) -> Statistics:
    """The statistics in a file that the stage `statistics` wrote. Raises UserError for any other file."""
    names = ("lam", "l", "s", "b", "mean")
    found, _ = read_tensors(path, *names)
    return Statistics(*(found[name] for name in names))
