"""The CLIP score: how well images match their prompts."""

import math

import numpy as np
import torch
from tqdm import tqdm

from s4spipe.features import clip
from s4spipe.runtime.errors import UserError


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
    model, processor, longest = clip.load(path, device, "fid.clip")
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
