"""Prompts: their embeddings, computed once by a pipeline's own text encoders, and read row by row."""

import inspect
from pathlib import Path

import diffusers
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from s4spipe.errors import UserError
from s4spipe.files import read_tensors
from s4spipe.models import EMBEDDINGS
from s4spipe.models.diffusers import index

NETWORKS = ("unet", "transformer", "vae", "safety_checker", "feature_extractor", "image_encoder")  # not for text


@torch.inference_mode()
def embed(params: dict, prompts: list[str], device: torch.device, batch_size: int = 16) -> dict[str, Tensor]:
    """embeds [n(+1), L, D] and, where the pipeline has one, pooled [n(+1), P]; the row after the last is for no prompt.

    The rows are those of the pipeline's own `encode_prompt`. Flux has no row for no prompt.
    """
    there = index(params)
    name = there["_class_name"]
    cls = getattr(diffusers, name)
    parts = inspect.signature(cls.__init__).parameters
    unsaved = [key for key in parts if key.startswith(("text_", "token")) and there.get(key, [None])[0] is None]
    # Without T5, SD3 asks its transformer how wide the embeddings should be.
    needed = {"transformer"} if "text_encoder_3" in unsaved else set()
    absent = [*unsaved, *(key for key in NETWORKS if key in parts and key not in needed)]
    pipe = cls.from_pretrained(params["weights"], **dict.fromkeys(absent), local_files_only=True).to(device)
    guided, rows = name != "FluxPipeline", []
    options = {"device": device, "num_images_per_prompt": 1} | ({"do_classifier_free_guidance": True} if guided else {})
    options |= {key: None for key in ("prompt_2", "prompt_3") if key in inspect.signature(cls.encode_prompt).parameters}
    for start in tqdm(range(0, len(prompts), batch_size), "embed", unit="batch", disable=None):
        rows.append(pipe.encode_prompt(prompts[start : start + batch_size], **options))
    # What encode_prompt gives: SD (own, none); SDXL and SD3 (own, none, pooled, pooled none); Flux (own, pooled, ids).
    own, pooled = 0, {"StableDiffusionPipeline": None, "FluxPipeline": 1}.get(name, 2)
    tensors = {"embeds": torch.cat([row[own] for row in rows])}
    if pooled is not None:
        tensors["pooled"] = torch.cat([row[pooled] for row in rows])
    if guided:
        places = {"embeds": 1, "pooled": 3}
        tensors = {key: torch.cat([value, rows[0][places[key]][:1]]) for key, value in tensors.items()}
    return {key: value.cpu() for key, value in tensors.items()}


class Prompts:
    """The file of the stage `embed`, read row by row: tens of thousands of embeddings need not fit into memory."""

    def __init__(self, path: str | Path = EMBEDDINGS):
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; name your file of prompts in `prompts` of params.yaml, and run "
                            "`dvc repro`")  # fmt: skip
        about = read_about(path)
        self.count, self.nothing = about["count"], about["count"] if about["guided"] else None
        self.file = safe_open(path, framework="pt")

    def __len__(self) -> int:
        return self.count

    def rows(self, indices: Tensor, like: Tensor) -> dict[str, Tensor]:
        """The embeddings of prompts [B], on the device and of the type of `like`."""
        where = indices.tolist()
        return {
            key: torch.cat([self.file.get_slice(key)[i : i + 1] for i in where]).to(like.device, like.dtype)
            for key in self.file.keys()  # noqa: SIM118
        }


def read_about(path: str | Path) -> dict:
    about = read_tensors(path, tensors=False)[1]
    if not isinstance(about, dict) or set(about) != {"count", "guided", "model"}:
        raise UserError(f"{path}: not a file of the stage embed; make it again with `dvc repro -f embed`")
    return about
