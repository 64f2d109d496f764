"""What a diffusers network predicts and which noise it was trained with, from the config of its scheduler.

A config is read only if all of it is understood: its class, and every key that it has. Everything else is refused by
its name, because a wrong table of noise makes wrong images without any error.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s4spipe.models import noise
from s4spipe.models.noise import Flow, NoiseSchedule, VPDiscrete
from s4spipe.runtime.checks import is_number, whole
from s4spipe.runtime.errors import UserError, needs, shown, unknown

# The x0 prediction from a network's output at the state y = alpha x_0 + sigma eps.
X0 = {
    "epsilon": lambda y, out, alpha, sigma: (y - sigma * out) / alpha,
    "sample": lambda y, out, alpha, sigma: out,
    "v_prediction": lambda y, out, alpha, sigma: alpha * y - sigma * out,
    "flow_prediction": lambda y, out, alpha, sigma: y - sigma * out,
}

# Schedulers of models with a table of betas. Some of them can also sample flow models (`use_flow_sigmas`).
DISCRETE = (
    "CogVideoXDDIM CogVideoXDPM DDIM DDIMInverse DDIMParallel DDPM DDPMParallel DEISMultistep DPMSolverMultistep "
    "DPMSolverMultistepInverse DPMSolverSDE DPMSolverSinglestep EulerAncestralDiscrete EulerDiscrete HeunDiscrete "
    "KDPM2AncestralDiscrete KDPM2Discrete LCM LMSDiscrete PNDM RePaint SASolver TCD UniPCMultistep"
)
# Schedulers of flow models: the network is shown t = sigma, times num_train_timesteps, and predicts the velocity.
FLOW = "FlowMatchEulerDiscrete FlowMatchHeunDiscrete FlowMatchLCM"
CLASSES = {f"{name}Scheduler": kind for kind, names in (("vp", DISCRETE), ("flow", FLOW)) for name in names.split()}

# Keys that say how a model was trained. All of them are obeyed.
_TRAINING = (
    "invert_sigmas num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr "
    "snr_shift_scale prediction_type predict_epsilon use_flow_sigmas variance_type"
)
# Keys that say at which times a scheduler samples, or how. A solver has its own times and its own steps.
_SAMPLING = (
    "algorithm_type clip_sample clip_sample_range corrector_order disable_corrector dynamic_thresholding_ratio eta "
    "euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped lower_order_final "
    "noise_sampler_seed original_inference_steps predict_x0 predictor_order sample_max_value set_alpha_to_one "
    "shift_terminal sigma_max sigma_min skip_prk_steps solver_order solver_p solver_type steps_offset tau_func "
    "tensor_format thresholding time_shift_type timestep_scaling timestep_spacing use_beta_sigmas use_dynamic_shifting "
    "use_exponential_sigmas use_karras_sigmas use_lu_lambdas"
)
# The same, for keys that only flow models have.
_FLOW_SAMPLING = "base_image_seq_len base_shift max_image_seq_len max_shift shift stochastic_sampling upscale_mode"
TRAINING, SAMPLING, FLOW_SAMPLING = (frozenset(keys.split()) for keys in (_TRAINING, _SAMPLING, _FLOW_SAMPLING))
# Keys that would change what the network is shown; only this value of them is understood.
ONLY = {"timestep_type": "discrete", "scale_factors": None, "timestep_values": None}

ZERO_SNR = 2.0**-24  # for alphas_cumprod 0, as in diffusers: lambda must be finite


@dataclass(frozen=True)
class Training:
    """How a network was trained.

    Attributes:
        noise: its noise schedule.
        prediction: what it predicts, a key of `X0`.
        time_scale: its time at t = 1 of the noise schedule: 1 if it is shown t itself.
        inverted: whether a flow model's time runs the other way (`invert_sigmas`): it is shown `time_scale` (1 - t),
            and what it predicts has the other sign.
    """

    noise: NoiseSchedule
    prediction: str
    time_scale: float = 1.0
    inverted: bool = False

    def to_x0(self, y: Tensor, out: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """The x0 prediction from the network's output at the state y = alpha x_0 + sigma eps."""
        return X0[self.prediction](y, -out if self.inverted else out, alpha, sigma)

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is shown at times t of the noise schedule."""
        return self.time_scale * (1 - t if self.inverted else t)

    @property
    def flow(self) -> bool:
        """Whether it is a flow-matching model."""
        return isinstance(self.noise, Flow)


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule that a model was trained with, from its scheduler's config."""
    return read(config).noise


