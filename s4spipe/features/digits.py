"""The features network of the embedded default: what Inception is to photographs, for 8x8 digits."""

import numpy as np
import torch
from torch import Tensor, nn

from s4spipe.errors import UserError
from s4spipe.files import read_tensors
from s4spipe.images import to_255


class DigitFeatures(nn.Module):
    """A classifier of digits whose last hidden layer serves FID and whose layers serve the perceptual distance.

    Images go in as clean-fid gives them: float32 [B, 1, 8, 8] in [0, 255].
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.SiLU()),
                nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.SiLU()),
                nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU()),
            ]
        )
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.SiLU())
        self.head = nn.Linear(64, 10)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The activations of every layer, each [B, channels, height, width]."""
        x, maps = images / 127.5 - 1, []
        for layer in self.layers:
            maps.append(x := layer(x))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 64]."""
        return self.last(self.maps(images)[-1])

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """LPIPS's form over these layers, [B]: squared differences of unit-normalised activations of images in [-1, 1].

        Zhang et al. 2018 (arXiv 1801.03924), eq. 1, without its learned channel weights.
        """
        total = torch.zeros(len(x), device=x.device)
        for a, b in zip(*(self.maps(to_255(image.float())) for image in (x, y)), strict=True):
            a, b = (maps / (maps.norm(dim=1, keepdim=True) + 1e-8) for maps in (a, b))
            total = total + (a - b).square().sum(1).mean(dim=(1, 2))
        return total

    @staticmethod
    def resize(image: np.ndarray) -> np.ndarray:
        """An image [8, 8, C] as it goes in, [8, 8, 1]. Raises UserError for images of another size."""
        if image.shape[:2] != (8, 8):
            raise UserError(f"the digits' features network sees images of 8x8 pixels, not {image.shape[0]}x"
                            f"{image.shape[1]}: set fid.network to inception in params.yaml")  # fmt: skip
        return image.mean(axis=2, keepdims=True, dtype=np.float32)


def load(path: str, mode: str = "clean") -> DigitFeatures:
    """The network out of its weights. Raises UserError for a file that is missing, truncated or of another network."""
    net = DigitFeatures()
    tensors, _ = read_tensors(path)
    try:
        net.load_state_dict(tensors)
    except RuntimeError:
        raise UserError(f"{path}: not the weights of the digits' features network") from None
    return net
