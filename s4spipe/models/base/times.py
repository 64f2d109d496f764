"""The times of a solver as a pipeline and its network know them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4spipe.models.base.prediction import Training
from s4spipe.models.noise import VPDiscrete
from s4spipe.runtime.checks import is_number
from s4spipe.runtime.errors import UserError, shown

# Keys of FlowMatchEulerDiscreteScheduler that change sigmas beyond the shift.
CONVERTED = ("shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def of_network(training: Training, t: Tensor) -> Tensor:
    """The times shown to a network, which a pipeline gets: whole indices of a table of betas as integers."""
    whole = isinstance(training.noise, VPDiscrete) and bool((t == t.round()).all())
    return t.round().long() if whole else training.network_time(t).float()


def unshifted(t: Tensor, config: Mapping[str, Any], mu: float | None) -> Tensor:
    """The times t [N] of a flow model before they were shifted, which some pipelines show their networks.

    It is the inverse of what FlowMatchEulerDiscreteScheduler does to its sigmas: s' = a s / (1 + (a - 1) s), where a is
    the key `shift`; for `use_dynamic_shifting`, exp(mu), or mu if `time_shift_type` is linear.

    Raises UserError for a config that does not say how they are shifted.
    """
    dynamic, linear = config.get("use_dynamic_shifting", False), config.get("time_shift_type") == "linear"
    strength = config.get("shift") if not dynamic else mu
    if any(config.get(key) for key in CONVERTED) or not is_number(strength):
        raise UserError(
            "this pipeline shows its network other times than those of its noise levels, and its scheduler's config "
            f"does not say which (shift {shown(strength)}): use the pipeline's own scheduler"
        )
    a = torch.tensor(float(strength), dtype=t.dtype)  # type: ignore[arg-type]
    a = a.exp() if dynamic and not linear else a
    return t / (a - (a - 1) * t)


def place(times: Tensor, given: Any) -> int | None:
    """Which of the times [N] a pipeline means, by one or several equal times; None if it is none of them."""
    values = torch.as_tensor(given).flatten().double()
    if not len(values) or not (values == values[0]).all():
        return None
    near = torch.isclose(times.double().cpu(), values[0].cpu(), rtol=1e-3, atol=1e-6).nonzero().flatten()
    return int(near[0]) if len(near) else None
