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
MOST_CHANNELS = 4096


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

    Bands may lie elsewhere in each channel, or in each component of the channels, a sum of them: a band then holds what
    is equally strong in the data, say, wherever it is.

    Attributes:
        edges: where one band ends and the next begins, in cycles per side; one less than there are bands. A frequency
            that equals an edge belongs to the band above. Rising, for all channels; or a tuple of such edges for each
            channel, which then need not rise strictly, from 0 (no frequency is below) to infinity (all are).
        axes: how many of a sample's last axes are transformed.
        mixing: rows of the orthonormal matrix that makes the components out of the channels; () for the channels.

    Raises:
        UserError: for edges that are no rising numbers, for axes that are not 1, 2 or 3, and for another mixing.
    """

    edges: tuple[float, ...] | tuple[tuple[float, ...], ...]
    axes: int = 2
    mixing: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        whole("axes of the bands", self.axes, 1, MOST_AXES)
        rows, edges = self.rows, self.edges
        if not isinstance(edges, tuple) or len(rows) > MOST_CHANNELS or not 0 < len(rows[0]) < MOST_BANDS:
            raise UserError(f"edges of bands must be 1 to {MOST_BANDS - 1} rising positive numbers, got {shown(edges)}")
        if rows is edges:
            for row in rows:
                if not isinstance(row, tuple) or len(row) != len(rows[0]) or not _ordered(row):
                    raise UserError(f"edges of bands must be {len(rows[0])} rising numbers for each channel, got "
                                    f"{shown(row)}")  # fmt: skip
        elif not _ordered(edges) or any(a >= b for a, b in pairwise((0.0, *edges, math.inf))):
            raise UserError(f"edges of bands must be {len(edges)} rising positive numbers, got {shown(edges)}")
        if self.mixing != ():
            self._check_mixing()

    def _check_mixing(self) -> None:
        rows, n = self.mixing, len(self.mixing) if isinstance(self.mixing, tuple) else 0
        plain = 0 < n <= MOST_CHANNELS and all(
            isinstance(row, tuple) and len(row) == n and all(map(is_number, row)) for row in rows
        )
        matrix = torch.tensor(rows, dtype=torch.float64, device="cpu") if plain else torch.zeros(1, 1)
        if not torch.allclose(matrix @ matrix.T, torch.eye(len(matrix), dtype=matrix.dtype), atol=1e-6):
            raise UserError(f"mixing of bands must be the rows of an orthonormal matrix, got {shown(rows)}")
        if len(self.rows) not in (1, n):
            raise UserError(f"edges of bands must be given once, or for each of the {n} components, got "
                            f"{len(self.rows)}")  # fmt: skip

    @property
    def rows(self) -> tuple[tuple[float, ...], ...]:
        """The edges for each channel or component; one row if they are common to all."""
        own = isinstance(self.edges, tuple) and bool(self.edges) and isinstance(self.edges[0], tuple)
        return self.edges if own else (self.edges,)  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.rows[0]) + 1,)

    def check(self, x: Tensor) -> None:
        if x.ndim != 2 + self.axes:
            raise UserError(f"this solver has weights by frequency over {self.axes} axes, for samples [B, channels, "
                            f"{self.axes} axes], got {list(x.shape)}")  # fmt: skip
        channels = max(len(self.rows), len(self.mixing))
        if channels > 1 and x.shape[1] != channels:
            raise UserError(f"this solver has weights by frequency for samples of {channels} channels, got "
                            f"{list(x.shape)}")  # fmt: skip

    def to(self, x: Tensor) -> Tensor:
        return self._mixed(super().to(x))

    def back(self, x: Tensor) -> Tensor:
        return super().back(self._mixed(x, back=True))

    def _mixed(self, x: Tensor, back: bool = False) -> Tensor:
        if not self.mixing:
            return x
        matrix = _matrix(self.mixing, x.dtype, x.device)
        return ((matrix.T if back else matrix) @ x.flatten(2)).view(x.shape)

    def spread(self, weight: Tensor, x: Tensor) -> Tensor:
        return weight[_band(self.rows, tuple(x.shape[-self.axes :]), x.device)]

    def gather(self, products: Tensor) -> Tensor:
        band = _band(self.rows, tuple(products.shape[-self.axes :]), products.device)
        summed = products.flatten(3)
        if len(band) == 1:
            summed = summed.sum(2, keepdim=True)
        zeros = summed.new_zeros(*summed.shape[:2], *self.shape)
        return zeros.index_add(2, band.flatten(), summed.flatten(2))

    def describe(self) -> dict[str, Any]:
        rows = [[edge if edge < math.inf else None for edge in row] for row in self.rows]
        edges = rows if isinstance(self.edges[0], tuple) else rows[0]
        mixing = {"mixing": [list(row) for row in self.mixing]} if self.mixing else {}
        return {"name": "bands", "axes": self.axes, "edges": edges, **mixing}


def _ordered(row: tuple[Any, ...]) -> bool:
    """Whether these are numbers from 0 to infinity, none of which is below the one before it."""
    return all(is_number(edge) for edge in row) and all(a <= b for a, b in pairwise((0.0, *row)))


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
    may = {"mixing"} if data["name"] == "bands" else set()
    if not keys[data["name"]] <= set(data) <= keys[data["name"]] | may:
        raise UserError(f"entry basis must have the keys {', '.join(sorted(keys[data['name']]))}, got {shown(data)}")
    if data["name"] == "plain":
        return PLAIN
    given = data.get("edges", data.get("shape"))
    if not isinstance(given, list) or not isinstance(data.get("mixing", []), list):
        raise UserError(f"entry basis needs lists of numbers, got {shown(data)}")
    if data["name"] == "bands":
        edges = tuple(_row(row, open_end=True) if isinstance(row, list) else _number(row) for row in given)
        mixing = tuple(_row(row) if isinstance(row, list) else row for row in data.get("mixing", []))
        return Bands(edges, data["axes"], mixing)
    return Arrays(tuple(given), data["axes"])


def _row(row: list[Any], open_end: bool = False) -> tuple[Any, ...]:
    """A list of numbers; infinity, which JSON does not have, is null."""
    return tuple(math.inf if entry is None and open_end else _number(entry) for entry in row)


def _number(entry: Any) -> Any:
    return float(entry) if is_number(entry) else entry


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
def _matrix(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.device("cpu"), torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.float64).to(device, dtype)


@lru_cache(64)
def _band(rows: tuple[tuple[float, ...], ...], sides: Sequence[int], device: torch.device) -> Tensor:
    """The band of every frequency, [channels or 1, *sides]."""
    with torch.device("cpu"), torch.inference_mode(False):
        radius, edges = radii(sides), torch.tensor(rows, dtype=torch.float64)
        return torch.stack([torch.bucketize(radius, row, right=True) for row in edges]).to(device)


def radii(sides: Sequence[int]) -> Tensor:
    """The frequency |k| / 2 of every coefficient of the DCT, [*sides], in cycles per side."""
    waves = torch.meshgrid(*(torch.arange(n, dtype=torch.float64, device="cpu") / 2 for n in sides), indexing="ij")
    return torch.stack(waves).square().sum(0).sqrt()
