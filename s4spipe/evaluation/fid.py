"""FID, the Fréchet distance of features that clean-fid extracts, and KID, precision and recall."""

import sys
from pathlib import Path

import numpy as np
import torch
from cleanfid import fid as cleanfid

from s4spipe.features.base.frechet import Statistics
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import missing, read_array, read_tensors

MOST = 10_000  # largest number of features for KID, precision and recall
FILES = 500  # files of a folder per batch


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
    return _whole(chunks, own, batch_size, len(images))


def batch_features(images: torch.Tensor, net: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """Features [n, d], float32, on the CPU, of one batch of images, extracted by clean-fid."""
    seen = cleanfid.get_model_features(
        lambda z: images,
        net,
        z_dim=1,
        num_gen=len(images),
        batch_size=len(images),
        device=device,
        verbose=False,
        custom_fn_resize=net.resize,
    )
    return torch.from_numpy(seen).float()


def _whole(chunks: list[torch.Tensor], starts: range, size: int, count: int) -> np.ndarray:
    """The features of all processes, from the chunks of each."""
    places = [torch.arange(start, min(start + size, count)) for start in starts]
    width = int(distributed.all_reduce(torch.tensor(chunks[0].shape[1] if distributed.is_main() else 0)))
    rows = torch.cat([torch.empty(0, width), *chunks])
    return distributed.gather(rows, torch.cat([torch.arange(0), *places]), count).numpy().astype(np.float64)


def real(path: str, net: torch.nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """The statistics of real images: `mean`, `covariance` and, if known, `features` of up to 10,000 of them.

    Args:
        path: a folder of images; an .npy file of uint8 [n, C, H, W]; an .npz file of the statistics "mu" and "sigma",
            as FID implementations share them; or a .safetensors file with a result of this function.
        net: a network of `s4spipe.features`.
        device: where the network runs.

    Raises UserError for anything else.
    """
    file = Path(path)
    if not file.exists():
        raise missing(path)
    if file.suffix == ".safetensors":
        return read_tensors(path)[0]
    if file.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as data:
                return {"mean": torch.tensor(data["mu"]), "covariance": torch.tensor(data["sigma"])}
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{path}: not feature statistics, arrays mu and sigma ({error})") from None
    if file.is_dir():
        seen = _of_folder(file, net, device)
    elif file.suffix == ".npy":
        seen = features(read_array(path), net, device)
    else:
        raise UserError(f"{path}: must be a folder of images, an .npy array of them, or statistics as .npz")
    mean, covariance = statistics(seen)
    kept = np.random.default_rng(0).permutation(len(seen))[:MOST]
    return {"mean": mean, "covariance": covariance, "features": torch.tensor(seen[np.sort(kept)], dtype=torch.float32)}


def _of_folder(folder: Path, net: torch.nn.Module, device: torch.device) -> np.ndarray:
    if not any(next(folder.rglob(f"*.{kind}"), None) for kind in cleanfid.EXTENSIONS):
        raise UserError(
            f"{folder}: holds no images ({', '.join(sorted(k for k in cleanfid.EXTENSIONS if k.islower()))})"
        )
    files = sorted(str(path) for path in folder.rglob("*") if path.suffix[1:] in cleanfid.EXTENSIONS)
    starts = range(0, len(files), FILES)
    own = distributed.shard(starts)
    chunks = []
    for start in distributed.progress(own, "features", unit="batch"):
        some = files[start : start + FILES]
        seen = cleanfid.get_files_features(
            some, net, num_workers=0, device=device, custom_fn_resize=net.resize, verbose=False
        )
        chunks.append(torch.from_numpy(seen).float())
    return _whole(chunks, own, FILES, len(files))


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
    if not {"mean", "covariance"} <= set(tensors):
        raise UserError(f"{path}: not feature statistics; make it again with `dvc repro`")
    if dimension not in (None, len(tensors["mean"])):
        raise UserError(f"{path}: statistics of {len(tensors['mean'])} features, where fid.network gives {dimension}: "
                        "they come from another network")  # fmt: skip
    return tensors


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID (Binkowski et al. 2018, arXiv 1801.01401) of features [n, d] and [m, d], computed by clean-fid on the same
    subsets in every call."""
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
