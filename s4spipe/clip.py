"""CLIP score: how well images show what their prompts say."""

import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from s4spipe import prompts
from s4spipe.errors import UserError
from s4spipe.params import Params


@torch.inference_mode()
def score(images: np.ndarray, params: Params, device: torch.device, batch_size: int = 64) -> float:
    """The mean of 100 max(cos(image, prompt), 0) (Hessel et al. 2021, arXiv 2104.08718, at the usual scale).

    images: uint8 [n, 3, height, width], image i of prompt i of the file in params.prompts (which begins again at its
    end), as the stage `sample` makes them. The CLIP model is params.fid.clip, a local folder or an id of a hub.

    Raises UserError if transformers is missing, or there is no such model.
    """
    path = params.fid.clip
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ModuleNotFoundError:
        raise UserError("fid.clip needs a package: pip install transformers") from None
    if not Path(path).exists():
        print(f"fid.clip: downloads {path} from the hub of models", file=sys.stderr)
    try:
        model, processor = CLIPModel.from_pretrained(path).to(device).eval(), CLIPProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"fid.clip: no CLIP model at {path!r} ({str(error).splitlines()[0][:150]}); give "
                        "a local folder, or null") from None  # fmt: skip
    texts, cosines = prompts.read(params.prompts), []
    for start in tqdm(range(0, len(images), batch_size), "clip", unit="batch", disable=None):
        batch = torch.from_numpy(np.array(images[start : start + batch_size]))
        asked = [texts[i % len(texts)] for i in range(start, start + len(batch))]
        inputs = processor(text=asked, images=list(batch), return_tensors="pt", padding=True, truncation=True)
        out = model(**inputs.to(device))
        cosines.append(torch.cosine_similarity(out.image_embeds, out.text_embeds).clamp(min=0).cpu())
    return 100 * torch.cat(cosines).mean().item()
