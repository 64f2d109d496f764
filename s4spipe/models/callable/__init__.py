"""The user's own model: any Python function that returns a network."""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from s4spipe.models.base import dry_call, prediction
from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.base.settings import ModelSettings
from s4spipe.models.noise import VE, NoiseSchedule
from s4spipe.runtime import user_code
from s4spipe.runtime.errors import UserError

KEY = "model.source"


def noise_schedule(settings: ModelSettings) -> NoiseSchedule:
    """The noise schedule of the network, which has to be built for this."""
    return load(settings).noise_schedule


def load(settings: ModelSettings) -> Denoiser:
    """The denoiser of the network that the function settings.source ("module:function") returns.

    The function is called with settings.weights if it takes an argument. The arguments of the network's forward tell
    its interface: (x, sigma, class_labels) is EDM's, (sample, timestep, ...) is that of diffusers.

    Raises UserError if there is no such function, or it raises or returns something else.
    """
    source = settings.source or ""
    net = user_code.network(KEY, source, settings.weights)
    with user_code.told(KEY, source, "returned a network that cannot be used"):
        parameters = inspect.signature(net.forward).parameters
        interface = _interface(list(parameters))
        if interface is None:
            raise UserError(
                f"model.source: {source} returned a network whose forward takes ({', '.join(parameters)}); it must "
                "take (x, sigma, class_labels), as EDM's do, or (sample, timestep, class_labels), as diffusers' do"
            )
        for name in interface.unknown(list(parameters.values())[2:]):
            raise UserError(
                f"model.source: {source} returned a network whose forward needs {name!r}, which is not given to it; "
                "the argument of the classes must be class_labels, and any other must have a default"
            )
        return interface(net, settings)


def _interface(arguments: list[str]) -> "type[EDMInterface] | None":
    second = arguments[1].lower() if len(arguments) > 1 else ""
    if second == "sigma":
        return EDMInterface
    return DiffusersInterface if second in ("timestep", "timesteps", "t") else None


def _needed(parameters: list[inspect.Parameter]) -> list[str]:
    """The names of those that a call must give."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


class EDMInterface(Denoiser):
    """net(x, sigma, class_labels) -> x0 prediction, with class_labels one-hot [B, label_dim] or None (Karras et al.
    2022).

    The shape is read from net.img_channels and net.img_resolution, or from model.shape; the noise levels from
    net.sigma_min and net.sigma_max, within EDM's 0.002 to 80; the number of classes from net.label_dim. Zeros stand for
    no label.
    """

    def __init__(self, net: nn.Module, settings: ModelSettings):
        super().__init__()
        self.net = net
        self.num_classes = int(getattr(net, "label_dim", 0) or 0)
        self.null_condition = self.num_classes or None
        self.noise_schedule = VE(max(getattr(net, "sigma_min", 0), 0.002), min(getattr(net, "sigma_max", 80.0), 80.0))
        own = (getattr(net, "img_channels", None), *[getattr(net, "img_resolution", None)] * 2)
        self.sample_shape = _shape(settings, own, "net.img_channels and net.img_resolution")

    @staticmethod
    def unknown(parameters: list[inspect.Parameter]) -> list[str]:
        """The arguments of a network's forward, after x and sigma, that it needs and is not given."""
        return _needed(parameters[1:])

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        dtype = _dtype(self.net)
        labels = None
        if condition is not None:
            labels = one_hot(condition, self.num_classes + 1)[:, :-1].to(dtype)
        return dry_call.output(self.net(x.to(dtype), t.to(dtype), labels), x)

    def decode(self, x: Tensor) -> Tensor:
        return self.net.decode(x.to(_dtype(self.net))) if hasattr(self.net, "decode") else x


class DiffusersInterface(EDMInterface):
    """net(sample, timestep, class_labels=...) -> a tensor, or an output with the tensor as `sample`.

    model.scheduler says what the network predicts and which noise it was trained with. It has the keys of a diffusers
    scheduler's config; the defaults are DDPM's: prediction_type epsilon, 1000 linear betas.
    """

    def __init__(self, net: nn.Module, settings: ModelSettings):
        Denoiser.__init__(self)
        config = dict(settings.scheduler)
        if not {"_class_name", "use_flow_sigmas", "trained_betas"} & set(config):
            config = {"beta_schedule": "linear"} | config
        try:
            training = prediction.read(config)
        except UserError as error:
            raise UserError(f"model.scheduler: {error}") from None
        self.net, own = net, getattr(net, "config", {})
        if own.get("time_cond_proj_dim"):
            raise UserError("model.source: its network has a guidance embedding (time_cond_proj_dim), which only "
                            "models of kind diffusers are given")  # fmt: skip
        classes = own.get("num_class_embeds") or own.get("num_embeds_ada_norm") or 0
        self.num_classes = getattr(net, "num_classes", classes)
        self.null_condition = (
            self.num_classes if self.num_classes and self.num_classes != own.get("num_class_embeds") else None
        )
        self.noise_schedule, self.training_of = training.noise, training
        side = own.get("sample_size")
        own = (own.get("in_channels"), *(side if isinstance(side, list | tuple) else [side, side]))
        self.sample_shape = _shape(settings, own, "net.config.in_channels and net.config.sample_size")

    @staticmethod
    def unknown(parameters: list[inspect.Parameter]) -> list[str]:
        return [name for name in _needed(parameters) if name != "class_labels"]

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        dtype = _dtype(self.net)
        labels = {} if condition is None else {"class_labels": condition}
        out = dry_call.output(self.net(x.to(dtype), self.training_of.network_time(t).to(torch.float32), **labels), x)
        wide = (slice(None), *[None] * (x.ndim - 1))
        alpha, sigma = (f(t)[wide].to(x.dtype) for f in (self.noise_schedule.alpha, self.noise_schedule.sigma))
        return self.training_of.to_x0(x, out, alpha, sigma)


def _shape(settings: ModelSettings, own: tuple, where: str) -> tuple[int, ...]:
    shape = settings.shape or own
    if any(side is None for side in shape):
        raise UserError(f"model.shape: needed, as the network does not tell the shape of its images by {where}")
    return tuple(shape)


def _dtype(net: nn.Module) -> torch.dtype:
    return next((p.dtype for p in net.parameters()), torch.float32)
