"""Two solvers' files side by side."""

import textwrap
from pathlib import Path

import click

from s4spipe.commands import terminal
from s4spipe.commands.terminal import noise_levels
from s4spipe.models import noise
from s4spipe.report.tables import flat
from s4spipe.runtime.errors import printable
from s4spipe.sampling.tableau import Tableau


@click.command()
@click.argument("one", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
def compare(one: Path, other: Path) -> None:
    """Show where two solvers' files differ."""
    click.echo(differences(terminal.load(one), terminal.load(other), terminal.width()))


def differences(a: Tableau, b: Tableau, width: int = 100) -> str:
    """Where two solvers differ: times side by side, the largest difference of their weights, and their meta."""
    lines = [_line("", a.name, b.name), _line("evaluations", a.nfe, b.nfe), _line("depth", a.depth, b.depth)]
    lines.append(_line("steps", len(a.t) - 1, len(b.t) - 1))
    if noise.describe(a.noise) != noise.describe(b.noise):
        return "\n".join([*lines, "they are for different noise schedules, so nothing more can be compared"])
    for what, key in (("step", "t"), ("network's time", "t_c")):
        levels = [noise_levels(table, getattr(table, key)) for table in (a, b)]
        for i in range(max(map(len, levels))):
            ours, theirs = (f"{level[i]:.5g}" if i < len(level) else "" for level in levels)
            lines.append(_line(f"{what} {i}, sigma/alpha", ours, theirs))
    if a.basis != b.basis:
        lines += [_line("weights", *(table.basis.describe()["name"] for table in (a, b)))]
    elif a.nfe == b.nfe:
        W, c = ((getattr(a, key) - getattr(b, key)).abs().max().item() for key in ("W", "c"))
        lines.append(f"{'largest difference':30}{W:>14.3g} in W, {c:.3g} in c")
    one, other = ({key: value for key, value in flat(table.meta).items() if not isinstance(value, list)}
                  for table in (a, b))  # fmt: skip
    for key in one | other:
        if one.get(key) != other.get(key):
            lines += textwrap.wrap(
                f"{key}: {printable(str(one.get(key, '-')))} / {printable(str(other.get(key, '-')))}",
                width,
                subsequent_indent="    ",
            )
    return terminal.safe("\n".join(lines))


def _line(what: str, ours: object, theirs: object) -> str:
    return f"{what:30}{ours:>14}{theirs:>14}"
