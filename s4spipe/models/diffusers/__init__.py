"""diffusers pipelines, from a folder that `save_pretrained` wrote or that was downloaded."""

from pathlib import Path

import torch

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.base.prediction import noise_schedule as noise_schedule_of
from s4spipe.models.base.settings import ModelSettings
from s4spipe.models.diffusers.folder import index, scheduler_config, told
from s4spipe.models.noise import NoiseSchedule


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

    folder = Path(settings.weights)
    name = str(index(folder).get("_class_name"))[:80]
    with told(f"{settings.weights}: not a complete {name}"):
        if _has_adapter(settings):
            return ADAPTERS[name](folder, settings)
        from s4spipe.models.diffusers.generic import Generic

        return Generic(folder, settings)


def embed(settings: ModelSettings, prompts: list[str], device: torch.device) -> tuple[dict[str, torch.Tensor], dict]:
    """What the stage `prompts` keeps of them: tensors, and how they belong together."""
    with told(f"{settings.weights}: not a complete text-to-image pipeline"):
        if _has_adapter(settings):
            from s4spipe.models.diffusers import prompts as text

            tensors = text.embed(settings, prompts, device)
            return tensors, {"guided": len(tensors["embeds"]) > len(prompts)}
        from s4spipe.models.diffusers import generic

        tensors, rules = generic.embed(settings, prompts, device)
        return tensors, {"guided": False, "rules": rules}


def _has_adapter(settings: ModelSettings) -> bool:
    """Whether the pipeline has an adapter of its own, which takes no other arguments."""
    from s4spipe.models.diffusers.adapters import ADAPTERS

    name = index(Path(settings.weights)).get("_class_name")
    return not settings.pipeline and isinstance(name, str) and name in ADAPTERS
