"""Files with several tableaux: what a learner may start from, or solvers of different NFEs."""

import json
from collections.abc import Sequence
from pathlib import Path

from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_json, write_text
from s4spipe.sampling.tableau import Tableau


def save_all(path: str | Path, tables: Sequence[Tableau]) -> None:
    """Write several tableaux as one JSON list, one per line."""
    write_text(path, "[\n" + ",\n".join(json.dumps(table.to_dict(), sort_keys=True) for table in tables) + "\n]\n")


def load_all(path: str | Path) -> list[Tableau]:
    """Read what `save_all` wrote. Raises UserError, naming the file and the entry, for anything else."""
    data = read_json(path)
    if not isinstance(data, list) or not data:
        raise UserError(f"{path}: must be a list of solvers; make it again with `dvc repro`")
    try:
        return [Tableau.from_dict(entry) for entry in data]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
