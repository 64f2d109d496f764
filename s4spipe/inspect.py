"""Solver files in words and columns, for a terminal."""

import textwrap

import torch
import yaml

from s4spipe import noise
from s4spipe.tableau import Tableau

LONG = 8  # numbers; a longer list in a solver's provenance is left to its file


def show(table: Tableau, width: int = 100) -> str:
    """What a solver is: its times, its table, where it comes from."""
    schedule = table.noise
    about = noise.describe(schedule)
    numbers = ", ".join(f"{key} {value:g}" for key, value in about.items() if isinstance(value, int | float))
    lines = [
        f"{table.name}: {table.nfe} evaluations (depth {table.depth}) in {len(table.t) - 1} steps, "
        f"for {about['name']} noise" + (f" ({numbers})" if numbers else ""),
        "",
        "steps, as sigma/alpha:",
        *_wrapped([f"{value:.4g}" for value in ratio(table, table.t)], width),
        "shown to the network:",
        *_wrapped([f"{value:.4g}" for value in ratio(table, table.t_c)], width),
        "",
        "evaluation: weight of the noise, then of evaluations 0, 1, ..",
    ]
    for i, (c, row) in enumerate(zip(table.c.tolist(), table.W.tolist(), strict=True)):
        first, *rest = _wrapped([f"{c:8.4f} |", *(f"{weight:8.4f}" for weight in row[: i + 1])], width - 6)
        lines += [f"{i + 1:4}: {first}", *(f"      {line}" for line in rest)]
    provenance = {key: value for key, value in table.meta.items() if not _is_long(value)}
    if provenance:
        lines += ["", yaml.safe_dump(provenance, sort_keys=False, width=width).rstrip()]
    return "\n".join(lines)


def compare(a: Tableau, b: Tableau, width: int = 100) -> str:
    """Where two solvers differ: times side by side, the tables' largest difference, parameters."""
    lines = [f"{'':30}{a.name:>14}{b.name:>14}"]
    for what, get in (
        ("evaluations", lambda x: x.nfe),
        ("depth", lambda x: x.depth),
        ("steps", lambda x: len(x.t) - 1),
    ):
        lines.append(f"{what:30}{get(a):>14}{get(b):>14}")
    if noise.describe(a.noise) != noise.describe(b.noise):
        return "\n".join([*lines, "they are for other noise: nothing more can be compared"])
    for what, times in (("step", lambda x: x.t), ("network's time", lambda x: x.t_c)):
        ours, theirs = (ratio(table, times(table)) for table in (a, b))
        for i in range(max(len(ours), len(theirs))):
            cells = (f"{side[i]:.5g}" if i < len(side) else "" for side in (ours, theirs))
            lines.append(f"{f'{what} {i}, sigma/alpha':30}" + "".join(f"{cell:>14}" for cell in cells))
    if a.nfe == b.nfe:
        lines.append(
            f"{'largest difference':30}{(a.W - b.W).abs().max():>14.3g} in W, {(a.c - b.c).abs().max():.3g} in c"
        )
    ours, theirs = (_flat(table.meta) for table in (a, b))
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        if ours.get(key) != theirs.get(key):
            values = (str(side.get(key, "-")) for side in (ours, theirs))
            lines += textwrap.wrap(f"{key}: {' / '.join(values)}", width, subsequent_indent="    ")
    return "\n".join(lines)


def ratio(table: Tableau, t: torch.Tensor) -> list[float]:
    """sigma/alpha at times t: the noise level, whatever the model's clock."""
    return (table.noise.sigma(t) / table.noise.alpha(t)).tolist()


def _wrapped(cells: list[str], width: int) -> list[str]:
    return textwrap.wrap("  ".join(cells), width, break_on_hyphens=False) or [""]


def _is_long(value: object) -> bool:
    return isinstance(value, list) and sum(len(row) if isinstance(row, list) else 1 for row in value) > LONG


def _flat(meta: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in meta.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            flat[f"{prefix}{key}"] = value
    return flat
