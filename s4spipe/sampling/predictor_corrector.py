"""The predictor-corrector sampler of Score SDE (Song et al. 2021, arXiv 2011.13456, Algorithms 2 and 4)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.noise import NoiseSchedule, precision
from s4spipe.runtime.checks import check_like, is_number, whole
from s4spipe.runtime.errors import UserError, shown
from s4spipe.sampling.loop import check_batch, check_noises, not_finite


@torch.no_grad()
def predictor_corrector(
    denoiser: Callable[[Tensor, Tensor, Any], Tensor],
    steps: tuple[NoiseSchedule, Tensor],
    x_T: Tensor,
    condition: Any = None,
    *,
    corrections: int = 1,
    snr: float = 0.16,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Sample by the reverse SDE, with Langevin steps at every noise level: S (1 + corrections) evaluations of a sample.

    The state is u = x / alpha and its noise level rho = sigma / alpha, so that every noise schedule is the paper's VE
    case, with the score (D - u) / rho^2. The predictor is reverse diffusion, u + (rho^2 - rho'^2) score plus noise of
    that variance. The corrector is u + eps score + sqrt(2 eps) z, with eps = 2 (snr |z| / |score|)^2. The paper takes
    means of the norms over the batch; here they are the sample's own, so that it does not depend on its batch. Because
    eps depends on the state, this is no tableau.

    On Gaussian data, many corrections at one level end at 1 + snr^2 of the right variance.

    Args:
        denoiser: (x [B, ...], t, condition) -> x0 prediction [B, ...].
        steps: the noise schedule, and the times [S+1] from T to where it stops, as `timesteps.build` gives them.
        x_T: the noises [B, ...], of standard deviation sigma_T.
        condition: passed to the denoiser; a tensor has one row per sample.
        corrections: Langevin steps at each level.
        snr: r in the paper: 0.16 for CIFAR-10.
        seed: of the noises on the way.
        first: the index of the first sample: its noises depend on the seed and its index alone.

    Returns:
        The samples [B, ...], in the dtype of x_T. The last noise is not removed.

    Raises:
        UserError: for what `s4spipe.sample` refuses, and for a negative number of corrections or an snr that is not
            positive.
    """
    check_batch(denoiser, x_T)
    check_noises(x_T)
    whole("corrections", corrections, 0)
    if not is_number(snr) or not 0 < snr < math.inf:
        raise UserError(f"snr must be a positive number, got {shown(snr)}")
    noise, t = steps
    rho, alpha = torch.exp(-noise.lambda_(t)).tolist(), noise.alpha(t).tolist()
    given = denoiser.checked(x_T, condition) if isinstance(denoiser, Denoiser) else condition
    generators = [np.random.default_rng((whole("seed", seed, 0), first + i)) for i in range(len(x_T))]
    u = x_T.to(precision(x_T.device)) / alpha[0]

    def drawn() -> Tensor:
        z = [generator.standard_normal(u.shape[1:]) for generator in generators]
        return torch.tensor(np.array(z).reshape(u.shape), dtype=u.dtype, device=u.device)

    def score(i: int) -> Tensor:
        x = u * alpha[i]
        D = denoiser(x, t[i].to(x), given)
        check_like("the denoiser", D, x)
        if count := not_finite(D):
            raise UserError(f"the network's output is not finite (NaN or infinite) for {count}, at time "
                            f"{float(t[i]):.6g}; try model.precision bfloat16 or float32")  # fmt: skip
        return (D.to(u) - u) / rho[i] ** 2

    def norm(v: Tensor) -> Tensor:
        return v.flatten(1).norm(dim=1).view(-1, *[1] * (u.ndim - 1))

    for i in range(len(t) - 1):
        variance = rho[i] ** 2 - rho[i + 1] ** 2
        u = u + variance * score(i) + math.sqrt(variance) * drawn()
        for _ in range(corrections):
            z, s = drawn(), score(i + 1)
            eps = 2 * (snr * norm(z) / norm(s).clamp(min=1e-30)) ** 2
            u = u + eps * s + (2 * eps).sqrt() * z
    return (u * alpha[-1]).to(x_T.dtype)
