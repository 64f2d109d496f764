"""Distances between a student's samples and a teacher's: one number per pair."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s4spipe.runtime.errors import unknown

ResidualFn = Callable[[Tensor, Tensor], Tensor]  # x [B, ...], y [B, ...] -> r [B, m], 0 where both are the same
ROUNDED = 0.01  # where `robust` distances become quadratic, in units of the start's


@dataclass(frozen=True)
class Distance:
    """A distance of pairs (x [B, ...], y [B, ...]) -> [B], which is a function of the norm of a residual alone. So it
    has a Gauss-Newton curvature (s4spipe/learning/gauss_newton.py).

    Attributes:
        residual: of the pairs.
        of: r [B, m] -> [B], how far pairs with these residuals are apart.
    """

    residual: ResidualFn
    of: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.of(self.residual(x, y))


def pixels(x: Tensor, y: Tensor) -> Tensor:
    """The difference of pixels, or of the latents of a latent model, [B, dim]."""
    return (x - y).flatten(1)


def huber(r: Tensor, c: float) -> Tensor:
    """sqrt(||r||^2 + c^2) - c, [B] (Charbonnier et al. 1994)."""
    return (r.square().sum(1) + c**2).sqrt() - c


# The mean squared difference.
l2 = Distance(pixels, lambda r: r.square().mean(1))
# sqrt(||x - y||^2 + c^2) - c, c = 0.00054 sqrt(dim) (Song and Dhariwal 2023, arXiv 2310.14189, sec. 3.3).
pseudo_huber = Distance(pixels, lambda r: huber(r, 0.00054 * math.sqrt(r.shape[1])))

DistanceFn = Callable[[Tensor, Tensor], Tensor]  # x [B, ...], y [B, ...] -> [B]
ROBUST = ("perceptual_huber", "mixed")  # these need the samples of the start
PERCEPTUAL = ("perceptual", *ROBUST)  # what sees by a network
DISTANCES = ("l2", "pseudo_huber", *PERCEPTUAL)


def build(name: str, network: Any = None, decode: Callable[[Tensor], Tensor] = lambda x: x) -> Distance:
    """A distance by its name; of those in ROBUST, that by which their start is chosen, which is pseudo_huber.

    Args:
        name: one of DISTANCES.
        network: for `perceptual`, a network of s4spipe.features with a method `residual`.
        decode: for `perceptual`, turns samples into images.

    Raises UserError for an unknown name.
    """
    if name not in DISTANCES:
        raise unknown("distance", name, DISTANCES)
    if name == "perceptual":
        return Distance(seen_by(network, decode), lambda r: r.square().sum(1))
    return {"l2": l2}.get(name, pseudo_huber)


def seen_by(network: Any, decode: Callable[[Tensor], Tensor]) -> ResidualFn:
    """What a network of s4spipe.features sees of the difference of samples."""
    return lambda x, y: network.residual(decode(x), decode(y))


@torch.no_grad()
def robust(residuals: Sequence[ResidualFn], x: Tensor, y: Tensor) -> Distance:
    """sqrt(||r||^2 + c^2) - c, c = ROUNDED, with r all residuals side by side, each divided by its mean norm over the
    pairs x, y: as with `pseudo_huber`, pairs that land on another image do not dominate the others.

    Residuals whose mean norm there is 0, or not finite, are left as they are.
    """
    sizes = [residual(x, y).norm(dim=1).mean().item() for residual in residuals]
    scales = [1 / size if 0 < size < math.inf else 1.0 for size in sizes]

    def joined(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([scale * residual(x, y) for residual, scale in zip(residuals, scales, strict=True)], 1)

    return Distance(joined, lambda r: huber(r, ROUNDED))
