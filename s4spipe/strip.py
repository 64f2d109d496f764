"""A row of small images as one PNG: what is kept of a solver's samples to look at."""

from pathlib import Path

import numpy as np
from PIL import Image

from s4spipe.errors import UserError
from s4spipe.files import atomic, missing

LENGTH = 20  # images
LARGEST = 128  # pixels of an image's longer side; larger ones are shrunk


def write(path: str | Path, images: np.ndarray) -> None:
    """The first of `images`, uint8 [n, C, H, W] of 1 or 3 channels, side by side."""
    images = images[:LENGTH]
    factor = -(-max(images.shape[2:]) // LARGEST)
    tiles = []
    for image in images:
        pixels = image.transpose(1, 2, 0)
        tile = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
        tiles.append(np.asarray(tile.reduce(factor) if factor > 1 else tile))
    with atomic(path) as temporary:
        Image.fromarray(np.concatenate(tiles, 1)).save(temporary, format="PNG", optimize=True)


def read(path: str | Path, length: int) -> np.ndarray:
    """uint8 [length, C, H, W] of a PNG that holds `length` images. Raises UserError for another one."""
    try:
        row = np.asarray(Image.open(path))
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise UserError(f"{path}: not a whole PNG ({error}); make it again with `dvc repro`") from None
    row = row if row.ndim == 3 else row[..., None]
    return np.stack(np.split(row, length, axis=1)).transpose(0, 3, 1, 2)
