"""The one sampling loop, for any tableau."""

import warnings
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
    """Run a solver on a batch of noises: `tableau.nfe` evaluations in `tableau.depth` calls of the denoiser.

    Evaluations that do not need one another are one call, on a batch as many times as large.

    Args:
        denoiser: (x [B, ...], t, condition) -> x0 prediction, shaped like x; t is a scalar, or [B] where a call joins
            several evaluations.
        noise: x_T [B, ...], standard deviation sigma_T (not 1).
        condition: handed to the denoiser; a tensor has one row per sample.

    Returns the samples, like `noise`. States are float64 (float32 where the device has no float64); the denoiser rounds
    its input to its network's precision itself. Gradients flow to whatever in tableau and noise requires them.
    """
    belongs(denoiser, tableau)
    state = precision(noise.device)
    c, W, t_c = (table.to(noise.device, state) for table in (tableau.c, tableau.W, tableau.t_c))
    x_T, d = noise.to(state), []

    def y(i: int) -> Tensor:
        if i == 0:
            return tableau.c_0.to(noise.device, state) * x_T
        return c[i - 1] * x_T + sum(W[i - 1, j] * d[j] for j in range(min(i, len(d))))

    for stage in tableau.stages:
        if len(stage) == 1:
            d.append(denoiser(y(stage.start), t_c[stage.start], condition))
        else:
            x, t = torch.cat([y(i) for i in stage]), t_c[stage.start : stage.stop].repeat_interleave(len(x_T))
            rows = len(stage)
            repeated = condition.repeat(rows, *[1] * (condition.ndim - 1)) if torch.is_tensor(condition) else condition
            d.extend(denoiser(x, t, repeated).chunk(rows))
    return y(tableau.nfe).to(noise.dtype)


def precision(device: torch.device) -> torch.dtype:
    """Of a solver's states: float64, float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def belongs(denoiser: Callable, tableau: Tableau) -> None:
    """Warn of a solver that was learned for another model than this one."""
    learned, given = tableau.meta.get("model"), getattr(denoiser, "identity", None)
    if not (isinstance(learned, dict) and "fingerprint" in learned and given):
        return  # a classical solver is anyone's
    if learned["fingerprint"] != given["fingerprint"]:
        names = [f"{model.get('source')} ({model['fingerprint']})" for model in (learned, given)]
        warnings.warn(f"solver {tableau.name} was learned for {names[0]}, and runs on {names[1]}", stacklevel=3)
