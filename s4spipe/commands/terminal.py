"""Common code of the commands that show solvers in a terminal."""

import dataclasses
import shutil
import textwrap
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML
from torch import Tensor

from s4spipe.pipeline import layout
from s4spipe.report import measured
from s4spipe.report.tables import COLUMNS
from s4spipe.runtime.errors import printable
from s4spipe.sampling.tableau import Tableau

NARROWEST = 20  # characters: for an indentation and a number

nfe_option = click.option(
    "--nfe", type=click.IntRange(1), help="Evaluations of the solver to take from a file that has several."
)


def load(solver: Path, nfe: int | None = None) -> Tableau:
    """A solver from its file, or one with `nfe` evaluations from a file with several. If the file is in a run, its meta
    includes what was measured, as `measured`.

    Raises UserError for any other file.
    """
    table, found = Tableau.load(solver, nfe), layout.cell_of(solver)
    if found is None:
        return table
    places, cell = found
    path = places.evaluation(cell, "metrics.json")
    if not path.exists():
        return table
    numbers = measured.metrics(path)
    shown = {key: numbers[key] for key in (*COLUMNS, "samples") if key in numbers}
    return dataclasses.replace(table, meta=table.meta | {"measured": shown})


def width() -> int:
    """Characters in a line of the terminal. In a narrower one, it breaks the lines itself."""
    return max(NARROWEST, shutil.get_terminal_size().columns)


def safe(text: str) -> str:
    """The lines of a text, without anything that a terminal would obey or could not show."""
    return "\n".join(map(printable, text.split("\n")))


def wrapped(words: list[str], width: int) -> list[str]:
    """Lines of up to `width` characters."""
    return textwrap.wrap("  ".join(words), width, break_on_hyphens=False) or [""]


def to_yaml(data: Mapping[str, Any], width: int = 100) -> str:
    """Data as YAML, its keys in their order, without a newline at the end."""
    out = StringIO()
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output, yaml.width = False, False, width
    yaml.dump(dict(data), out)
    return out.getvalue().rstrip("\n")


def noise_levels(table: Tableau, t: Tensor) -> list[float]:
    """sigma/alpha at times t, which does not depend on the model's clock."""
    return (table.noise.sigma(t) / table.noise.alpha(t)).tolist()
