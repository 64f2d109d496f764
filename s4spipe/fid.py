"""Fréchet distance of features (FID), clean-fid extracting them, and its kin: KID, precision and recall."""

import sys
from pathlib import Path

import numpy as np
import torch
from cleanfid import fid as cleanfid

from s4spipe import ranks
from s4spipe.errors import UserError
from s4spipe.files import missing, read_array, read_tensors

KEPT = 10_000  # features of real images, for KID, precision and recall
FILES = 500  # of a folder, between two signs of progress


def features(images: np.ndarray, net: torch.nn.Module, device: torch.device, batch_size: int = 500) -> np.ndarray:
    """Features [n, d], float64, of uint8 images [n, C, H, W], by a network of `s4spipe.features`.

    Several processes look at a part of the images each, and all get all features.
    """
    starts = range(0, len(images), batch_size)
    own = ranks.share(starts)
    chunks = [
        batch_features(torch.from_numpy(np.array(images[start : start + batch_size])), net, device)
        for start in ranks.progress(own, "features", unit="batch")
    ]
    return _whole(chunks, own, batch_size, len(images))


def batch_features(images: torch.Tensor, net: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """Features [n, d], float32, on the CPU, of one batch of images, by clean-fid."""
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
    """All processes' features, out of each one's chunks."""
    places = [torch.arange(start, min(start + size, count)) for start in starts]
    width = int(ranks.add_up(torch.tensor(chunks[0].shape[1] if ranks.first() else 0)))
    rows = torch.cat([torch.empty(0, width), *chunks])
    return ranks.gather(rows, torch.cat([torch.arange(0), *places]), count).numpy().astype(np.float64)


def real(path: str, net: torch.nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """What FID needs of real images: `mean`, `covariance`, and `features` of up to 10,000 of them, where known.

    path: a folder of images; an .npy file of uint8 [n, C, H, W]; an .npz file of statistics "mu" and "sigma", as FID's
    implementations share them; or a .safetensors file that this function's result was saved to.

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
            raise UserError(f"{path}: not the statistics of features, arrays mu and sigma ({error})") from None
    if file.is_dir():
        seen = _of_folder(file, net, device)
    elif file.suffix == ".npy":
        seen = features(read_array(path), net, device)
    else:
        raise UserError(f"{path}: must be a folder of images, an .npy array of them, or statistics as .npz")
    mean, covariance = map(torch.from_numpy, statistics(seen))
    kept = np.random.default_rng(0).permutation(len(seen))[:KEPT]
    return {"mean": mean, "covariance": covariance, "features": torch.tensor(seen[np.sort(kept)], dtype=torch.float32)}


def _of_folder(folder: Path, net: torch.nn.Module, device: torch.device) -> np.ndarray:
    if not any(next(folder.rglob(f"*.{kind}"), None) for kind in cleanfid.EXTENSIONS):
        raise UserError(
            f"{folder}: holds no images ({', '.join(sorted(k for k in cleanfid.EXTENSIONS if k.islower()))})"
        )
    files = sorted(str(path) for path in folder.rglob("*") if path.suffix[1:] in cleanfid.EXTENSIONS)
    starts = range(0, len(files), FILES)
    own = ranks.share(starts)
    chunks = []
    for start in ranks.progress(own, "features", unit="batch"):
        some = files[start : start + FILES]
        seen = cleanfid.get_files_features(
            some, net, num_workers=0, device=device, custom_fn_resize=net.resize, verbose=False
        )
        chunks.append(torch.from_numpy(seen).float())
    return _whole(chunks, own, FILES, len(files))


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d]. Says so on stderr if there are too few samples for it to be regular.

    Raises UserError for a single sample.
    """
    n, d = features.shape
    if n < 2:
        raise UserError(f"FID needs more than {n} samples: raise sample.count")
    if n <= d and ranks.first():
        print(f"FID of {n} samples in {d} dimensions means little: more than {d} are needed", file=sys.stderr)
    return features.mean(0), np.cov(features, rowvar=False)


def load_statistics(path: str, dimension: int | None = None) -> dict[str, np.ndarray]:
    """`mean`, `covariance` and, where known, `features`, from a file that a stage wrote.

    Raises UserError for another file, or one of another features network than that with `dimension` features.
    """
    tensors, _ = read_tensors(path)
    if not {"mean", "covariance"} <= set(tensors):
        raise UserError(f"{path}: not the statistics of features; make it again with `dvc repro`")
    if dimension not in (None, len(tensors["mean"])):
        raise UserError(f"{path}: statistics of {len(tensors['mean'])} features, where fid.network gives {dimension}: "
                        "they were made by another network")  # fmt: skip
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    The trace of the root is that of the symmetric (A^(1/2) B A^(1/2))^(1/2): two eigendecompositions, no complex parts.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID (Binkowski et al. 2018, arXiv 1801.01401) of features [n, d] and [m, d], by clean-fid, on the same subsets
    of them whenever it is called."""
    state = np.random.get_state()  # noqa: NPY002  (clean-fid draws from it)
    np.random.seed(0)  # noqa: NPY002
    try:
        return cleanfid.kernel_distance(a, b)
    finally:
        np.random.set_state(state)  # noqa: NPY002


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """The shares of generated images within the real ones' manifold and of real ones within that of the generated.

    A manifold is the union of balls around features, each reaching to the k-th nearest other (Kynkaanniemi et al. 2019,
    arXiv 1904.06991, eq. 2).
    """
    real, generated = (torch.as_tensor(x, dtype=torch.float32) for x in (real, generated))

    def share(points: torch.Tensor, manifold: torch.Tensor) -> float:
        k_th = min(k, len(manifold) - 1)
        radius = torch.cat(
            [torch.cdist(rows, manifold).topk(k_th + 1, largest=False)[0][:, -1] for rows in manifold.split(1000)]
        )
        inside = torch.cat([(torch.cdist(rows, manifold) <= radius).any(1) for rows in points.split(1000)])
        return inside.float().mean().item()

    return share(generated, real), share(real, generated)
