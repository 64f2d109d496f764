"""The likelihood of data under a model: the density of what the probability-flow ODE makes of its noises."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s4spipe.runtime.checks import is_number, whole
from s4spipe.runtime.errors import UserError, shown
from s4spipe.sampling import rk45
from s4spipe.sampling.loop import check_batch, not_finite
from s4spipe.sampling.tableau.adaptive import Adaptive


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a batch.

    Attributes:
        log_p: the natural logarithm of the density at each sample [B]; with probes, their mean.
        error: its standard error [B]: 0 for the exact trace, NaN for a single probe.
        evaluations: of the network, for each sample [B]; the derivatives by x come on top.
        dim: the numbers in a sample.
    """

    log_p: Tensor
    error: Tensor
    evaluations: Tensor
    dim: int

    def bits_per_dim(self, width: float) -> Tensor:
        """Bits per dimension [B] of data that were quantised to levels `width` apart and made continuous by uniform
        noise of that width: -log2(p) / dim - log2(width).

        The volume around a level is width^dim, so this bounds from above what the levels themselves take, on average
        over the noise (Theis et al. 2015, arXiv 1511.01844, sec. 3.1). For 8 bits scaled to [-1, 1] as
        x = (q + u) / 128 - 1, with u from [0, 1), `width` is 1 / 128, which adds 7 bits. Scaled to [0, 1], it is
        1 / 256, which adds 8. A width of 1 gives the bits of the density itself.

        Raises:
            UserError: for a width that is no positive number.
        """
        if not is_number(width) or not 0 < width < math.inf:
            raise UserError(f"the width between two levels of the data must be a positive number, got {shown(width)}")
        return -self.log_p / (self.dim * math.log(2)) - math.log2(width)


@torch.inference_mode(False)
@torch.no_grad()
def log_likelihood(
    denoiser: Callable[[Tensor, Tensor, Any], Tensor],
    solver: Adaptive,
    x: Tensor,
    condition: Any = None,
    *,
    probes: int | None = None,
    seed: int = 0,
    first: int = 0,
) -> Likelihood:
    """The density at x of the samples that the ODE makes of noises from N(0, sigma_T^2), which stop at t_min.

    The ODE is solved from t_min to T, and with it the integral of its divergence (Song et al. 2021, arXiv 2011.13456,
    App. D.2, after Chen et al. 2018, arXiv 1806.07366): log p(x) = log p_T(x(T)) plus that integral, from t_min to T.
    Steps are those of `rk45.solve`, with an error control of the divergence too; no sample depends on its batch.

    The data stand for the state at t_min: no noise is added, as in that paper.

    Args:
        denoiser: as for `rk45.solve`; its output must be differentiable by x.
        solver: the tolerance, and the most evaluations of a sample.
        x: the data [B, ...].
        condition: passed to the denoiser; a tensor has one row per sample.
        probes: how many vectors v of random signs estimate the trace of the Jacobian J as the mean of v^T J v
            (Hutchinson), each with a backward pass in every evaluation; None computes it exactly, with as many backward
            passes as a sample has numbers.
        seed: of the probes, which are fixed from t_min to T.
        first: the index of the first sample: its probes depend on the seed and its index alone.

    Raises:
        UserError: for what `rk45.solve` refuses, and for a denoiser without derivatives by x.
    """
    check_batch(denoiser, x)
    if count := not_finite(x):
        raise UserError(f"the data x are not finite (NaN or infinite) for {count}")
    flow = rk45.Flow(denoiser, solver.noise, x.clone(), condition, solver.noise.t_min)
    dim, noise = flow.first.shape[1], solver.noise
    signs = _signs(flow.first, None if probes is None else whole("probes", probes), whole("seed", seed, 0), first)

    def derivative(theta: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            z = y[:, :dim].detach().requires_grad_()
            D = flow.prediction(theta, z, rows)
            if not D.requires_grad:
                raise UserError("the denoiser's output has no derivative by x, which a likelihood needs; do not detach "
                                "it, and do not use torch.no_grad in it")  # fmt: skip
            traces = [(torch.autograd.grad(D, z, v, retain_graph=True)[0] * v).sum(1) for v in signs(rows)]
        trace = torch.stack(traces, 1)
        trace = trace.sum(1, keepdim=True) if probes is None else trace
        cos, sin = theta.cos()[:, None], theta.sin()[:, None]
        return torch.cat([(cos * z.detach() - D.detach()) / sin, (cos - trace / dim) / sin], 1)

    def size(ratio: Tensor) -> Tensor:
        return torch.maximum(rk45.root_mean_square(ratio[:, :dim]), ratio[:, dim:].abs().amax(1))

    start = torch.cat([flow.first, flow.first.new_zeros(len(x), probes or 1)], 1)
    limits = flow.angle(noise.t_min), flow.angle(noise.T)
    y, evaluations = rk45.integrate(derivative, start, limits, solver.tolerance, solver.nfe, size=size)
    x_T = y[:, :dim] * flow.scale(noise.T)
    prior = -0.5 * (x_T / noise.sigma_T).square().sum(1) - dim * math.log(noise.sigma_T * math.sqrt(2 * math.pi))
    stretched = math.log(flow.scale(noise.T) / flow.scale(noise.t_min))  # from z to x at both ends, in each dimension
    every = prior[:, None] + dim * (stretched + y[:, dim:])
    error = torch.full_like(prior, 0.0 if probes is None else torch.nan)
    if probes is not None and probes > 1:
        error = every.std(1) / math.sqrt(probes)
    return Likelihood(every.mean(1), error, evaluations, dim)


def _signs(z: Tensor, probes: int | None, seed: int, first: int) -> Callable[[Tensor], list[Tensor]]:
    """Rows of the batch [b] -> the vectors [b, M] that a Jacobian is multiplied with: the probes of these rows, or the
    unit vectors."""
    count, dim = z.shape
    if probes is None:
        units = torch.eye(dim, dtype=z.dtype, device=z.device)
        return lambda rows: [unit.expand(len(rows), -1) for unit in units]
    drawn = [np.random.default_rng((seed, first + i)).choice([-1.0, 1.0], (probes, dim)) for i in range(count)]
    every = torch.tensor(np.array(drawn).reshape(count, probes, dim), dtype=z.dtype, device=z.device)
    return lambda rows: list(every[rows].unbind(1))
