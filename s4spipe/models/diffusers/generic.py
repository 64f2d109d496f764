"""A denoiser for any pipeline that encodes prompts and prepares latents, by its own `__call__` (see `through`)."""

import difflib
import inspect
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from s4spipe.models.base import dry_call, prediction, tokens
from s4spipe.models.base.denoiser import Denoiser, few
from s4spipe.models.base.settings import ModelSettings
from s4spipe.models.diffusers import conditions
from s4spipe.models.diffusers.conditions import Encoded
from s4spipe.models.diffusers.folder import check_parts, index, load_part, scheduler_config, told
from s4spipe.models.diffusers.through import NETWORKS, Through
from s4spipe.runtime.errors import UserError, shown

NETWORK_CLASSES = (diffusers.ModelMixin, transformers.PreTrainedModel)
FOR_TEXT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder", "processor")
FOR_IMAGES = ("safety_checker", "feature_extractor", "image_encoder")


class Generic(Denoiser):
    """The denoiser in a pipeline's folder. A condition is the index of an encoded prompt.

    Guidance is the pipeline's own: an evaluation is its guided output. Latents in tokens that are patches of 2x2 of an
    image are turned into that image; samples [L, C] are other tokens, which have no frequencies.

    Args:
        folder: the pipeline's folder.
        settings: `settings.pipeline` are arguments of the pipeline's call.
    """

    in_order = True

    def __init__(self, folder: Path, settings: ModelSettings):
        super().__init__()
        cls = pipeline_class(folder)
        if settings.condition != "prompts" or settings.embeddings is None:
            raise UserError("model.condition: must be prompts for this pipeline, with a file of `prompts`")
        self.training_of = prediction.read(scheduler_config(folder))
        self.noise_schedule = self.training_of.noise
        self.encoded = Encoded(settings.embeddings)
        self.num_classes = len(self.encoded)
        without_text = [key for key in _parts(cls) if key.startswith(FOR_TEXT)]
        try:
            self._enter(_load(cls, folder, without_text), arguments(cls, settings))
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception:  # some pipelines ask their text encoders for something, such as their width
            with _entering(cls):
                self._enter(_load(cls, folder, []), arguments(cls, settings))

    def _enter(self, pipe: Any, call: dict[str, Any]) -> None:
        self.through = Through(pipe, call)
        self.net = self.through.net
        self.others = torch.nn.ModuleList(part for part in pipe.components.values()
                                          if isinstance(part, torch.nn.Module) and part is not self.net)  # fmt: skip
        one = self._conditions([0], torch.empty(0))
        packed = self.through.prepared(one)
        self.grid = self._grid(pipe, packed)
        self.sample_shape = tuple(self.grid.image(packed).shape[1:])
        own = getattr(self.net.config, "in_channels", None)  # some videos have their frames first
        first = own is None or self.grid.rows > 0 or self.sample_shape[0] == own
        self.frequencies = first and (len(self.sample_shape) > 2 or not hasattr(pipe, "_pack_latents"))
        self._calibrate(packed, one)

    def guide(self, guidance: float) -> None:
        """Nothing is to be done: the pipeline is given its guidance scale by `arguments`."""

    @property
    def network_calls(self) -> int:
        return self.calls

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            raise UserError("model.condition: must be prompts for this pipeline")
        if self.net is not self.through.net:  # compiled since
            self.through.replace(self.net)
        parts: dict[Any, list[int]] = {}
        for row, prompt in enumerate(condition.tolist()):  # rows that can be evaluated in one call
            kind = row if self.encoded.alone else self.encoded.shapes(prompt)
            parts.setdefault((kind, None if self.through.time else float(t[row].detach())), []).append(row)
        rows, outputs = [row for part in parts.values() for row in part], []
        for part in parts.values():
            given = self._conditions([int(condition[row]) for row in part], x)
            outputs.append(self._output(x[part], t[part], given))
        out = torch.cat(outputs)[torch.tensor(rows, device=x.device).argsort()]
        wide = (slice(None), *[None] * (x.ndim - 1))
        alpha, sigma = (f(t)[wide].to(x.dtype) for f in (self.noise_schedule.alpha, self.noise_schedule.sigma))
        return self.training_of.to_x0(x, out, alpha, sigma)

    def decode(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]; the frames of a video stand side by side in one image, and a sound is its
        spectrogram."""
        return torch.cat([self._decode(part) for part in few(x)])

    def _decode(self, x: Tensor) -> Tensor:
        given = self._conditions([0] * len(x), x)
        with _entering(type(self.through.pipe)):
            made = self.through.decode(self.grid.tokens(x.to(self._dtype)), given)
        if not isinstance(made, Tensor) or not 2 <= made.ndim <= 5:
            raise UserError(f"{type(self.through.pipe).__name__} decodes its latents to {shown(made, 60)}, and not to "
                            "images, videos or sounds")  # fmt: skip
        if made.ndim < 4:
            return spectrogram(made if made.ndim == 2 else made.mean(1))
        if made.ndim == 5:
            made = made.permute(0, 2, 3, 1, 4).flatten(3)
        return 2 * made - 1

    def set_precision(self, precision: torch.dtype) -> None:
        super().set_precision(precision)
        self.to(precision)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def _output(self, x: Tensor, t: Tensor, given: list[Any]) -> Tensor:
        times = self.training_of.network_time(t)
        out = self.through.output(self.grid.tokens(x.to(self._dtype)), times, given)
        return dry_call.output(self.grid.image(out), x)

    def _conditions(self, chosen: list[int], x: Tensor) -> list[Any]:
        like = torch.empty(0, device=x.device, dtype=self._dtype)
        return conditions.together([self.encoded.tensors(i, like) for i in chosen], self.encoded.rules)

    def _calibrate(self, x: Tensor, one: list[Any]) -> None:
        noise = self.noise_schedule
        lam = torch.tensor([-1.0, 1.0, 0.3], dtype=torch.float64)
        t = self.training_of.network_time(noise.inverse(lam).clamp(noise.t_min, noise.T)).float()
        self.calls = self.through.calibrate(x, t, one)

    def _grid(self, pipe: Any, x: Tensor) -> tokens.Grid:
        """How the tokens x [1, L, C] lie in their image, if they are patches as Flux's are."""
        size = self.through.size
        if x.ndim != 3 or size is None or not hasattr(pipe, "_pack_latents"):
            return tokens.Grid()
        try:
            lie = tokens.grid(x, size, 2)
            image = torch.randn_like(lie.image(x))
            packed = pipe._pack_latents(image, *image.shape)
        except (UserError, TypeError, RuntimeError):
            return tokens.Grid()
        return lie if packed.shape == x.shape and torch.equal(packed, lie.tokens(image)) else tokens.Grid()


