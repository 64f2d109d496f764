"""The Inception network that FID is defined by, as clean-fid uses it."""

import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor

from s4spipe.errors import UserError
from s4spipe.files import missing


class Inception(InceptionV3W):
    """clean-fid's wrapper of the TorchScript file inception-2015-12-05.pt (NVIDIA's, from the original's weights).

    mode: clean resizes with PIL's bicubic filter (Parmar et al. 2022, arXiv 2104.11222); legacy_tensorflow leaves it to
    the network, as the original FID and EDM's do.
    """

    def __init__(self, path: str, mode: str):
        torch.nn.Module.__init__(self)  # the parent's wants a folder, and a fixed name in it
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
            self.base = torch.jit.load(path, map_location="cpu").eval()
        self.layers, self.mode, self.resize_inside = self.base.layers, mode, mode == "legacy_tensorflow"

    @cached_property
    def resizer(self):
        return build_resizer(self.mode)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """An image [height, width, 1 or 3], as float32 [.., .., 3] of the size that the network is given."""
        return self.resizer(np.broadcast_to(image, (*image.shape[:2], 3))).astype(np.float32)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of images [B, 3, height, width] in [0, 255]."""
        if self.resize_inside:
            return self.base(images, return_features=True).flatten(1)
        return self.layers((images - 128) / 128).flatten(1)


def load(path: str, mode: str = "clean") -> Inception:
    """Raises UserError for a file that is missing, or no TorchScript file with Inception's interface."""
    if not Path(path).exists():
        raise missing(path)
    try:
        return Inception(path, mode)
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise UserError(f"{path}: not the TorchScript file of Inception ({reason}); name it in `fetch` of params.yaml, "
                        "or put inception-2015-12-05.pt there") from None  # fmt: skip
