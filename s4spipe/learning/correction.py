"""Learned corrections to the coefficients of a classical solver, shared by all families."""

import torch
from torch import Tensor, nn


class Correction(nn.Module):
    """start + scale * mask * u, with a learned u that is 0 at first.

    The scale is chosen so that u = 1 moves a state by its own size sqrt(alpha^2 + sigma^2), for an evaluation (or past
    state) of unit size. Without it, no learning rate would suit both the first and the last steps, whose weights differ
    by orders of magnitude.

    Args:
        start: [rows, columns, ...], float64; the initial values.
        scale: [rows, 1] or [rows, columns], or with more dimensions as `start`.
        mask: as `start`, 1 for entries that are used.
        consistent: every row keeps its sum: the row's mean is subtracted from its corrections.
        shared: all rows share one row of corrections, added without scale.
    """

    start: Tensor
    scale: Tensor
    mask: Tensor

    def __init__(self, start: Tensor, scale: Tensor, mask: Tensor, consistent: bool = False, shared: bool = False):
        super().__init__()
        self.consistent, self.shared = consistent, shared
        for name, value in (("start", start), ("scale", scale), ("mask", mask)):
            self.register_buffer(name, value)
        self.u = nn.Parameter(torch.zeros_like(start[:1] if shared else start))

    def forward(self) -> Tensor:
        """As `start`."""
        u: Tensor = self.u
        if self.consistent:
            u = u - (u * self.mask).sum(1, keepdim=True) / self.mask.sum(1, keepdim=True)
        return self.start + (1 if self.shared else self.scale) * self.mask * u

    @property
    def count(self) -> int:
        """The number of free parameters: the used entries, less one for every row with a fixed sum."""
        mask = self.mask[-1:] if self.shared else self.mask
        return int(mask.sum() - self.consistent * len(mask))
