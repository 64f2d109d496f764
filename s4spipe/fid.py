"""Fréchet distance of features (FID), with clean-fid extracting the features."""

import numpy as np
import torch
from cleanfid import fid as cleanfid

from s4spipe.errors import UserError
from s4spipe.files import read_tensors


def features(images: np.ndarray, net: torch.nn.Module, device: torch.device, batch_size: int = 500) -> np.ndarray:
    """Features [n, d], float64, of uint8 images [n, C, H, W], which the network sees as float32 in [0, 255]."""
    remaining = iter(torch.from_numpy(images).split(batch_size))
    chunks = [
        cleanfid.get_model_features(
            lambda z, chunk=chunk: chunk,
            net,
            z_dim=1,
            num_gen=len(chunk),
            batch_size=len(chunk),
            device=device,
            verbose=False,
            custom_fn_resize=lambda image: image.astype(np.float32),
        )
        for chunk in remaining
    ]
    return np.concatenate(chunks).astype(np.float64)


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d]. Raises UserError for fewer samples than make the covariance regular."""
    n, d = features.shape
    if n <= d:
        raise UserError(f"FID needs more samples than feature dimensions ({d}), got {n}: raise sample.count")
    return features.mean(0), np.cov(features, rowvar=False)


def load_statistics(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance from a file that the stage `reference` wrote. Raises UserError for another file."""
    tensors, _ = read_tensors(path)
    if set(tensors) != {"mean", "covariance"}:
        raise UserError(f"{path}: not the statistics of features; make it again with `dvc repro -f reference`")
    return tensors["mean"].numpy(), tensors["covariance"].numpy()


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    The trace of the root is that of the symmetric (A^(1/2) B A^(1/2))^(1/2): two eigendecompositions, no complex parts.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace)
