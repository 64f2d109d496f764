"""CLIP models (Radford et al. 2021, arXiv 2103.00020), and models of people's preferences that have their form."""

import sys
from pathlib import Path
from typing import Any

import torch

from s4spipe.runtime.errors import UserError, needs


def load(path: str, device: torch.device, key: str, instead: str = "make it none") -> tuple[Any, Any, int]:
    """The model, its processor, and the most tokens that a prompt may have. What a folder lacks, transformers replaces
    by random numbers, with a warning: that is refused.

    Args:
        path: a local folder, or an id on a hub.
        device: where the model runs.
        key: the key of params.yaml that holds `path`, and
        instead: what else could be done, for messages.

    Raises UserError if transformers is missing, or there is no whole model.
    """
    with needs("full", key):
        from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    if not Path(path).exists():
        print(f"{key}: downloading {path} from the model hub", file=sys.stderr)
    try:
        kind = CLIPConfig.get_config_dict(path)[0].get("model_type")
        if kind != "clip":
            raise ValueError(f"its config.json is of model_type {kind}, not clip")
        model, info = CLIPModel.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True)
        processor = CLIPProcessor.from_pretrained(path)
        wrong = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
        wrong = sorted(name for name in wrong if not name.endswith("position_ids"))  # which old files have
        if wrong:
            raise ValueError(f"{len(wrong)} of its weights are absent or of other shapes: {', '.join(wrong)}")
        if processor.tokenizer.vocab_size <= len(processor.tokenizer.all_special_ids):
            raise ValueError("it has no tokenizer.json, and no vocab.json with merges.txt")
    except Exception as error:  # what a folder holds may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"{key}: no CLIP model at {path!r} ({reason}); name a local folder, or {instead}") from None
    longest = min(processor.tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
    return model.to(device).eval(), processor, longest
