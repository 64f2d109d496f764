"""Embedded prompts: computed once with a pipeline's own text encoders, and read row by row."""

import inspect
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from s4spipe.models.base.settings import ModelSettings
from s4spipe.models.diffusers.folder import check_parts, index, load_part
from s4spipe.runtime.errors import UserError, unknown
from s4spipe.runtime.files import read_tensors

ENCODERS = ("FluxPipeline", "StableDiffusion3Pipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline")
NETWORKS = ("unet", "transformer", "vae", "safety_checker", "feature_extractor", "image_encoder")  # not for text


@torch.inference_mode()
def embed(settings: ModelSettings, prompts: list[str], device: torch.device, batch_size: int = 16) -> dict[str, Tensor]:
    """Embed prompts: embeds [n(+1), L, D] and, if the pipeline has them, pooled embeddings [n(+1), P].

    The rows are those of the pipeline's own `encode_prompt`. The row after the last prompt stands for no prompt; Flux
    does not have it.
    """
    folder = Path(settings.weights)
    there = index(folder)
    name = there.get("_class_name")
    if name not in ENCODERS:
        raise UserError(f"{folder}: {unknown('text-to-image pipeline', name, ENCODERS)}")
    cls = getattr(diffusers, name)
    parts = inspect.signature(cls.__init__).parameters
    unsaved = [key for key in parts if key.startswith(("text_", "token")) and there.get(key, [None])[0] is None]
    # Without T5, SD3 takes the width of the embeddings from its transformer.
    needed = {"transformer"} if "text_encoder_3" in unsaved else set()
    absent = [*unsaved, *(key for key in NETWORKS if key in parts and key not in needed)]
    check_parts(folder, set(there) - set(absent))
    encoders = {key: getattr(transformers, there[key][1]) for key in parts if key.startswith("text_encoder")
                and key not in unsaved}  # fmt: skip
    for key in parts:
        if key.startswith("token") and key not in unsaved and not any((folder / key).glob("*")):
            raise UserError(f"{folder}: its {key} is missing, without which prompts cannot be read")
    given = {key: load_part(encoder, folder, key) for key, encoder in encoders.items()}
    pipe = cls.from_pretrained(folder, **dict.fromkeys(absent), **given, local_files_only=True).to(device)
    guided, rows = name != "FluxPipeline", []
    options = {"device": device, "num_images_per_prompt": 1} | ({"do_classifier_free_guidance": True} if guided else {})
    options |= {key: None for key in ("prompt_2", "prompt_3") if key in inspect.signature(cls.encode_prompt).parameters}
    for start in tqdm(range(0, len(prompts), batch_size), "prompts", unit="batch", disable=None):
        rows.append(pipe.encode_prompt(prompts[start : start + batch_size], **options))
    # encode_prompt returns: SD (own, none); SDXL and SD3 (own, none, pooled, pooled none); Flux (own, pooled, ids).
    own, pooled = 0, {"StableDiffusionPipeline": None, "FluxPipeline": 1}.get(name, 2)
    tensors = {"embeds": torch.cat([row[own] for row in rows])}
    if pooled is not None:
        tensors["pooled"] = torch.cat([row[pooled] for row in rows])
    if guided:
        places = {"embeds": 1, "pooled": 3}
        tensors = {key: torch.cat([value, rows[0][places[key]][:1]]) for key, value in tensors.items()}
    for key, value in tensors.items():
        if not value.isfinite().all():
            raise UserError(f"{folder}: its text encoder gives numbers that are not finite ({key}): check its weights")
    return {key: value.cpu() for key, value in tensors.items()}


class Prompts:
    """The file of the stage `prompts`, read row by row: tens of thousands of embeddings may not fit into memory."""

    def __init__(self, path: str | Path):
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; name your file of prompts in `prompts` of params.yaml, and run "
                            "`dvc repro`")  # fmt: skip
        about = read_about(path)
        self.count = len(about["prompts"])
        self.null_condition = self.count if about["guided"] else None
        self.file, rows = safe_open(path, framework="pt"), self.count + about["guided"]
        if "embeds" not in self.file.keys():  # noqa: SIM118
            raise UserError(f"{path}: holds no embeddings; make it again with `dvc repro -f prompts`")
        for key in self.file.keys():  # noqa: SIM118
            if (there := self.file.get_slice(key).get_shape()[:1]) != [rows]:
                raise UserError(f"{path}: {key} must hold {rows} embeddings, got {there}; make it again with "
                                "`dvc repro -f prompts`")  # fmt: skip

    def __len__(self) -> int:
        return self.count

    def rows(self, indices: Tensor, like: Tensor) -> dict[str, Tensor]:
        """The embeddings of prompts [B], with the device and dtype of `like`."""
        where = indices.tolist()
        return {
            key: torch.cat([self.file.get_slice(key)[i : i + 1] for i in where]).to(like.device, like.dtype)
            for key in self.file.keys()  # noqa: SIM118
        }


def read_about(path: str | Path) -> dict:
    about = read_tensors(path, tensors=False)[1]
    known = isinstance(about, dict) and set(about) - {"rules"} == {"guided", "prompts", "model"}
    texts = about["prompts"] if known else None
    if not isinstance(texts, list) or not texts or {str} != set(map(type, texts)) or type(about["guided"]) is not bool:
        raise UserError(f"{path}: not a file of the stage prompts; make it again with `dvc repro -f prompts`")
    return about
