"""What a diffusers network predicts and which noise it was trained with, from the config of its scheduler."""

from collections.abc import Mapping
from typing import Any

from s4spipe import noise
from s4spipe.noise import Flow, NoiseSchedule, VPDiscrete
from s4spipe.runtime.errors import needs, unknown

# The x0 prediction from a network's output at the state y = alpha x_0 + sigma eps.
X0 = {
    "epsilon": lambda y, out, alpha, sigma: (y - sigma * out) / alpha,
    "sample": lambda y, out, alpha, sigma: out,
    "v_prediction": lambda y, out, alpha, sigma: alpha * y - sigma * out,
    "flow_prediction": lambda y, out, alpha, sigma: y - sigma * out,
}


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule that a pipeline's model was trained with, from its scheduler's config."""
    if "tableau" in config:
        return noise.from_description(config["tableau"]["noise"])
    if is_flow(config):
        return Flow()
    with needs("diffusers", "a model of discrete noise"):
        from diffusers import DDPMScheduler  # seconds to import
    known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    own = DDPMScheduler(**{key: config[key] for key in known if key in config})
    if own.config.trained_betas is None and own.config.beta_schedule in noise.BETAS:  # in float64 if the rule is known
        first, last = own.config.beta_start, own.config.beta_end
        return VPDiscrete(noise.alphas_cumprod(own.config.beta_schedule, first, last, own.config.num_train_timesteps))
    return VPDiscrete(tuple((1 - own.betas.double()).cumprod(0).tolist()))


def prediction_type(config: Mapping[str, Any]) -> str:
    """What the network predicts, a key of `X0`. Raises UserError for an unknown one."""
    name = "flow_prediction" if is_flow(config) else config.get("prediction_type", "epsilon")
    if name not in X0:
        raise unknown("prediction_type", name, X0)
    return name


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is that of a flow-matching model."""
    if "tableau" in config:
        return isinstance(noise_schedule(config), Flow)
    return "beta_schedule" not in config or bool(config.get("use_flow_sigmas"))
