"""A solver's file in words and columns."""

import math
from collections.abc import Iterator
from pathlib import Path

import click
from torch import Tensor

from s4spipe.commands import terminal
from s4spipe.commands.terminal import noise_levels, wrapped
from s4spipe.models import noise
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import Arrays, Bands

LONG = 8  # longer lists of numbers in a solver's meta are not shown


@click.command()
@click.argument("solver", type=click.Path(path_type=Path))
@terminal.nfe_option
def show(solver: Path, nfe: int | None) -> None:
    """Show a solver's file: its times, its weights, its origin and, in a run, what was measured."""
    click.echo(describe(terminal.load(solver, nfe), terminal.width()))


def describe(table: Tableau, width: int = 100) -> str:
    """A description of a solver, in lines of up to `width` characters except for the first."""
    about = noise.describe(table.noise)
    numbers = ", ".join(f"{key} {value:g}" for key, value in about.items() if isinstance(value, int | float))
    lines = [
        f"{table.name}: {table.nfe} evaluations (depth {table.depth}) in {len(table.t) - 1} steps, "
        f"for {about['name']} noise" + (f" ({numbers})" if numbers else ""),
        "",
        "times of the steps, as sigma/alpha:",
        *wrapped([f"{value:.4g}" for value in noise_levels(table, table.t)], width),
        "times shown to the network, as sigma/alpha:",
        *wrapped([f"{value:.4g}" for value in noise_levels(table, table.t_c)], width),
    ]
    for title, c, W in _parts(table):
        lines += ["", f"state: weight of x_T | weights of the evaluations 0, 1, ...{title}"]
        for i, (weight, row) in enumerate(zip(c.tolist(), W.tolist(), strict=True)):
            first, *rest = wrapped([f"{weight:8.4f} |", *(f"{other:8.4f}" for other in row[: i + 1])], width - 6)
            lines += [f"{i + 1:4}: {first}", *(f"      {line}" for line in rest)]
    if table.extras:
        lines += ["", *_added(table, width)]
    origin = {key: value for key, value in table.meta.items() if not _is_long(value)}
    if origin:
        lines += ["", terminal.to_yaml(origin, width)]
    return terminal.safe("\n".join(lines))


def _added(table: Tableau, width: int) -> Iterator[str]:
    """What is added to the states: the weights of the constant and of the fresh noises."""
    k = len(table.basis.shape)
    beta, V = (value if value is None or not k else value.mean([-1 - i for i in range(k)])
               for value in (table.beta, table.V))  # fmt: skip
    titles = [f"weight of the constant m {list(table.m.shape)}"] if table.m is not None else []
    titles += ["weights of the fresh noises 0, 1, ..."] if V is not None else []
    yield f"state: {' | '.join(titles)}{', means over all frequencies' if k else ''}"
    for i in range(table.nfe + 1):
        constant = [f"{beta[i]:8.4f}" + (" |" if V is not None else "")] if beta is not None else []
        fresh = [f"{weight:8.4f}" for weight in V[i].tolist()] if V is not None else []
        first, *rest = wrapped([*constant, *fresh], width - 6)
        yield f"{i:4}: {first}"
        yield from (f"      {line}" for line in rest)


def _parts(table: Tableau) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What follows the title of a matrix of weights, c [N] and W [N, N]: for all of a sample, or for each band."""
    if isinstance(table.basis, Bands):
        for band in range(*table.basis.shape):
            yield f", {_where(table.basis, band)}", table.c[:, band], table.W[:, :, band]
    elif isinstance(table.basis, Arrays):
        axes = tuple(range(1, table.c.ndim))
        yield (f", means of arrays {list(table.basis.shape)}", table.c.mean(axes), table.W.mean([a + 1 for a in axes]))
    else:
        yield "", table.c, table.W


def _where(bands: Bands, band: int) -> str:
    """Where a band lies: from and to which frequency; in how many components of the channels, if not in all alike."""
    ends = [(0.0, *row, math.inf)[band : band + 2] for row in bands.rows]
    spans = [f"{low:g} to {high:g}".replace("inf", "...") for low, high in ends if low < high]
    if len(bands.rows) == 1:
        return f"{spans[0]} cycles per side"
    listed = "; ".join([*spans[:3], *(["..."] if len(spans) > 3 else [])])
    return f"{listed} cycles per side in {len(spans)} of {len(ends)} components of the channels"


def _is_long(value: object) -> bool:
    return isinstance(value, list) and sum(len(row) if isinstance(row, list) else 1 for row in value) > LONG
