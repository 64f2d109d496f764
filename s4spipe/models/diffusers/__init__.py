"""diffusers pipelines, from a folder that `save_pretrained` wrote or that was downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.base.prediction import noise_schedule as noise_schedule_of
from s4spipe.models.base.settings import ModelSettings
from s4spipe.models.diffusers.folder import index, scheduler_config
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError, unknown


def noise_schedule(settings: ModelSettings) -> NoiseSchedule:
    """The noise schedule in the pipeline's scheduler config."""
    folder = Path(settings.weights)
    index(folder)
    return noise_schedule_of(scheduler_config(folder))


def load(settings: ModelSettings) -> Denoiser:
    """The denoiser of the pipeline in the folder settings.weights.

    Raises UserError for a folder that holds no pipeline, or one without an adapter here, or an incomplete one.
    """
    from s4spipe.models.diffusers.adapters import ADAPTERS

    name = index(Path(settings.weights)).get("_class_name")
    if not isinstance(name, str) or name not in ADAPTERS:
        raise UserError(f"{settings.weights}: {unknown('pipeline', name, ADAPTERS)}")
    with _whole(settings.weights, name):
        return ADAPTERS[name](Path(settings.weights), settings)


def embed(settings: ModelSettings, prompts: list[str], device: torch.device) -> dict[str, torch.Tensor]:
    """What the stage `prompts` keeps of them (see `prompts.embed`)."""
    from s4spipe.models.diffusers import prompts as text

    with _whole(settings.weights, "text-to-image pipeline"):
        return text.embed(settings, prompts, device)


@contextmanager
def _whole(folder: str, what: str) -> Iterator[None]:
    """Raises UserError for what a broken folder raises: errors of many kinds, in diffusers, safetensors and json."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{folder}: not a complete {what} ({reason[0][:200]})") from None
