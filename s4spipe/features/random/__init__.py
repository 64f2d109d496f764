"""Features of a random convolutional network: for images that no trained network is at hand for.

Such features tell blurred images from sharp ones, and wrong colours and textures from right ones, but no objects.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, conv2d, silu

from s4spipe.features.base.embedding import Embedding

WIDTH, SCALES, SMALLEST = 24, 4, 4  # channels of a layer; how often an image is halved at most, and to which side
SIZE = 64  # of the features
BESIDE = (1, 8)  # the seeds of those that a refinement sees beside its network's; FID's are of seed 0


class RandomFeatures(Embedding):
    """Two layers of random filters on an image and its halved copies: means by quarter and deviations of the channels,
    projected at random to 64 numbers.

    The filters depend on the seed, and on the number of channels alone.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = seed
        self.register_buffer("place", torch.empty(0), persistent=False)  # where it computes

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, 64] of images [B, C, height, width] in [-1, 1], clipped to that range.

        What is no image, or has a side below 4 pixels, is only projected.
        """
        x, found = images.float().clamp(-1, 1), []
        if x.ndim != 4 or min(x.shape[2:]) < SMALLEST:
            x = x.flatten(1)
            return x @ _projection(self.seed, x.shape[1]).to(x)
        for scale in range(SCALES):
            if scale and min(x.shape[2:]) < 2 * SMALLEST:
                break
            x = avg_pool2d(x, 2) if scale else x
            seen = x
            for layer in range(2):
                seen = silu(conv2d(seen, self._filters(scale, layer, seen.shape[1]).to(seen), padding=1))
            found += [adaptive_avg_pool2d(seen, 2).flatten(1), (seen.var((2, 3)) + 1e-4).sqrt()]
        joined = torch.cat(found, 1)
        return joined @ _projection(self.seed, joined.shape[1]).to(joined)

    def _filters(self, scale: int, layer: int, channels: int) -> Tensor:
        return _normal((WIDTH, channels, 3, 3), self.seed, scale, layer) * (2 / (9 * channels)) ** 0.5


@lru_cache(maxsize=64)
def _normal(shape: tuple[int, ...], *seed: int) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


@lru_cache(maxsize=8)
def _projection(seed: int, width: int) -> Tensor:
    """Orthonormal columns [width, 64]; fewer, if the width is less."""
    drawn = np.random.default_rng((seed, SCALES)).standard_normal((width, min(width, SIZE)))
    return torch.tensor(np.linalg.qr(drawn)[0], dtype=torch.float32)


def joined(images: Tensor) -> Tensor:
    """The features [B, 128] of images [B, C, height, width] that stand beside a network's: those of two seeds."""
    return torch.cat([RandomFeatures(seed).embed(images) for seed in BESIDE], 1)


def beside(embed: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], list[Tensor]]:
    """What learning by a Fréchet distance sees of samples x [B, ...]: the features of a network, and random ones.

    Args:
        embed: images -> features [B, d] of the network.
        decode: samples -> images.
    """

    def seen(x: Tensor) -> list[Tensor]:
        images = decode(x)
        return [embed(images), joined(images)]

    return seen


def load(path: str, mode: str = "") -> RandomFeatures:
    """The network, which reads no file."""
    return RandomFeatures()
