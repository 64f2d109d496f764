"""Settings: which model to use, and how."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from s4spipe.runtime.checks import is_number
from s4spipe.runtime.errors import UserError, shown, unknown

ORIGIN = "s4spipe.json"  # in a downloaded model's folder: where it came from


@dataclass(frozen=True)
class ModelSettings:
    """The settings of a model, as the block `model` of params.yaml has them.

    Attributes:
        weights: path of a file or a folder.
        kind: callable, diffusers, digits or edm.
        name: name of the folder in runs/ that holds the results.
        condition: labels, prompts or none; None means labels if the model has classes.
        guidance: classifier-free guidance scale w; 1 means no guidance.
        precision: precision of the network on a GPU: float32, float16 or bfloat16.
        source: origin of the weights: an id on a model hub, a file, or `module:function`.
        revision: commit of `source` on its hub.
        size: side of the images in pixels, for pipelines that make images of several sizes.
        shape: shape of one x, if the network does not tell it.
        scheduler: keys of a diffusers scheduler's config, for kind callable.
        pipeline: arguments of a pipeline's call (num_frames, negative_prompt, ...), for kind diffusers.
        embeddings: file of embedded prompts, for a text-to-image model.
    """

    weights: str
    kind: str = "digits"
    name: str = "model"
    condition: str | None = None
    guidance: float = 1.0
    precision: str = "float32"
    source: str | None = None
    revision: str | None = None
    size: int | None = None
    shape: Sequence[int] | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    embeddings: str | None = None

    def __post_init__(self) -> None:
        sides = self.shape if isinstance(self.shape, list | tuple) else ()
        shaped = self.shape is None or (len(sides) > 0 and all(map(_is_side, sides)))
        for key, right, wanted in (
            ("weights", isinstance(self.weights, str | Path), "a path"),
            ("name", isinstance(self.name, str), "text"),
            ("condition", self.condition in (None, "labels", "prompts", "none"), "labels, prompts or none"),
            ("guidance", is_number(self.guidance) and 0 <= self.guidance < math.inf, "a number of at least 0"),
            ("source", isinstance(self.source, str | None), "text"),
            ("revision", isinstance(self.revision, str | None), "text"),
            ("size", self.size is None or _is_side(self.size), "a whole number of at least 1"),
            ("shape", shaped, "a list of whole numbers of at least 1"),
            ("scheduler", isinstance(self.scheduler, Mapping), "a mapping, as a scheduler's config"),
            ("pipeline", isinstance(self.pipeline, Mapping), "a mapping, the arguments of a pipeline's call"),
            ("embeddings", isinstance(self.embeddings, str | Path | None), "a path"),
        ):
            if not right:
                raise UserError(f"model.{key}: must be {wanted}, got {shown(getattr(self, key))}")

    @classmethod
    def of(cls, settings: "ModelSettings | Mapping[str, Any]") -> "ModelSettings":
        """Settings from a mapping with their keys; settings are returned as they are.

        Raises:
            UserError: for an unknown key, without weights, and for a value of the wrong kind.
        """
        if isinstance(settings, ModelSettings):
            return settings
        if not isinstance(settings, Mapping):
            raise UserError(f"a model's settings must be a mapping such as {{'weights': path}}, got {shown(settings)}")
        known = [entry.name for entry in fields(cls)]
        for key in settings:
            if key not in known:
                raise unknown("key of the model's settings", key, known)
        if settings.get("weights") is None:
            raise UserError("model.weights: missing; name a file or a folder")
        return cls(**{key: value for key, value in settings.items() if value is not None})


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
