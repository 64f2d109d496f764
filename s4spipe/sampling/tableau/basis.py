"""What a weight of a tableau multiplies: all of a sample, or each of its frequencies or pixels by a number of its own.

At any noise level the low frequencies of an image are decided and its high ones are noise, so each wants weights of its
own. The frequencies are those of the orthonormal DCT-II over the last axes of a sample. The state stays linear in the
noise and the evaluations, so that all else is as for plain numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from s4spipe.runtime.checks import is_number, whole
from s4spipe.runtime.errors import UserError, shown, unknown

MOST_AXES = 3  # one for audio, two for images, three for videos
MOST_BANDS = 1000


class Basis:
    """Plain numbers: a weight multiplies all of a sample. The base class of all others, whose methods do more.

    Attributes:
        shape: the shape of one weight.
        axes: how many of a sample's last axes are transformed to frequencies.
    """

    shape: tuple[int, ...] = ()
    axes: int = 0

    def check(self, x: Tensor) -> None:
        """Raises UserError if the weights do not go with samples x [B, ...]."""

    def to(self, x: Tensor) -> Tensor:
        """Samples [B, ...] in the basis in which the weights multiply them."""
        return transformed(x, self.axes)

    def back(self, x: Tensor) -> Tensor:
        """The inverse of `to`, and its adjoint: the bases are orthonormal."""
        return transformed(x, self.axes, back=True)

    def spread(self, weight: Tensor, x: Tensor) -> Tensor:
        """What multiplies samples x [B, ...] in the basis, from one weight [*shape] of their dtype and device."""
        return weight

    def gather(self, products: Tensor) -> Tensor:
        """The adjoint of `spread`: the sums of products [K, B, ...] over what has the same weight, [K, B, *shape]."""
        return products.flatten(2).sum(2)

    def describe(self) -> dict[str, Any]:
        """JSON-ready data; `from_description` is the inverse."""
        return {"name": "plain"}


@dataclass(frozen=True)
class Bands(Basis):
    """A weight for each band of radial frequency.

    The frequency of a coefficient of the DCT is |k| / 2, where k are its indices along the axes: so many cycles per
    side of the sample, along each axis of its own. Samples of other sizes than those that the weights were learned for
    have the same bands.

    Attributes:
        edges: where one band ends and the next begins, in cycles per side; rising, one less than there are bands. A
            frequency that equals an edge belongs to the band above.
        axes: how many of a sample's last axes are transformed.

    Raises:
        UserError: for edges that are no rising positive numbers, and for axes that are not 1, 2 or 3.
    """

    edges: tuple[float, ...]
    axes: int = 2

    def __post_init__(self) -> None:
        whole("axes of the bands", self.axes, 1, MOST_AXES)
        plain = isinstance(self.edges, tuple) and all(is_number(edge) and math.isfinite(edge) for edge in self.edges)
        if not plain or not 0 < len(self.edges) < MOST_BANDS or any(a >= b for a, b in pairwise((0.0, *self.edges))):
            raise UserError(f"edges of bands must be 1 to {MOST_BANDS - 1} rising positive numbers, got "
                            f"{shown(self.edges)}")  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.edges) + 1,)

    def check(self, x: Tensor) -> None:
        if x.ndim != 2 + self.axes:
            raise UserError(f"this solver has weights by frequency over {self.axes} axes, for samples [B, channels, "
                            f"{self.axes} axes], got {list(x.shape)}")  # fmt: skip

    def spread(self, weight: Tensor, x: Tensor) -> Tensor:
        return weight[_band(self.edges, tuple(x.shape[-self.axes :]), x.device)]

    def gather(self, products: Tensor) -> Tensor:
        band = _band(self.edges, tuple(products.shape[-self.axes :]), products.device).flatten()
        summed = products.flatten(-self.axes).flatten(2, -2).sum(2)
        zeros = summed.new_zeros(*summed.shape[:2], *self.shape)
        return zeros.index_add(2, band, summed)

    def describe(self) -> dict[str, Any]:
        return {"name": "bands", "axes": self.axes, "edges": list(self.edges)}


@dataclass(frozen=True)
class Arrays(Basis):
    """A weight for each frequency, or for each pixel, of samples of one size.

    Attributes:
        shape: the shape of one weight, which broadcasts over a sample: [H, W], [C, 1, 1], [C, H, W], ...
        axes: how many of a sample's last axes are transformed; 0 for weights of pixels.

    Raises:
        UserError: for a shape that is none, and for axes that are not 0 to 3.
    """

    shape: tuple[int, ...]
    axes: int = 2

    def __post_init__(self) -> None:
        whole("axes of the arrays", self.axes, 0, MOST_AXES)
        if not isinstance(self.shape, tuple) or not self.shape:
            raise UserError(f"the shape of arrays of weights must be at least one number, got {shown(self.shape)}")
        for side in self.shape:
            whole("a side of the arrays of weights", side)

    def check(self, x: Tensor) -> None:
        sample, own = tuple(x.shape[1:]), self.shape
        fits = len(own) <= len(sample) and all(a in (1, b) for a, b in zip(own[::-1], sample[::-1], strict=False))
        if not fits or len(sample) < self.axes:
            raise UserError(f"this solver has weights of shape {list(own)}, which do not go with samples of shape "
                            f"{list(sample)}")  # fmt: skip

    def gather(self, products: Tensor) -> Tensor:
        return products.sum_to_size(*products.shape[:2], *self._padded(products.ndim - 2)).view(
            *products.shape[:2], *self.shape
        )

    def _padded(self, ndim: int) -> tuple[int, ...]:
        return (1,) * (ndim - len(self.shape)) + self.shape

    def describe(self) -> dict[str, Any]:
        return {"name": "arrays", "axes": self.axes, "shape": list(self.shape)}


PLAIN = Basis()


def from_description(data: Any) -> Basis:
    """The basis that `describe` described. Raises UserError for anything else."""
    keys = {"plain": {"name"}, "bands": {"name", "axes", "edges"}, "arrays": {"name", "axes", "shape"}}
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise UserError(f"entry basis must be an object with a name, got {shown(data)}")
    if data["name"] not in keys:
        raise unknown("basis", data["name"], keys)
    if set(data) != keys[data["name"]]:
        raise UserError(f"entry basis must have the keys {', '.join(sorted(keys[data['name']]))}, got {shown(data)}")
    if data["name"] == "plain":
        return PLAIN
    given = data.get("edges", data.get("shape"))
    if not isinstance(given, list):
        raise UserError(f"entry basis needs lists of numbers, got {shown(data)}")
    if data["name"] == "bands":
        numbers = [float(edge) if is_number(edge) else edge for edge in given]
        return Bands(tuple(numbers), data["axes"])
    return Arrays(tuple(given), data["axes"])


def transformed(x: Tensor, axes: int, back: bool = False) -> Tensor:
    """The orthonormal DCT-II of x over its last axes, or its inverse."""
    for axis in range(-axes, 0):
        matrix = dct(x.shape[axis], x.dtype, x.device)
        x = torch.movedim(torch.movedim(x, axis, -1) @ (matrix if back else matrix.T), -1, axis)
    return x


@lru_cache(64)
def dct(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix [n, n] of the orthonormal DCT-II: row k is a wave of k / 2 cycles."""
    with torch.device("cpu"), torch.inference_mode(False):  # it is kept, and may be differentiated through later
        k, place = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
        matrix = torch.cos(math.pi * (place + 0.5) * k / n) * math.sqrt(2 / n)
        matrix[0] /= math.sqrt(2)
        return matrix.to(device, dtype)


@lru_cache(64)
def _band(edges: tuple[float, ...], sides: Sequence[int], device: torch.device) -> Tensor:
    """The band of every frequency [*sides]."""
    with torch.device("cpu"), torch.inference_mode(False):
        waves = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / 2 for n in sides), indexing="ij")
        radius = torch.stack(waves).square().sum(0).sqrt()
        return torch.bucketize(radius, torch.tensor(edges, dtype=torch.float64), right=True).to(device)
