"""Projecting trajectories onto a plane, for figures."""

import torch
from torch import Tensor


def in_plane(path: Tensor, of: Tensor) -> Tensor:
    """Project each trajectory onto the plane of the first two principal components of its counterpart.

    Args:
        path: [n, S, dim], the states of n samples.
        of: [n, S', dim], the counterparts: other trajectories of the same samples.

    Returns coordinates [n, S, 2], with the end of the counterpart as the origin.
    """
    shown = []
    for own, whole in zip(path.double(), of.double(), strict=True):
        axes = torch.linalg.svd(whole - whole.mean(0), full_matrices=False).Vh[:2]
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        axes = axes * largest.sign()  # the sign of a principal axis is arbitrary: make the largest entry positive
        shown.append((own - whole[-1]) @ axes.T)
    return torch.stack(shown)
