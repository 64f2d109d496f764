"""CLIP score: how well images show what their prompts say."""

import numpy as np
import torch

from s4spipe import prompts
from s4spipe.errors import UserError
from s4spipe.params import Params


def score(images: np.ndarray, params: Params, device: torch.device, batch_size: int = 64) -> float:
    """The mean of 100 max(cos(image, prompt), 0) (Hessel et al. 2021, arXiv 2104.08718), by torchmetrics.

    images: uint8 [n, 3, height, width], image i of prompt i of the file in params.prompts (which begins again at its
    end), as the stage `sample` makes them. The CLIP model is params.fid.clip, a local folder or an id of a hub.

    Raises UserError if torchmetrics or transformers is missing.
    """
    try:
        from torchmetrics.multimodal.clip_score import CLIPScore

        metric = CLIPScore(model_name_or_path=params.fid.clip).to(device)
    except (ModuleNotFoundError, ImportError):
        raise UserError("fid.clip needs two packages: pip install torchmetrics transformers") from None
    except (OSError, ValueError) as error:
        raise UserError(f"fid.clip: no CLIP model at {params.fid.clip!r} ({str(error).splitlines()[0][:150]}); give "
                        "a local folder, or null") from None  # fmt: skip
    texts = prompts.read(params.prompts[0])
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
        metric.update(list(batch), [texts[i % len(texts)] for i in range(start, start + len(batch))])
    return metric.compute().item()
