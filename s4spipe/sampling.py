"""The one sampling loop, for any tableau."""

from collections.abc import Callable

import torch
from torch import Tensor

from s4spipe.tableau import Tableau


def sample(
    denoiser: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    tableau: Tableau,
    noise: Tensor,
    condition: Tensor | None = None,
) -> Tensor:
    """Run a solver on a batch of noises; `tableau.nfe` calls of the denoiser.

    Args:
        denoiser: (x [B, ...], t scalar, condition) -> x0 prediction, shaped like x.
        noise: x_T [B, ...], standard deviation sigma_T (not 1).
        condition: handed to the denoiser.

    Returns the samples, like `noise`. States are float64 (float32 where the device has no float64); the denoiser rounds
    its input to its network's precision itself. Gradients flow to whatever in tableau and noise requires them.
    """
    state = torch.float32 if noise.device.type == "mps" else torch.float64
    c, W, t_c = (table.to(noise.device, state) for table in (tableau.c, tableau.W, tableau.t_c))
    x_T = y = noise.to(state)
    d: list[Tensor] = []
    for i in range(tableau.nfe):
        d.append(denoiser(y, t_c[i], condition))
        y = c[i] * x_T + sum(W[i, j] * d[j] for j in range(i + 1))
    return y.to(noise.dtype)
