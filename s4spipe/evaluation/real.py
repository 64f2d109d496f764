"""Real images, or their statistics, in any form that people have them: checked, then seen by a features network."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s4spipe.evaluation import pictures
from s4spipe.evaluation.fid import MOST, batch_features, checked, features, in_parts, resized, seen, statistics_and_rows
from s4spipe.features.callable import Features
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import missing, read_array, read_floats, read_tensors

FILES = 500  # files of a folder per step of the progress bar
BATCH = 128  # files that the network sees at a time, as many as in clean-fid
LEAST = -1e-4  # eigenvalue of a covariance, as a fraction of the largest: below, it is not rounding


def read(path: str, net: Any, device: torch.device, about: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """The statistics of real images: `mean` [d], `covariance` [d, d] and, if known, `features` of up to 10,000 of them.

    Args:
        path: a folder of images; an .npy file of uint8 [n, C, height, width] or [n, height, width, C], where C is 1 or
            3; an .npz file of the statistics "mu" and "sigma", as FID implementations share them; or a .safetensors
            file with a result of this function.
        net: a network of `s4spipe.features`.
        device: where the network runs.
        about: the network's name and mode. A .safetensors file that was made with others is refused.

    Raises UserError, naming the file, for anything else.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if not file.exists():
        raise missing(path)
    if file.is_dir():
        files = _files(file)
        see = partial(_seen, net=net, device=device)
        count, parts = len(files), in_parts(len(files), FILES, partial(_resized, files, net), see)
    elif suffix == ".npy":
        images = _images(path)
        count, parts = len(images), features(images, net, device)
    elif suffix in (".npz", ".safetensors") and isinstance(net, Features):
        raise UserError(f"{path}: whether statistics are those of a network of your own cannot be checked; name the "
                        "images themselves")  # fmt: skip
    elif suffix in (".npz", ".safetensors"):
        return _known(path, _width(net, device), about or {})
    else:
        raise UserError(f"{path}: must be a folder of images, an .npy array of them, or statistics as .npz")
    kept = np.random.default_rng(0).permutation(count)[:MOST]
    (mean, covariance), rows = statistics_and_rows(parts, np.sort(kept))
    return {"mean": mean, "covariance": covariance, "features": rows}


def _width(net: Any, device: torch.device) -> int:
    """The number of features, of a black image of 8x8 pixels, which every other network here can see."""
    return batch_features(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), net, device).shape[1]


def _known(path: str, width: int, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Statistics from a file: float64, and checked to be those of `width` features."""
    if path.lower().endswith(".npz"):
        found = read_floats(path, {"mu": (width,), "sigma": (width, width)})
        tensors = {"mean": torch.from_numpy(found["mu"]), "covariance": torch.from_numpy(found["sigma"])}
    else:
        tensors, made = read_tensors(path)
        for key, ours in about.items():
            theirs = made.get(key, ours) if isinstance(made, dict) else ours
            if theirs != ours:
                raise UserError(f"{path}: statistics for fid.{key}: {theirs}, but params.yaml has {ours}")
    tensors = checked(tensors, path, width)
    covariance = tensors["covariance"]
    size = covariance.abs().max().item()
    if (covariance - covariance.T).abs().max().item() > 1e-4 * size:
        raise UserError(f"{path}: its covariance is not symmetric, so it is none")
    if torch.linalg.eigvalsh(covariance)[0].item() < LEAST * size:
        raise UserError(f"{path}: its covariance has negative eigenvalues, so it is none")
    return tensors


def _images(path: str) -> np.ndarray:
    """uint8 [n, C, height, width] from an .npy file, memory-mapped."""
    images = read_array(path)
    got, shape = f"got {images.dtype} {list(images.shape)}", images.shape
    if images.dtype != np.uint8:
        raise UserError(f"{path}: real images must be uint8, from 0 for black to 255 for white, {got}")
    if len(shape) != 4 or 0 in shape[1:]:
        raise UserError(f"{path}: real images must be an array [n, C, height, width], {got}")
    first, last = (shape[axis] in (1, 3) for axis in (1, 3))
    if first and last:
        raise UserError(f"{path}: [n, C, height, width] and [n, height, width, C] may both be meant, {got}; write the "
                        "images as PNG files into a folder")  # fmt: skip
    if not (first or last):
        raise UserError(f"{path}: real images must have 1 or 3 channels, as [n, C, height, width], {got}")
    if shape[0] < 2:
        raise UserError(f"{path}: a covariance needs at least two images, {got}")
    return images if first else images.transpose(0, 3, 1, 2)


def _files(folder: Path) -> list[Path]:
    """The images in a folder, which are two at least."""
    files = list(pictures.files(folder))
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in pictures.SUFFIXES))
        raise UserError(f"{folder}: holds no images ({kinds})")
    if len(files) < 2:
        raise UserError(f"{folder}: {files[0].name} is its only image, and a covariance needs two")
    return files


def _resized(files: list[Path], net: Any, places: range) -> list[np.ndarray]:
    """The files at `places` as the network takes them, BATCH at a time."""
    some = files[places.start : places.stop]
    return [_of_batch(some[i : i + BATCH], net) for i in range(0, len(some), BATCH)]


def _seen(batches: list[np.ndarray], net: Any, device: torch.device) -> Tensor:
    """Features [m, d] of what `_resized` gave."""
    return torch.cat([seen(batch, net, device) for batch in batches])


def _of_batch(files: list[Path], net: Any) -> np.ndarray:
    images = [torch.from_numpy(pictures.read(path)).permute(2, 0, 1) for path in files]
    sizes = {image.shape[1:]: path for image, path in zip(images, files, strict=True)}
    if len(sizes) > 1 and getattr(net, "resize_inside", False):
        (one, (height, width)), (other, _) = ((path, size) for size, path in list(sizes.items())[:2])
        raise UserError(f"{one}: {height}x{width} pixels, and {other.name} has others, but fid.mode legacy_tensorflow "
                        "needs images of one size; use clean, or resize them")  # fmt: skip
    return resized(images, net)
