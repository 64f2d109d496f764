"""The Inception network that defines FID, as clean-fid uses it."""

import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor

from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import missing


class Inception(InceptionV3W):
    """clean-fid's wrapper of the TorchScript file inception-2015-12-05.pt (NVIDIA's, with the original weights).

    In the mode `clean`, images are resized with PIL's bicubic filter (Parmar et al. 2022, arXiv 2104.11222). In the
    mode `legacy_tensorflow`, the network resizes them itself, as for the original FID and EDM's.
    """

    def __init__(self, path: str, mode: str):
        torch.nn.Module.__init__(self)  # the parent's constructor needs a folder and a fixed file name
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
            self.base = torch.jit.load(path, map_location="cpu").eval()
        self.layers, self.mode, self.resize_inside = self.base.layers, mode, mode == "legacy_tensorflow"

    @cached_property
    def resizer(self):
        return build_resizer(self.mode)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Convert an image [height, width, 1 or 3] to float32 [.., .., 3], in the size that the network is given."""
        return self.resizer(np.broadcast_to(image, (*image.shape[:2], 3))).astype(np.float32)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of images [B, 3, height, width] in [0, 255]."""
        if self.resize_inside:
            return self.base(images, return_features=True).flatten(1)
        return self.layers((images - 128) / 128).flatten(1)


def load(path: str, mode: str = "clean") -> Inception:
    """Load the network. Raises UserError for a file that is missing or is not the TorchScript file of Inception."""
    if not Path(path).exists():
        raise missing(path)
    try:
        return Inception(path, mode)
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise UserError(f"{path}: not the TorchScript file of Inception ({reason}); name it in `fetch` of params.yaml, "
                        "or put inception-2015-12-05.pt there") from None  # fmt: skip
