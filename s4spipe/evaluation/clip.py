"""The CLIP score: how well images match their prompts."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from s4spipe.runtime.errors import UserError, needs


@torch.inference_mode()
def score(images: np.ndarray, prompts: list[str], path: str, device: torch.device, batch_size: int = 64) -> float:
    """The mean of 100 max(cos(image, prompt), 0) (Hessel et al. 2021, arXiv 2104.08718, at the usual scale).

    Args:
        images: uint8 [n, 3, height, width], image i for prompt i; after the last prompt, the first comes again.
        prompts: the prompts.
        path: the CLIP model: a local folder, or an id on a hub.
        device: where the model runs.
        batch_size: images at a time.

    Raises UserError if transformers is missing, there is no whole model, or the score is not finite.
    """
    model, processor = _load(path, device)
    longest = min(processor.tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
    cosines = []
    for start in tqdm(range(0, len(images), batch_size), "clip", unit="batch", disable=None):
        batch = torch.from_numpy(np.array(images[start : start + batch_size]))
        asked = [prompts[i % len(prompts)] for i in range(start, start + len(batch))]
        inputs = processor(text=asked, images=list(batch), return_tensors="pt", padding=True, truncation=True,
                           max_length=longest)  # fmt: skip
        out = model(**inputs.to(device))
        cosines.append(torch.cosine_similarity(out.image_embeds, out.text_embeds).clamp(min=0).cpu())
    value = 100 * torch.cat(cosines).mean().item()
    if not math.isfinite(value):
        raise UserError(f"fid.clip: the score by {path!r} is not finite; get its weights again, or make it none")
    return value


def _load(path: str, device: torch.device) -> tuple[Any, Any]:
    """The model and its processor. What a folder lacks, transformers replaces by random numbers, with a warning."""
    with needs("full", "fid.clip"):
        from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    if not Path(path).exists():
        print(f"fid.clip: downloading {path} from the model hub", file=sys.stderr)
    try:
        kind = CLIPConfig.get_config_dict(path)[0].get("model_type")
        if kind != "clip":
            raise ValueError(f"its config.json is of model_type {kind}, not clip")
        model, info = CLIPModel.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True)
        processor = CLIPProcessor.from_pretrained(path)
        wrong = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
        wrong = sorted(key for key in wrong if not key.endswith("position_ids"))  # which old files have
        if wrong:
            raise ValueError(f"{len(wrong)} of its weights are absent or of other shapes: {', '.join(wrong)}")
        if processor.tokenizer.vocab_size <= len(processor.tokenizer.all_special_ids):
            raise ValueError("it has no tokenizer.json, and no vocab.json with merges.txt")
    except Exception as error:  # what a folder holds may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"fid.clip: no CLIP model at {path!r} ({reason}); name a local folder, or make it "
                        "none") from None  # fmt: skip
    return model.to(device).eval(), processor
