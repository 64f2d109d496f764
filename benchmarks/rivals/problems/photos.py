"""Two small models of natural images: patches of the photographs that scikit-learn ships.

Patches are 16x16x3, from the photographs at half their size. The denoiser sees them as 8x8x12 (torch's
pixel_unshuffle), which keeps distances, and so the ODE, and costs a quarter.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from s4spipe.features.digits import to_255
from s4spipe.runtime.files import read_tensors

SIDE, CELLS = 16, (4, 6)
WEIGHTS = "models/photos.safetensors"
# What the fits may see, and what judges them: networks of other shapes, from other seeds.
NETWORKS = {"seen": ((32, 64, 64), 3, 1), "judge": ((24, 48, 96), 5, 2)}


def photographs() -> Tensor:
    """Both, float32 [2, 3, 213, 320] in [-1, 1]."""
    from sklearn.datasets import load_sample_images

    images = torch.tensor(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    return avg_pool2d(images.float() / 127.5 - 1, 2)


def patches(images: Tensor, rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
    """n patches [n, 3, 16, 16] at random places, half of them mirrored, and which of 2 x 4 x 6 places each is from."""
    rows, columns = images.shape[2] - SIDE + 1, images.shape[3] - SIDE + 1
    k, y, x = (torch.tensor(rng.integers(high, size=n)) for high in (len(images), rows, columns))
    ahead = torch.arange(SIDE)
    found = images[k[:, None, None], :, (y[:, None] + ahead)[:, :, None], (x[:, None] + ahead)[:, None, :]]
    found = found.permute(0, 3, 1, 2).contiguous()
    mirrored = torch.tensor(rng.random(n) < 0.5)
    found[mirrored] = found[mirrored].flip(3)
    places = (k * CELLS[0] + y * CELLS[0] // rows) * CELLS[1] + x * CELLS[1] // columns
    return found, places


class PatchFeatures(nn.Module):
    """A classifier of where a patch is from; its last hidden layer are its features [B, 64].

    Images go in as float32 [B, 3, 16, 16] in [0, 255].
    """

    def __init__(self, channels: tuple[int, int, int], kernel: int):
        super().__init__()
        a, b, c = channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, a, kernel, padding=kernel // 2),
            nn.SiLU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(b, c, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(16 * c, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, 2 * CELLS[0] * CELLS[1])

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images / 127.5 - 1)

    def embed(self, images: Tensor) -> Tensor:
        """Features of images in [-1, 1], clipped to it."""
        return self(to_255(images.float().clamp(-1, 1)))


def path(which: str) -> str:
    """The file of a network of `NETWORKS`."""
    return f"models/photos_{which}.safetensors"


def load_features(which: str) -> PatchFeatures:
    """A network of `NETWORKS`, frozen."""
    channels, kernel, _ = NETWORKS[which]
    net = PatchFeatures(channels, kernel)
    net.load_state_dict(read_tensors(path(which))[0])
    return net.eval().requires_grad_(False)
