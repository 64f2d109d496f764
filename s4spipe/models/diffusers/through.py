"""The denoiser inside any pipeline: its own `__call__`, entered at a state and left with the guided output.

A pipeline's loop does what belongs to its model: guidance, packing, the arguments of its network. So it is called for
one step, with a scheduler whose only time is t and whose step takes the output away. States enter where latents are
prepared; what `encode_prompt` returned for the prompts is returned again, so no text encoder runs.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from s4spipe.models.base import times
from s4spipe.runtime.errors import UserError, shown

NETWORKS = ("transformer", "unet")
PREPARES = ("prepare_latents", "prepare_intermediate_images")  # where states enter
ENCODES = ("encode_prompt", "_encode_prompt")  # where conditions come from
STATES = ("hidden_states", "sample", "x")  # the networks' names for the state


class _Left(BaseException):  # no `except Exception` of a pipeline stops it
    """What a pipeline was left with."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value


class Through:
    """A pipeline as a function of states, times and conditions.

    Args:
        pipe: the pipeline, with `prepare_latents`, `encode_prompt`, a network and a scheduler.
        call: what else to call it with: guidance_scale, height, width, num_frames, negative_prompt, ...

    Attributes:
        net: its network.
        time: how the network's time depends on the pipeline's: (name of the argument, a, b), a t + b; None if this was
            not found, and rows of different times are then computed apart.
        size: the height and width in pixels that its latents were prepared for, if it has them.

    Raises:
        UserError: if the pipeline lacks one of these, or does not know an argument.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]):
        self.pipe, name = pipe, type(pipe).__name__
        self.prepares, self.encodes = (
            next((key for key in keys if hasattr(pipe, key)), keys[0]) for keys in (PREPARES, ENCODES)
        )
        for part in (self.prepares, self.encodes, "scheduler"):
            if getattr(pipe, part, None) is None:
                raise UserError(f"{name} has no {part}, which an adapter for all pipelines needs")
        nets = [net for key in NETWORKS if (net := getattr(pipe, key, None)) is not None]
        if not nets:
            raise UserError(f"{name} has neither a transformer nor a unet")
        self.net: nn.Module = nets[0]
        own = type(pipe).__call__
        self.function: Callable = inspect.unwrap(own)  # without `torch.no_grad`
        known = inspect.signature(self.function).parameters
        for key in call:
            if key not in known:
                raise UserError(f"model.pipeline: {name} does not know {shown(key)}; its call takes {', '.join(known)}")
        usual = {"num_inference_steps": 1, "output_type": "latent", "return_dict": False}
        self.call = {key: value for key, value in usual.items() if key in known} | dict(call)
        self.scheduler = _scheduler(pipe.scheduler)
        self.time: tuple[str, float, float] | None = None
        self.size: tuple[int, int] | None = None

    def replace(self, net: nn.Module) -> None:
        """Take another network in the place of the pipeline's own: itself, compiled."""
        key = next(key for key in NETWORKS if getattr(self.pipe, key, None) is self.net)
        self.pipe.__dict__[key] = self.net = net

    def encode(self, prompts: list[str]) -> list[Any]:
        """What each call of `encode_prompt` returns, within one call of the pipeline with these prompts."""
        found: list[Any] = []
        own = getattr(self.pipe, self.encodes)

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            found.append(own(*args, **kwargs))
            return found[-1]

        def prepare_latents(*_args: Any, **_kwargs: Any) -> Any:
            raise _Left(found)

        with self._replaced(**{self.encodes: encode_prompt, self.prepares: prepare_latents}):
            self._left(prompts)
        if not found:
            raise UserError(f"{type(self.pipe).__name__} prepares latents before it encodes its prompts")
        return found

    def prepared(self, conditions: list[Any]) -> Tensor:
        """The latents [1, ...] that the pipeline prepares for one sample."""
        own = getattr(self.pipe, self.prepares)
        signature = inspect.signature(own)

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            made, given = own(*args, **kwargs), signature.bind(*args, **kwargs).arguments
            self.size = (given["height"], given["width"]) if {"height", "width"} <= given.keys() else None
            raise _Left(made if isinstance(made, Tensor) else made[0])

        with self._replaced(**{self.encodes: _replay(conditions), self.prepares: prepare_latents}), torch.no_grad():
            return self._left([""])

    def output(self, x: Tensor, t: Tensor, conditions: list[Any]) -> Tensor:
        """The guided output [B, ...] at states x [B, ...] and the network's own times t [B], for conditions of B."""
        if self.time is None and len(t) > 1 and not (t == t[0]).all():
            raise ValueError("rows of different times must be computed apart")
        only = t[:1].to(torch.float32)
        with self._entered(x, only.detach() if self.time else only, conditions), self._timed(t, len(x)):
            return self._left([""] * len(x))

    def decode(self, x: Tensor, conditions: list[Any]) -> Tensor:
        """The images [B, C, H, W] or videos [B, F, C, H, W] in [0, 1] of final states x [B, ...]."""
        with self._entered(x, x.new_zeros(0), conditions):
            return self.function(self.pipe, prompt=[""] * len(x), **self.call | {"output_type": "pt"})[0]

    def calibrate(self, x: Tensor, t: Tensor, conditions: list[Any]) -> int:
        """Find how the network's time depends on the pipeline's, by calls at three times t [3] of states x [1, ...].

        Returns:
            How many rows the network is called on for each of the output's.
        """
        self.time, self.parameters = None, inspect.signature(self.net.forward)  # a compiled network does not tell them
        seen = [self._arguments(x, time[None], conditions) for time in t]
        calls, (first, second, third) = sum(_rows(some) for some in seen[0]), (some[0] for some in seen)
        changed = [key for key, value in first.items() if isinstance(value, Tensor)
                   and not (value.shape == second[key].shape and torch.equal(value, second[key]))]  # fmt: skip
        if len(changed) != 1 or not all((some[changed[0]] == some[changed[0]].flatten()[0]).all()
                                        for some in (first, second, third)):  # fmt: skip
            return calls
        key = changed[0]
        a, b, c = (float(some[key].double().flatten()[0]) for some in (first, second, third))
        slope = (b - a) / (float(t[1]) - float(t[0]))
        offset = a - slope * float(t[0])
        if slope and abs(slope * float(t[2]) + offset - c) <= 1e-2 * abs(b - a):  # some networks are shown whole times
            # Both are known up to the rounding of times in float32; those of pipelines are plain numbers.
            offset = offset if abs(offset) > 1e-6 * abs(a) else 0.0
            self.time = (key, float(f"{slope:.6g}"), float(f"{offset:.6g}"))
        return calls

    def _arguments(self, x: Tensor, t: Tensor, conditions: list[Any]) -> list[dict[str, Any]]:
        """What the network is called with, each time in one step, by its parameters' names."""
        seen: list[dict[str, Any]] = []
        hook = self.net.register_forward_pre_hook(
            lambda _net, args, kwargs: seen.append(dict(self.parameters.bind(*args, **kwargs).arguments)),
            with_kwargs=True,
        )
        try:
            with torch.no_grad():
                self.output(x, t, conditions)
        finally:
            hook.remove()
        return seen

    def _left(self, prompts: list[str]) -> Any:
        try:
            self.function(self.pipe, prompt=prompts, **self.call)
        except _Left as left:
            return left.value
        except ZeroDivisionError:  # Mochi cannot make a schedule of one step
            if self.call.get("num_inference_steps") != 1:
                raise
            self.call["num_inference_steps"] = 4
            return self._left(prompts)
        raise UserError(f"{type(self.pipe).__name__} never came to a step of its scheduler")

    @contextmanager
    def _entered(self, x: Tensor, t: Tensor, conditions: list[Any]) -> Iterator[None]:
        own = getattr(self.pipe, self.prepares)

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                made = own(*args, **kwargs)
            return x if isinstance(made, Tensor) else type(made)([x, *made[1:]])

        self.scheduler.only = t
        with self._replaced(**{self.encodes: _replay(conditions), self.prepares: prepare_latents}):
            yield

    @contextmanager
    def _replaced(self, **methods: Callable) -> Iterator[None]:
        before = self.pipe.scheduler
        self.pipe.scheduler = self.scheduler
        self.pipe.__dict__.update(methods)
        try:
            yield
        finally:
            for key in methods:
                self.pipe.__dict__.pop(key, None)
            self.pipe.scheduler = before

    @contextmanager
    def _timed(self, t: Tensor, rows: int) -> Iterator[None]:
        """The network is shown the times t [rows], for as many of them as it is called on at once."""
        if self.time is None:
            yield
            return
        key, slope, offset = self.time
        names = list(self.parameters.parameters)

        def show(_net: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            given = dict(zip(names, args, strict=False)) | kwargs
            old = given[key]
            count = _rows(given)
            new = slope * t + offset
            new = new.to(old.dtype) if old.is_floating_point() else new
            new = new.expand(rows).repeat(count // rows)
            if old.ndim > 1:  # a time for each token
                new = new.view(-1, *[1] * (old.ndim - 1)).expand(count, *old.shape[1:])
            if key in kwargs:
                return args, kwargs | {key: new}
            place = names.index(key)
            return (*args[:place], new, *args[place + 1 :]), kwargs

        hook = self.net.register_forward_pre_hook(show, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def _rows(arguments: dict[str, Any]) -> int:
    """How many states a network is called on: the rows of a tensor, or the entries of a list."""
    return next(len(arguments[name]) for name in STATES if isinstance(arguments.get(name), Tensor | list))


def _replay(conditions: list[Any]) -> Callable:
    following = itertools.cycle(conditions)  # it may be called again
    return lambda *_args, **_kwargs: next(following)


def _scheduler(own: Any) -> Any:
    """A scheduler like the pipeline's own, whose only times are `only`, and whose step takes the output away."""

    class OneStep(type(own)):  # type: ignore[misc]
        only = torch.ones(1)
        init_noise_sigma = 1.0
        order = 1

        def set_timesteps(
            self, num_inference_steps: Any = None, device: Any = None, timesteps: Any = None, sigmas: Any = None,
            mu: Any = None, **_options: Any,
        ) -> None:  # fmt: skip
            t = self.only
            if timesteps is not None and sigmas is not None:
                count = self.config.num_train_timesteps
                t = count * times.unshifted(t / count, self.config, mu)
            self.timesteps, self.num_inference_steps = t, len(t)
            self.sigmas = torch.cat([t, t.new_zeros(1)])

        def scale_model_input(self, sample: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            return sample

        def set_begin_index(self, *_args: Any) -> None:
            pass

        def step(
            self, model_output: Tensor, timestep: Any, sample: Tensor, *_args: Any, eta: float = 0.0, **_kw: Any
        ) -> Any:
            raise _Left(model_output)

    OneStep.__name__ = type(own).__name__  # which some pipelines look at
    return OneStep.from_config(own.config)
