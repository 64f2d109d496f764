"""Bands of frequencies for a model, from the power spectrum of its samples.

If the data were stationary and Gaussian, the exact solution would multiply every frequency by a number that depends on
the power there alone. So a band holds what is equally strong: the logarithm of the power is divided evenly. Channels
are first turned into their principal components, which differ in power; edges lie where each component's own power
falls below the bounds that are common to all.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau.basis import MOST_AXES, PLAIN, Bands, Basis, radii, transformed

WIDTH = 8.0  # what the power falls by within a band, if their number is not given
MOST = 12  # bands, if their number is not given


def bands(x: Tensor, count: int | Literal["auto"] = "auto", channels: Literal["common", "own"] = "common") -> Basis:
    """Bands for a model with samples like these.

    Args:
        x: samples [n, C, ...], with one to three axes after their channels.
        count: the number of bands at most (fewer, if some would be empty); `auto`: one for every fall of the power by
            the factor `WIDTH`. Data of one power everywhere get one band: plain numbers.
        channels: `own`: so many bands in each principal component of the channels, which share none; `common`: what is
            equally strong is one band, in whichever component.

    Returns:
        The bands; PLAIN if there is but one, or, for `auto`, if samples have no axes or too many.

    Raises:
        UserError: if samples without axes, or with too many, are to have bands.
    """
    axes, own = x.ndim - 2, channels == "own"
    if count == 1 and not own:
        return PLAIN
    if not 1 <= axes <= MOST_AXES:
        if count == "auto" and not own:
            return PLAIN
        given, instead = ("channels: own", "common") if own else (f"bands: {count}", "1")
        raise UserError(f"{given}, but frequencies are those of samples with 1 to {MOST_AXES} axes after their "
                        f"channels, and this model's are of shape {list(x.shape[1:])}; make it {instead}")  # fmt: skip
    mixing, power = spectrum(x)
    if own:
        rows = [[edge for (edge,) in _columns(component[None], count) if edge > 0] for component in power]
        edges = _apart(rows)
    else:
        edges = tuple(zip(*_columns(power, count), strict=True))
    return Bands(edges, axes, mixing) if edges and edges[0] else PLAIN


def _columns(power: Tensor, count: int | Literal["auto"]) -> list[tuple[float, ...]]:
    """The edges between bands that are common to components of power [C, rings]: for each, where it is in them all."""
    top = max(power.max().item(), 1e-30)
    fall = math.log(top / max(power.min().item(), 1e-30))
    number = min(MOST, int(fall / math.log(WIDTH)) + 1) if count == "auto" else count
    width = math.log(WIDTH) if count == "auto" else fall / number
    bounds = [top * math.exp(-width * (i + 1)) for i in range(number - 1)]
    columns = [tuple(_edge(component, bound) for component in power) for bound in bounds]
    return [edges for edges in dict.fromkeys(columns) if min(edges) < math.inf]  # no band is empty


def _apart(rows: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    """Edges with which no two components share a band: the bands of the first components, then those of the next, ...;
    in a component, the bands before its own end at 0, and those after them begin at infinity."""
    inner = sum(map(len, rows)) + len(rows) - 1
    found, before = [], 0
    for row in rows:
        found.append((0.0,) * before + (*row,) + (math.inf,) * (inner - before - len(row)))
        before += len(row) + 1
    return tuple(found)


def spectrum(x: Tensor) -> tuple[tuple[tuple[float, ...], ...], Tensor]:
    """The principal components of the channels, and the power of each by frequency.

    Args:
        x: samples [n, C, ...].

    Returns:
        The rows of the orthonormal matrix that makes the components out of channels, and the mean square [C, rings] of
        each component's DCT coefficients in rings of one half cycle per side, made to fall from ring to ring.
    """
    x = x.detach().cpu().double()
    flat = x.movedim(1, -1).flatten(0, -2)
    _, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    matrix = vectors.flip(1).T
    largest = matrix.gather(1, matrix.abs().argmax(1, keepdim=True))
    matrix = matrix * largest.sign()  # an eigenvector has no sign of its own
    power = (matrix @ transformed(x, x.ndim - 2).flatten(2)).square().mean(0)
    ring = (2 * radii(x.shape[2:])).round().long().flatten()
    rings = torch.zeros(len(power), int(ring.max()) + 1, dtype=power.dtype).index_add(1, ring, power)
    mean = torch.where(torch.bincount(ring) > 0, rings / torch.bincount(ring), torch.inf)  # a ring may be empty
    return tuple(map(tuple, matrix.tolist())), mean.cummin(1).values


def _edge(power: Tensor, bound: float) -> float:
    """Where a falling power [rings] comes to lie below a bound, in cycles per side; infinity where it never does."""
    above = int((power >= bound).sum())
    if above == len(power):
        return math.inf
    return max(0.0, (above - 0.5) / 2)