def _entering(cls: Any) -> AbstractContextManager[None]:
    """Raises UserError for what a pipeline raises that is called for one step, or for none."""
    return told(
        f"{cls.__name__} cannot be called for a single step or for none, which the adapter for all pipelines does"
    )


def spectrogram(sound: Tensor) -> Tensor:
    """The magnitudes [B, 1, 129, T] of sounds [B, L] by frequency and time, in logarithms: -1 is 1e-5, and 1 is 1."""
    window, length = torch.hann_window(256, device=sound.device), max(256, sound.shape[-1])
    padded = torch.nn.functional.pad(sound.float(), (0, length - sound.shape[-1]))
    made = torch.stft(padded, 256, 64, window=window / window.sum(), return_complex=True)
    magnitude = (made.real.square() + made.imag.square() + 1e-10).sqrt()  # smooth at 0
    return (magnitude.log10() / 2.5 + 1)[:, None]


def pipeline_class(folder: Path) -> Any:
    """The class of a folder's pipeline. Raises UserError if it is none of diffusers'."""
    name = index(folder).get("_class_name")
    cls = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)):
        known = [key for key in dir(diffusers) if key.endswith("Pipeline")]
        close = difflib.get_close_matches(name[:100], known, n=1) if isinstance(name, str) else []
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"{folder}: unknown pipeline {shown(name)}: {hint}its model_index.json must name a class of "
                        f"diffusers, of which {diffusers.__version__} is installed")  # fmt: skip
    return cls


