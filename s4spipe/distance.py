"""Distances d(student's sample, teacher's sample): one number per pair."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from s4spipe.errors import unknown
from s4spipe.images import to_255


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of the pixels, [B]."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(||x - y||^2 + c^2) - c, c = 0.00054 sqrt(dim) (Song and Dhariwal 2023, arXiv 2310.14189, sec. 3.3), [B]."""
    c = 0.00054 * math.sqrt(x[0].numel())
    return ((x - y).square().flatten(1).sum(1) + c**2).sqrt() - c


def perceptual(x: Tensor, y: Tensor, features: torch.nn.Module) -> Tensor:
    """LPIPS's form over any features network: squared differences of unit-normalised activations, [B].

    Zhang et al. 2018 (arXiv 1801.03924), eq. 1, without its learned channel weights. `features.maps` takes images in
    [0, 255] and returns its layers' activations [B, C, H, W].
    """
    total = torch.zeros(len(x), device=x.device)
    for a, b in zip(*(features.maps(to_255(image.float())) for image in (x, y)), strict=True):
        a, b = (maps / (maps.norm(dim=1, keepdim=True) + 1e-8) for maps in (a, b))
        total = total + (a - b).square().sum(1).mean(dim=(1, 2))
    return total


DISTANCES = ("l2", "pseudo_huber", "perceptual")


def build(name: str, features: torch.nn.Module | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The named distance. Raises UserError for an unknown name."""
    if name not in DISTANCES:
        raise unknown("distance", name, DISTANCES)
    return {"l2": l2, "pseudo_huber": pseudo_huber, "perceptual": partial(perceptual, features=features)}[name]