def read(config: Mapping[str, Any]) -> Training:
    """How a model was trained, from its scheduler's config.

    Without `_class_name`, as in the config of a scheduler that was not loaded from a folder, the keys must say whether
    it is a model with a table of betas or a flow model. A missing key has the default of the scheduler's class, or of
    DDPMScheduler.

    Raises:
        UserError: for a class, a key or a value that is not understood.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"a scheduler's config is needed, such as pipe.scheduler.config, got {type(config).__name__}")
    if "tableau" in config:
        scale = _steps(config.get("num_train_timesteps", 1000))
        table = config["tableau"]
        if not isinstance(table, Mapping) or not isinstance(table.get("noise"), Mapping):
            raise UserError(f"the scheduler's config needs a solver for tableau, got {shown(table)}")
        schedule = noise.from_description(dict(table["noise"]))
        flow = isinstance(schedule, Flow)
        name = config.get("prediction_type")
        name = ("flow_prediction" if flow else "epsilon") if name is None else name
        return Training(schedule, known(name), float(scale) if flow else 1.0, _inverted(config, flow))
    flow = _is_flow(config)
    _check_keys(config, flow)
    get = {**_defaults(config), **{key: value for key, value in config.items() if key in TRAINING}}.get
    usual = "epsilon" if get("predict_epsilon", True) else "sample"  # a key of diffusers before 0.10
    given = config.get("prediction_type", usual)
    if flow:
        name = config.get("prediction_type", "flow_prediction")
        if CLASSES.get(config.get("_class_name", "")) == "flow" and name != "flow_prediction":
            raise _contradiction(config, "prediction_type")
        return Training(Flow(), known(name), float(_steps(get("num_train_timesteps"), 1)), _inverted(config, flow))
    if given == "flow_prediction":
        raise UserError("the scheduler's config has prediction_type: 'flow_prediction' but not use_flow_sigmas: true, "
                        "which says that the model is a flow model")  # fmt: skip
    _inverted(config, flow)
    return Training(VPDiscrete(_table(get)), known(given))


def _inverted(config: Mapping[str, Any], flow: bool) -> bool:
    inverted = config.get("invert_sigmas", False)
    if not isinstance(inverted, bool) or (inverted and not flow):
        raise UserError("the scheduler's config needs true or false for invert_sigmas, and false for a model that is "
                        f"no flow model, got {shown(inverted)}")  # fmt: skip
    return inverted


def _is_flow(config: Mapping[str, Any]) -> bool:
    name = config.get("_class_name")
    if name is not None and (not isinstance(name, str) or name not in CLASSES):
        raise UserError(
            f"schedulers of class {shown(name)} are not understood, so the noise that the model was trained with is "
            "unknown; understood are those with a table of betas (as DDIMScheduler) and FlowMatchEulerDiscreteScheduler"
        )
    for key in ("use_flow_sigmas", "rescale_betas_zero_snr", "predict_epsilon"):
        if not isinstance(config.get(key, False), bool):
            raise UserError(f"the scheduler's config needs true or false for {key}, got {shown(config[key])}")
    if config.get("use_flow_sigmas", False):
        return True
    betas = config.get("beta_schedule") is not None or config.get("trained_betas") is not None
    if name is not None:
        if CLASSES[name] == "flow" and betas and config.get("prediction_type") != "flow_prediction":
            raise _contradiction(config, "beta_schedule")
        return CLASSES[name] == "flow"
    if betas or {"shift", "base_shift"} <= set(config):
        return not betas
    raise UserError(
        "the scheduler's config says neither which betas the model was trained with (beta_schedule) nor that it is a "
        "flow model (use_flow_sigmas: true); add one of these, or `_class_name`, the scheduler's class"
    )


def _check_keys(config: Mapping[str, Any], flow: bool) -> None:
    known = TRAINING | SAMPLING | FLOW_SAMPLING if flow else TRAINING | SAMPLING
    for key, value in config.items():
        if not isinstance(key, str):
            raise UserError(f"the scheduler's config has a key that is not text: {shown(key)}")
        if key.startswith("_") or key in known or (key in ONLY and value == ONLY[key]):
            continue
        if key in FLOW_SAMPLING:
            raise _contradiction(config, key)
        right = f"; only {ONLY[key]!r} is" if key in ONLY else ", and may change the noise, the times or the prediction"
        raise UserError(f"the scheduler's config has {shown(key)}: {shown(value)}, which is not understood{right}")


def _contradiction(config: Mapping[str, Any], key: str) -> UserError:
    return UserError(
        f"the scheduler's config is both that of a flow model and of one with betas: {key}: {shown(config[key])} does "
        f"not go with {config.get('_class_name', 'its other keys')}; use the config that the model came with"
    )


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    with needs("diffusers", "a model with a scheduler's config"):
        import diffusers  # takes seconds
    cls = getattr(diffusers, config.get("_class_name", "DDPMScheduler"), None)
    if cls is None:
        raise UserError(f"{config['_class_name']} is not in the installed diffusers {diffusers.__version__}; update it")
    parameters = inspect.signature(cls.__init__).parameters
    return {name: p.default for name, p in parameters.items() if name in TRAINING}


def _table(get: Any) -> tuple[float, ...]:
    """alphas_cumprod in float64, with the shift and the rescaling that diffusers applies, in its order."""
    count, betas = _steps(get("num_train_timesteps")), get("trained_betas")
    if betas is not None:
        if not isinstance(betas, list | tuple) or not all(_is_finite(beta) for beta in betas):
            raise UserError(f"the scheduler's config needs a list of numbers for trained_betas, got {shown(betas)}")
        table = (1 - torch.tensor(betas, dtype=torch.float32, device="cpu").double()).cumprod(0)
    else:
        table = torch.tensor(_of_rule(get, count), dtype=torch.float64, device="cpu")
    shift = get("snr_shift_scale", 1.0)
    if not _is_finite(shift) or not shift > 0:
        raise UserError(f"the scheduler's config needs a positive number for snr_shift_scale, got {shown(shift)}")
    if shift != 1:
        table = table / (shift + (1 - shift) * table)
    if get("rescale_betas_zero_snr", False):  # Lin et al. 2023, arXiv 2305.08891, Algorithm 1
        root = table.sqrt()
        table = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        table[-1] = ZERO_SNR if table[-2] > ZERO_SNR else table[-2] / 4
    return tuple(table.tolist())


def _of_rule(get: Any, count: int) -> tuple[float, ...]:
    first, last, rule = get("beta_start"), get("beta_end"), get("beta_schedule")
    for key, value in (("beta_start", first), ("beta_end", last)):
        if not _is_finite(value) or not 0 < value < 1:
            raise UserError(f"the scheduler's config needs a number between 0 and 1 for {key}, got {shown(value)}")
    rules = {"squaredcos_cap_v2": "DDPM", "sigmoid": "DDPM", "laplace": "DDPM", "exp": "HeunDiscrete"}
    if not isinstance(rule, str) or rule not in {*noise.BETAS, *rules}:
        raise unknown("beta_schedule", rule, [*noise.BETAS, *rules])
    if rule in noise.BETAS:
        return noise.alphas_cumprod(rule, first, last, count)
    import diffusers

    own = getattr(diffusers, f"{rules[rule]}Scheduler")(count, first, last, rule)
    return tuple((1 - own.betas.double()).cumprod(0).tolist())


def known(name: Any, schedule: NoiseSchedule | None = None) -> str:
    """The prediction of that name; for None, what networks for this noise usually predict. Raises UserError for an
    unknown one."""
    if name is None and isinstance(schedule, Flow):
        return "flow_prediction"
    if name is None and schedule is not None:
        return "epsilon" if isinstance(schedule, VPDiscrete) else "sample"
    if not isinstance(name, str) or name not in X0:
        raise unknown("prediction_type", name, X0)
    return name


def _steps(value: Any, least: int = 2) -> int:
    return whole("num_train_timesteps of the scheduler's config", value, least, 10**6)


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