def arguments(cls: Any, settings: ModelSettings) -> dict[str, Any]:
    """What to call the pipeline with: `model.pipeline`, and the guidance and the size that stand beside it."""
    known, given = inspect.signature(inspect.unwrap(cls.__call__)).parameters, dict(settings.pipeline)
    own: dict[str, Any] = {}
    for keys, what, value, usual in (
        (("guidance_scale",), "guidance", settings.guidance, 1.0),
        (("height", "width"), "size", settings.size, None),
    ):
        if value != usual and not set(keys) <= set(known):
            raise UserError(f"model.{what}: the call of {cls.__name__} does not take {' and '.join(keys)}; name its "
                            "own argument in model.pipeline")  # fmt: skip
        own |= {key: value for key in keys if key in known and value is not None}
    return own | given


@torch.inference_mode()
def embed(
    settings: ModelSettings, prompts: list[str], device: torch.device
) -> tuple[dict[str, Tensor], list[conditions.Rule]]:
    """What the pipeline's `encode_prompt` returns for each prompt, as tensors, and the rules to put them together.

    The text encoders are loaded, but not the network: of that, the pipeline knows the config.
    """
    folder = Path(settings.weights)
    cls = pipeline_class(folder)
    pipe = _load(cls, folder, [key for key in _parts(cls) if key.startswith(FOR_IMAGES)], nets=False).to(device)
    with _entering(cls):
        return _encoded(Through(pipe, arguments(cls, settings)), prompts, folder)


def _encoded(through: Through, prompts: list[str], folder: Path) -> tuple[dict[str, Tensor], list[conditions.Rule]]:
    rules: list[conditions.Rule] = []
    rows: list[list[Tensor]] = []
    for prompt in tqdm(prompts, "prompts", unit="prompt", disable=None):
        one = through.encode([prompt])
        if not rules:
            two = through.encode([prompt, prompt])
            rules = [conditions.rule(a, b) for a, b in zip(one, two, strict=True)]
        rows.append(
            [part.cpu() for made, how in zip(one, rules, strict=True) for part in conditions.tensors(made, how)]
        )
        for part in rows[-1]:
            if not part.isfinite().all():
                raise UserError(f"{folder}: its text encoder gives numbers that are not finite: check its weights")
    if rules and not conditions.agree(rows, rules):
        rules[0]["alone"] = True  # prompts are evaluated one by one
    return conditions.stacked(rows), rules


def _parts(cls: Any) -> dict[str, inspect.Parameter]:
    return {key: known for key, known in inspect.signature(cls.__init__).parameters.items() if key != "self"}


def _load(cls: Any, folder: Path, absent: list[str], nets: bool = True) -> Any:
    """The pipeline without the parts `absent`; without `nets`, its networks are only their configs."""
    there = index(folder)
    without = [*absent, *([] if nets else [key for key in NETWORKS if key in there])]
    check_parts(folder, set(there) - set(without))
    unsaved = [key for key, known in _parts(cls).items() if there.get(key) == [None, None]
               or (key not in there and known.default is known.empty)]  # fmt: skip
    given: dict[str, Any] = dict.fromkeys(key for key in (*without, *unsaved) if key in _parts(cls))
    for key in set(there) - set(without):
        if (kind := _network(there, key)) is not None:
            given[key] = load_part(kind, folder, key)
    pipe = cls.from_pretrained(folder, **given, local_files_only=True)
    if not nets:  # made anew, as a pipeline asks its networks' configs for sizes when it is made
        options = {key: pipe.config[key] for key in _parts(cls) if key in pipe.config}
        pipe = cls(**options | pipe.components | _outlines(folder, there))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _outlines(folder: Path, there: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's networks by their configs alone."""
    found = {}
    for key in NETWORKS:
        if (kind := _network(there, key)) is not None:
            with torch.device("meta"):
                found[key] = _Outline(_of_config(kind, folder / key))
    return found


def _network(there: dict[str, Any], key: str) -> Any:
    """The class of this part of a pipeline, if it is a network of diffusers or transformers."""
    library, name = there[key] if isinstance(there.get(key), list) else (None, None)
    kind = getattr(transformers if library == "transformers" else diffusers, str(name), None)
    return kind if isinstance(kind, type) and issubclass(kind, NETWORK_CLASSES) else None


def _of_config(kind: Any, folder: Path) -> Any:
    return kind.from_config(kind.load_config(folder))


class _Outline:
    """A network without weights, which is no part of a pipeline that could say on which device that is."""

    def __init__(self, net: Any):
        self.net = net

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)
