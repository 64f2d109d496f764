"""Photographs that scikit-learn and scikit-image hold in their packages, and patches of them. Nothing is downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

FACES, FACES_SIDE = "lfw_subset.npy", 18  # of its 200 grey images of 25x25 pixels, the first hundred are faces
FOLDERS = ("sklearn.datasets/images", "skimage/data")


def source(name: str):
    """The file in the installed packages. Raises FileNotFoundError if there is none."""
    for folder in FOLDERS:
        package, _, inside = folder.partition("/")
        if (file := files(package) / inside / name).is_file():
            return file
    raise FileNotFoundError(f"{name}: in neither scikit-learn nor scikit-image, as they are installed")


@cache
def picture(name: str, channels: int, shrink: int) -> Tensor:
    """A photograph, `shrink` times smaller, or the hundred faces, of which all have one size.

    Returns float32 [1 or 100, channels, height, width] in [-1, 1].
    """
    from PIL import Image  # not needed by what samples

    with source(name).open("rb") as file:
        if name == FACES:
            faces = torch.tensor(np.load(file)[:100, None], dtype=torch.float32)
            return interpolate(faces, size=(FACES_SIDE, FACES_SIDE), mode="bilinear", antialias=True) * 2 - 1
        image = np.asarray(Image.open(file).convert("RGB" if channels == 3 else "L"))
    pixels = torch.tensor(image).view(*image.shape[:2], channels).permute(2, 0, 1)[None]
    return avg_pool2d(pixels.float() / 127.5 - 1, shrink)


@dataclass(frozen=True)
class Patches:
    """Patches [channels, side, side] at random places of photographs, half of them mirrored.

    Attributes:
        shrink: by name of a file, how many times smaller the photograph is made.
    """

    shrink: Mapping[str, int]
    channels: int
    side: int

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        """n patches [n, channels, side, side], and the index of the photograph that each is from."""
        which = torch.tensor(rng.integers(len(self.shrink), size=n))
        where, mirrored = rng.random((n, 3)), torch.tensor(rng.random(n) < 0.5)
        found, ahead = torch.empty(n, self.channels, self.side, self.side), torch.arange(self.side)
        for k, (name, shrink) in enumerate(self.shrink.items()):
            images, here = picture(name, self.channels, shrink), which == k
            sizes = len(images), images.shape[2] - self.side + 1, images.shape[3] - self.side + 1
            i, y, x = torch.tensor(where[here.numpy()] * sizes).long().T[:, :, None, None]
            cut = images[i, :, y + ahead[:, None], x + ahead]
            found[here] = cut.permute(0, 3, 1, 2)
        found[mirrored] = found[mirrored].flip(3)
        return found, which
