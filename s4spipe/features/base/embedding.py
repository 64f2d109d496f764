"""What features networks have in common that are given images as they are."""

import numpy as np
from torch import Tensor, nn


class Embedding(nn.Module):
    """A network with features of images of any size. A subclass has `embed`."""

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, d] of images [B, C, height, width] in [-1, 1]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, d] of images in [0, 255], as clean-fid passes them on."""
        return self.embed(images / 127.5 - 1)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """The difference [B, d] between the features of images in [-1, 1]."""
        return self.embed(x) - self.embed(y)

    @staticmethod
    def resize(image: np.ndarray) -> np.ndarray:
        """An image [height, width, C], as float32: it is not resized."""
        return image.astype(np.float32)
