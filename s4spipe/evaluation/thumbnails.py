"""Rows of small images, which show a solver's samples."""

from pathlib import Path

import numpy as np

from s4spipe.runtime.errors import UserError, needs
from s4spipe.runtime.files import atomic, missing

with needs("pipeline", "reading and writing images"):
    from PIL import Image

LENGTH = 20  # images in a row
LARGEST = 128  # pixels of an image's longer side; larger ones are shrunk


def tile(rows: np.ndarray, gap: int = 0, fill: int = 255) -> np.ndarray:
    """One picture from rows of images of the same size.

    Args:
        rows: uint8 [rows, columns, C, H, W].
        gap: pixels of value `fill` to the right of each image and below it.
        fill: 0 to 255.

    Returns uint8 [rows * (H + gap), columns * (W + gap), C].
    """
    padded = np.pad(rows, ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=fill)
    count, columns, channels, height, width = padded.shape
    return padded.transpose(0, 3, 1, 4, 2).reshape(count * height, columns * width, channels)


def write(path: str | Path, images: np.ndarray) -> None:
    """Write the first LENGTH of `images`, uint8 [n, C, H, W] with 1 or 3 channels, as one PNG: a row without gaps."""
    images = images[:LENGTH]
    factor = -(-max(images.shape[2:]) // LARGEST)
    if factor > 1:
        images = np.stack([_reduced(image, factor) for image in images])
    with atomic(path) as temporary:
        picture(tile(images[None])).save(temporary, format="PNG", optimize=True)


def read(path: str | Path, length: int) -> np.ndarray:
    """Read a PNG that holds a row of `length` images, as uint8 [length, C, H, W]. Raises UserError for any other."""
    try:
        row = np.asarray(Image.open(path, formats=["PNG"]))
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a complete PNG ({error}); make it again with `dvc repro`") from None
    row = row if row.ndim == 3 else row[..., None]
    if row.shape[1] % length:
        raise UserError(f"{path}: not a row of {length} images; make it again with `dvc repro`")
    return np.stack(np.split(row, length, axis=1)).transpose(0, 3, 1, 2)


def picture(pixels: np.ndarray) -> Image.Image:
    """A picture from uint8 [H, W, C]: grey (C = 1), grey with opacity (2), colour (3), colour with opacity (4)."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def _reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """uint8 [C, H, W], the mean of every factor x factor pixels."""
    pixels = np.asarray(picture(image.transpose(1, 2, 0)).reduce(factor))
    return np.atleast_3d(pixels).transpose(2, 0, 1)
