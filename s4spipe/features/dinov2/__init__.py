"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), whose Fréchet distance agrees with people better than Inception's does
(FD-DINOv2, Stein et al. 2023, arXiv 2306.04675)."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from s4spipe.runtime.errors import UserError, needs
from s4spipe.runtime.files import missing, read_json

SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, in [0, 1]


class DINOv2(nn.Module):
    """The class token of the last layer, normalised, of images of 224 pixels. For FID, images are resized by PIL's
    bicubic filter, as in clean-fid."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: Any):
        super().__init__()
        self.net = net
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, width] of images [B, 3, 224, 224] in [0, 255]."""
        return self.net((images / 255 - self.mean) / self.deviation).last_hidden_state[:, 0]

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, width] of images [B, 1 or 3, height, width] in [-1, 1], resized and clipped to that range."""
        images = images.float().expand(-1, 3, -1, -1)
        resized = interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True)
        return self((resized.clamp(-1, 1) + 1) * 127.5)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """The difference [B, d] between the features of images in [-1, 1]."""
        return self.embed(x) - self.embed(y)

    @cached_property
    def resizer(self) -> Any:
        from cleanfid.resize import make_resizer

        return make_resizer("PIL", False, "bicubic", (SIDE, SIDE))

    def resize(self, image: np.ndarray) -> np.ndarray:
        """An image [height, width, 1 or 3] as float32 [224, 224, 3]."""
        return self.resizer(np.broadcast_to(image, (*image.shape[:2], 3))).astype(np.float32)


def load(path: str, mode: str = "") -> DINOv2:
    """DINOv2 from a folder with transformers' config.json and weights, such as that of facebook/dinov2-large.

    Raises UserError if transformers is not installed, and for a folder of something else or without all weights.
    """
    with needs("full", "the features network dinov2"):
        from transformers import Dinov2Model
    folder = Path(path)
    if not folder.exists():
        raise missing(path)
    try:
        kind = read_json(folder / "config.json").get("model_type")
        if kind != "dinov2":
            raise ValueError(f"its config.json is of model_type {kind}, not dinov2")
        net, found = Dinov2Model.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        if lacking := sorted(found["missing_keys"]):
            raise ValueError(f"its files lack {len(lacking)} weights, such as {lacking[0]}")
    except Exception as error:  # what a folder holds may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"{path}: not a folder of DINOv2 ({reason}); put that of facebook/dinov2-large there") from None
    return DINOv2(net)
