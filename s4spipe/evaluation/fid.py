"""FID, the Fréchet distance of features that a network gives of images, and KID, precision and recall."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from s4spipe.features.base.frechet import Statistics
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_tensors

MOST = 10_000  # largest number of features for KID, precision and recall


def features(images: np.ndarray, net: torch.nn.Module, device: torch.device, batch_size: int = 500) -> np.ndarray:
    """Features [n, d], float64, of uint8 images [n, C, H, W], from a network of `s4spipe.features`.

    Several processes divide the images; all of them get all features.
    """
    starts = range(0, len(images), batch_size)
    own = distributed.shard(starts)
    chunks = [
        batch_features(torch.from_numpy(np.array(images[start : start + batch_size])), net, device)
        for start in distributed.progress(own, "features", unit="batch")
    ]
    return whole(chunks, own, batch_size, len(images))


def batch_features(
    images: torch.Tensor | list[torch.Tensor], net: torch.nn.Module, device: torch.device
) -> torch.Tensor:
    """Features [n, d], float32, on the CPU, of one batch of uint8 images [C, H, W], each resized by the network's rule.

    Raises UserError if some are not finite.
    """
    with torch.no_grad():
        found = net(torch.from_numpy(np.stack(_resized(images, net))).to(device)).cpu().float()
    broken = int((~found.isfinite()).any(1).sum())
    if broken:
        raise UserError(f"fid.features: the network's features of {broken} of {len(images)} images are not finite; get "
                        "its file again, or try run.device: cpu")  # fmt: skip
    return found


def _resized(images: torch.Tensor | list[torch.Tensor], net: torch.nn.Module) -> list[np.ndarray]:
    """The images as the network is given them, resized on all cores: a large GPU would wait for one of them."""
    resize = cast(Callable[[np.ndarray], np.ndarray], net.resize)
    workers = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def share(worker: int) -> list[np.ndarray]:
        return [resize(image.numpy().transpose(1, 2, 0)).transpose(2, 0, 1) for image in images[worker::workers]]

    found: list[Any] = [None] * len(images)
    with ThreadPoolExecutor(workers) as pool:
        for worker, some in enumerate(pool.map(share, range(workers))):
            found[worker::workers] = some
    return found


def whole(chunks: list[torch.Tensor], starts: range, size: int, count: int) -> np.ndarray:
    """The features of all processes, from the chunks of each."""
    places = [torch.arange(start, min(start + size, count)) for start in starts]
    width = int(distributed.all_reduce(torch.tensor(chunks[0].shape[1] if distributed.is_main() else 0)))
    rows = torch.cat([torch.empty(0, width), *chunks])
    return distributed.gather(rows, torch.cat([torch.arange(0), *places]), count).numpy().astype(np.float64)


def statistics(features: np.ndarray) -> Statistics:
    """Mean [d] and covariance [d, d]. Warns on stderr if there are too few samples for a regular covariance.

    Raises UserError for a single sample.
    """
    n, d = features.shape
    if n < 2:
        raise UserError(f"FID needs more than {n} samples: raise sample.count")
    if n <= d and distributed.is_main():
        print(f"FID of {n} samples in {d} dimensions means little: more than {d} are needed", file=sys.stderr)
    return torch.from_numpy(features.mean(0)), torch.from_numpy(np.atleast_2d(np.cov(features, rowvar=False)))


def load_statistics(path: str | Path, dimension: int | None = None) -> dict[str, torch.Tensor]:
    """`mean`, `covariance` and, if known, `features`, from a file that a stage wrote.

    Raises UserError for another file, or if the statistics do not have `dimension` features.
    """
    tensors, _ = read_tensors(path)
    return checked(tensors, path, dimension)


def checked(
    tensors: dict[str, torch.Tensor], where: str | Path, dimension: int | None = None
) -> dict[str, torch.Tensor]:
    """Statistics as the Fréchet distance takes them: `mean` [d], `covariance` [d, d], float64, and maybe `features`.

    Raises UserError, naming `where` they are from, for other shapes or types, and for numbers that are not finite.
    """
    if not {"mean", "covariance"} <= set(tensors):
        raise UserError(f"{where}: not feature statistics; make it again with `dvc repro`")
    d = tensors["mean"].numel()
    if dimension not in (None, d):
        raise UserError(f"{where}: statistics of {d} features, where fid.network gives {dimension}: "
                        "they come from another network")  # fmt: skip
    for name, shape in {"mean": (d,), "covariance": (d, d), "features": (-1, d)}.items():
        value = tensors.get(name)
        if value is None:
            continue
        fits = value.ndim == len(shape) and all(n in (-1, m) for n, m in zip(shape, value.shape, strict=True))
        if not fits or value.dtype not in (torch.float32, torch.float64) or not value.numel():
            raise UserError(f"{where}: {name} must be floats {list(shape)}, got {value.dtype} {list(value.shape)}")
        if not value.isfinite().all():
            raise UserError(f"{where}: {name} holds numbers that are not finite; make the statistics again")
    return tensors | {name: tensors[name].double() for name in ("mean", "covariance")}


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID (Binkowski et al. 2018, arXiv 1801.01401) of features [n, d] and [m, d], computed by clean-fid on the same
    subsets in every call."""
    from cleanfid import fid as cleanfid  # and torchvision: seconds, only for those who have real images

    state = np.random.get_state()  # noqa: NPY002  (clean-fid draws from it)
    np.random.seed(0)  # noqa: NPY002
    try:
        return cleanfid.kernel_distance(a, b)
    finally:
        np.random.set_state(state)  # noqa: NPY002


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall: the fraction of generated images within the manifold of the real ones, and the reverse.

    The manifold is the union of balls around the features, each with the distance to the k-th nearest neighbour as its
    radius (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 2).
    """
    ours, theirs = (torch.as_tensor(x, dtype=torch.float32) for x in (generated, real))

    def share(points: torch.Tensor, manifold: torch.Tensor) -> float:
        k_th = min(k, len(manifold) - 1)
        radius = torch.cat(
            [torch.cdist(rows, manifold).topk(k_th + 1, largest=False)[0][:, -1] for rows in manifold.split(1000)]
        )
        inside = torch.cat([(torch.cdist(rows, manifold) <= radius).any(1) for rows in points.split(1000)])
        return inside.float().mean().item()

    return share(ours, theirs), share(theirs, ours)
