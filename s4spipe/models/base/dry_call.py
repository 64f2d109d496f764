"""The check of a loaded network: what it returns, before anything is computed with it."""

from typing import Any

import torch
from torch import Tensor

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.noise import precision
from s4spipe.runtime.checks import check_like
from s4spipe.runtime.errors import UserError

# How far apart the x0 predictions of one row may be, alone and in a batch, relative to their norm.
ROUNDING = {torch.float32: 5e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}


def output(raw: Any, x: Tensor) -> Tensor:
    """The prediction [B, C, ...] in what a diffusers network returned, in the dtype of x; a learned variance, in C more
    channels, is left out.

    Raises:
        UserError: if it is no tensor of floating-point numbers, or of another shape than x [B, C, ...].
    """
    out = getattr(raw, "sample", raw)
    if isinstance(out, Tensor) and out.shape == (*x.shape[:1], 2 * x.shape[1], *x.shape[2:]):
        out = out[:, : x.shape[1]]
    check_like("the network", out, x)
    return out.to(x.dtype)


@torch.no_grad()
def check(denoiser: Denoiser) -> None:
    """Call the denoiser, on its device, on two noises at two times, and on one of them alone.

    Raises:
        UserError: if the network cannot be called so, returns another shape or numbers that are not finite, or if its
            rows depend on one another.
    """
    if denoiser.device.type == "meta":
        return  # holds no numbers
    try:
        difference = apart(denoiser)
    except UserError:
        raise
    except Exception as error:  # a network may raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        hint = "; model.condition: labels gives it classes" if denoiser.num_classes and not denoiser.conditional else ""
        raise UserError(
            f"the network cannot be called on a batch of two states {list(denoiser.sample_shape)} and their times "
            f"({reason[0][:160]}){hint}"
        ) from None
    if difference > ROUNDING[denoiser.precision]:
        raise UserError(
            "the network's output for one sample depends on the others in its batch (relative difference "
            f"{difference:.1g}): it must treat every row alone, as networks without batch statistics do"
        )


@torch.no_grad()
def apart(denoiser: Denoiser) -> float:
    """How far apart the x0 predictions of one row are, alone and in a batch of two, relative to their norm.

    Raises UserError for predictions of another shape, or not finite, and whatever the network raises.
    """
    noise, dtype = denoiser.noise_schedule, precision(denoiser.device)
    t = noise.inverse(torch.tensor([-1.0, 1.0], dtype=torch.float64)).clamp(noise.t_min, noise.T)
    drawn = torch.randn(2, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    x = drawn.to(denoiser.device, dtype) * noise.sigma(t).to(denoiser.device, dtype).view(2, *[1] * (drawn.ndim - 1))
    t = t.to(denoiser.device, dtype)
    condition = None
    if denoiser.conditional and denoiser.num_classes:
        condition = torch.tensor([0, denoiser.num_classes - 1], device=denoiser.device)
    both = denoiser(x, t, condition)
    alone = denoiser(x[1:], t[1:], None if condition is None else condition[1:])
    check_like("the network", both, x)
    if not both.isfinite().all():
        raise UserError(
            f"the network's output is not finite (NaN or infinite) at times {t.tolist()}, in {denoiser.precision}; try "
            "model.precision bfloat16 or float32, and check the weights"
        )
    return ((both[1:] - alone).norm() / alone.norm().clamp(min=1e-30)).item()
