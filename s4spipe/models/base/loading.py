"""Loading a pre-trained model as a callable (x, t, condition) -> x0 prediction."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from s4spipe.models.base import dry_call
from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.base.settings import ORIGIN, ModelSettings
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime import checks
from s4spipe.runtime.errors import UserError, unknown
from s4spipe.runtime.files import read_json
from s4spipe.runtime.scratch import signature

# Each is a package of s4spipe.models with `load(settings)` and `noise_schedule(settings)`, and for text-to-image models
# `embed(settings, prompts, device)`.
KINDS = ("callable", "diffusers", "digits", "edm")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Settings = ModelSettings | Mapping[str, Any]


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """Torch's own defaults, whatever the caller has set: float32, the CPU, and tensors that can have gradients."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(dtype)


@_usual_defaults()
def noise_schedule(settings: Settings) -> NoiseSchedule:
    """The noise schedule that a model was trained with. The network is loaded only if that is unavoidable."""
    settings = ModelSettings.of(settings)
    return _kind(settings).noise_schedule(settings)


@_usual_defaults()
def load(
    settings: Settings, device: torch.device | str = "cpu", *, compiled: bool = False, channels_last: bool = False
) -> Denoiser:
    """Load a model, frozen.

    Without a GPU, half precision and compilation are ignored, with a message on stderr.

    Args:
        settings: ModelSettings, or a mapping with the keys of the block `model` of params.yaml.
        device: where the network runs.
        compiled: whether to torch.compile the network.
        channels_last: use the channels-last memory layout, in which backward passes are faster (by a third on two
            cores). It changes the last digits of the network's output.

    Raises:
        UserError: for a device that is not there, for a file that is missing, truncated or of another kind, and for a
            network that cannot be used (see `dry_call.check`).
    """
    settings = ModelSettings.of(settings)
    device = checks.device("device", device)
    denoiser: Denoiser = _kind(settings).load(settings)
    if settings.condition == "labels" and not denoiser.num_classes:
        raise UserError("model.condition: labels, but this model has no classes; use none, or prompts for one of text")
    if settings.condition == "prompts" and not denoiser.in_order:
        raise UserError("model.condition: prompts, but this is no text-to-image model; use none or labels")
    denoiser.guide(settings.guidance)
    denoiser.identity = identity(settings)
    denoiser.conditional = settings.condition != "none"
    if not isinstance(settings.precision, str) or settings.precision not in PRECISIONS:
        raise unknown("precision", settings.precision, PRECISIONS)
    if device.type == "cpu":
        for asked, what in (
            (settings.precision != "float32", f"model.precision: {settings.precision}"),
            (compiled, "run.compile: true"),
        ):
            if asked:
                print(f"{what} needs a GPU; this is a CPU, so the network runs in float32, uncompiled", file=sys.stderr)
    else:
        denoiser.set_precision(PRECISIONS[settings.precision])
    denoiser.to(device).eval().requires_grad_(False)
    try:
        dry_call.check(denoiser)
    except UserError as error:
        where = "" if str(error).startswith("model.") else f"{settings.source or settings.weights}: "
        raise UserError(f"{where}{error}") from None
    if compiled and denoiser.device.type != "cpu":
        denoiser.net = torch.compile(denoiser.net)
    flat = all(p.ndim <= 4 for p in denoiser.parameters())  # torch has another layout for videos, of other use
    return denoiser.to(memory_format=torch.channels_last) if channels_last and flat else denoiser


@_usual_defaults()
def embed(settings: Settings, prompts: list[str], device: torch.device) -> tuple[dict[str, Tensor], dict]:
    """The embeddings of prompts by a text-to-image model's own text encoders, and what is to be known of them."""
    settings = ModelSettings.of(settings)
    return _kind(settings).embed(settings, prompts, device)


def identity(settings: Settings) -> dict:
    """Short JSON-ready data that identify a model: kind, source, commit (if it is from a hub) and fingerprint."""
    settings = ModelSettings.of(settings)
    weights = Path(settings.weights)
    origin: Any = {"source": settings.source or weights.name}
    if (weights / ORIGIN).exists():
        origin = read_json(weights / ORIGIN)
    return {"kind": settings.kind, **origin, "fingerprint": signature(weights)}


def _kind(settings: ModelSettings) -> ModuleType:
    if not isinstance(settings.kind, str) or settings.kind not in KINDS:
        raise unknown("kind of model", settings.kind, KINDS)
    return import_module(f"s4spipe.models.{settings.kind}")
