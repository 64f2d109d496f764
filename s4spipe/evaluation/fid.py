"""FID, the Fréchet distance of features that a network gives of images, and KID, precision and recall."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from s4spipe.features.base.frechet import Statistics
from s4spipe.runtime import distributed
from s4spipe.runtime.ahead import ahead
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_tensors

Prepared = TypeVar("Prepared")

MOST = 10_000  # largest number of features for KID, precision and recall
BLOCK = 2**24  # numbers in memory at a time for a covariance: 128 MiB, 8192 rows of Inception's


def features(
    images: np.ndarray, net: torch.nn.Module, device: torch.device, batch_size: int = 500
) -> Iterator[torch.Tensor]:
    """Features of uint8 images [n, C, H, W] from a network of `s4spipe.features`, in parts: see `in_parts`."""

    def prepare(places: range) -> np.ndarray:
        return resized(torch.from_numpy(np.array(images[places.start : places.stop])), net)

    return in_parts(len(images), batch_size, prepare, partial(seen, net=net, device=device))


def in_parts(
    count: int, size: int, prepare: Callable[[range], Prepared], see: Callable[[Prepared], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Features of `count` images in order, float32, as parts [m, d], none of which is kept.

    Several processes divide the images, `size` at a time, and all of them get all features. So a part has that many of
    every process.

    Args:
        prepare: gives the images with these indices, at most `size`, as the network takes them. This is done for the
            next images while
        see: gives the features of some.
    """
    batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    own = map(see, ahead(prepare, distributed.shard(batches)))
    world = distributed.world_size()
    for step in distributed.progress(range(0, len(batches), world), "features", unit="batch"):
        group = range(batches[step].start, batches[step : step + world][-1].stop)
        mine = next(own, torch.empty(0, 0))  # the last part may have none for this process
        width = int(distributed.all_reduce(torch.tensor(mine.shape[1] if distributed.is_main() else 0)))
        places = torch.arange(len(group))[distributed.rank() * size :][:size]
        yield distributed.gather(mine.reshape(len(mine), width), places, len(group))


def batch_features(
    images: torch.Tensor | list[torch.Tensor], net: torch.nn.Module, device: torch.device
) -> torch.Tensor:
    """Features [n, d], float32, on the CPU, of one batch of uint8 images [C, H, W], each resized by the network's rule.

    Raises UserError if some are not finite.
    """
    return seen(resized(images, net), net, device)


def seen(given: np.ndarray, net: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """The features of what `resized` gave. Raises UserError as `batch_features` does."""
    with torch.no_grad():
        found = net(torch.from_numpy(given).to(device)).cpu().float()
    broken = int((~found.isfinite()).any(1).sum())
    if broken:
        raise UserError(f"fid.features: the network's features of {broken} of {len(given)} images are not finite; get "
                        "its file again, or try run.device: cpu")  # fmt: skip
    return found


def resized(images: torch.Tensor | list[torch.Tensor], net: torch.nn.Module) -> np.ndarray:
    """The images as the network is given them, resized on all cores: a large GPU would wait for one of them."""
    resize = cast(Callable[[np.ndarray], np.ndarray], net.resize)
    workers = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def share(worker: int) -> list[np.ndarray]:
        return [resize(image.numpy().transpose(1, 2, 0)).transpose(2, 0, 1) for image in images[worker::workers]]

    found: list[Any] = [None] * len(images)
    with ThreadPoolExecutor(workers) as pool:
        for worker, some in enumerate(pool.map(share, range(workers))):
            found[worker::workers] = some
    return np.stack(found)


def statistics(parts: Iterable[torch.Tensor]) -> Statistics:
    """Mean [d] and covariance [d, d], float64, of features that come in parts [m, d]; a function of the rows alone.

    Only a block of the rows is in memory at a time. Blocks are centred before they are joined (Chan et al. 1983, The
    American Statistician 37), so that nothing cancels; a single block is what np.cov makes of it, to the last digit.
    Warns on stderr if there are too few samples for a regular covariance. Raises UserError for a single sample.
    """
    n, mean, scatter = 0, np.zeros(()), np.zeros(())
    for rows in _blocks(parts):
        more, own = len(rows), rows.mean(0)
        rows -= own
        apart = own - mean
        mean = mean + apart * (more / (n + more)) if n else own
        scatter = scatter + np.dot(rows.T, rows)
        if n:
            scatter += np.outer(apart, apart) * (n * more / (n + more))
        n += more
    if n < 2:
        raise UserError(f"FID needs more than {n} samples: raise sample.count")
    if n <= len(mean) and distributed.is_main():
        print(f"FID of {n} samples in {len(mean)} dimensions means little: more than {len(mean)} are needed",
              file=sys.stderr)  # fmt: skip
    return torch.from_numpy(mean), torch.from_numpy(scatter * (1 / (n - 1)))


def _blocks(parts: Iterable[torch.Tensor]) -> Iterator[np.ndarray]:
    """The rows of all parts [m, d], as many at a time as BLOCK allows, float64: what a caller may write into."""
    held: list[torch.Tensor] = []
    for part in parts:
        size = max(1, BLOCK // part.shape[1])
        while len(part):
            space = size - sum(map(len, held))
            held.append(part[:space])
            part = part[space:]
            if sum(map(len, held)) == size:
                block, held = torch.cat(held).double(), []
                yield block.numpy()
    if held:
        yield torch.cat(held).double().numpy()


def statistics_and_rows(parts: Iterable[torch.Tensor], places: np.ndarray) -> tuple[Statistics, torch.Tensor]:
    """The statistics of features that come in parts, and those rows [k, d] that stand at `places`, which ascend; what
    is beyond the last row is left out. No other rows are kept."""
    kept: list[torch.Tensor] = []

    def passing() -> Iterator[torch.Tensor]:
        start = 0
        for part in parts:
            here = np.arange(*np.searchsorted(places, (start, start + len(part))))
            kept.append(part[torch.from_numpy(places[here] - start)])
            start += len(part)
            yield part

    return statistics(passing()), torch.cat(kept)


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
