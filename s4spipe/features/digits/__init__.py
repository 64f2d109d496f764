"""The features network for the embedded model: what Inception is for photographs, this is for 8x8 digits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from s4spipe.runtime.checks import check_shapes
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_tensors


def to_255(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 255], without rounding or clipping, so that gradients can pass."""
    return (images + 1) * 127.5


class DigitFeatures(nn.Module):
    """A classifier of digits. FID uses its last hidden layer, the perceptual distance uses all layers.

    Its input is what clean-fid passes on: float32 [B, 1, 8, 8] in [0, 255].
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 64), kernel: int = 3, width: int = 64):
        super().__init__()
        a, b, c = channels
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(1, a, kernel, padding=kernel // 2), nn.SiLU()),
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.SiLU()),
                nn.Sequential(nn.Conv2d(b, c, 3, padding=1), nn.SiLU()),
            ]
        )
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(c * 4 * 4, width), nn.SiLU())
        self.head = nn.Linear(width, 10)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The activations of every layer, each [B, channels, height, width]."""
        x, maps = images / 127.5 - 1, []
        for layer in self.layers:
            maps.append(x := layer(x))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, width]."""
        return self.last(self.maps(images)[-1])

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, width] of images in [-1, 1], clipped to that range and averaged over their channels.

        Raises UserError for images of another size.
        """
        if images.shape[2:] != (8, 8):
            raise UserError(f"the digits' features network sees images of 8x8 pixels, not {images.shape[2]}x"
                            f"{images.shape[3]}: set perceptual.network to lpips in params.yaml")  # fmt: skip
        return self(to_255(images.float().clamp(-1, 1).mean(1, keepdim=True)))

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """What LPIPS over these layers is the squared norm of, [B, m]: differences of normalised activations.

        It is eq. 1 of Zhang et al. 2018 (arXiv 1801.03924) without the learned channel weights. Images are in [-1, 1].
        """
        return torch.cat([a - b for a, b in zip(self._normalised(x), self._normalised(y), strict=True)], 1)

    def _normalised(self, images: Tensor) -> list[Tensor]:
        """The activations of every layer, each [B, m], each pixel's a vector of length height^-1/2 width^-1/2."""
        return [
            (maps / ((maps.norm(dim=1, keepdim=True) + 1e-8) * maps[0, 0].numel() ** 0.5)).flatten(1)
            for maps in self.maps(to_255(images.float()))
        ]

    @staticmethod
    def resize(image: np.ndarray) -> np.ndarray:
        """Convert an image [8, 8, C] to the network's input [8, 8, 1]. Raises UserError for another size."""
        if image.shape[:2] != (8, 8):
            raise UserError(f"the digits' features network sees images of 8x8 pixels, not {image.shape[0]}x"
                            f"{image.shape[1]}: set fid.network to inception in params.yaml")  # fmt: skip
        return image.mean(axis=2, keepdims=True, dtype=np.float32)


def load(path: str, mode: str = "clean") -> DigitFeatures:
    """Load the network. Raises UserError for a file that is missing, truncated or of another network."""
    tensors, about = read_tensors(path)
    try:
        shape = about.get("shape") or {}
        check_shapes(lambda: DigitFeatures(**shape), tensors)
        net = DigitFeatures(**shape)
        net.load_state_dict(tensors)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        raise UserError(f"{path}: not the weights of the digits' features network") from None
    return net
