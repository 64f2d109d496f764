"""The tables, of the rows that have been run: of the development models, or of the confirmation models."""

from pathlib import Path
from typing import Any

import click

from benchmarks.rivals import page, params
from s4spipe.runtime.files import read_json, write_text

FOLDERS = {"results": "models", "confirmed": "confirmation"}


@click.command()
@click.argument("folder", type=click.Choice(tuple(FOLDERS)), default="results")
def main(folder: str) -> None:
    settings, seconds = params.load(), read_json("timings.json")
    if folder == "confirmed":
        settings["nfe"] = settings["confirmation_nfe"]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in settings[FOLDERS[folder]]:
        for row in (f"{row}{schedule}" for row in settings["rows"] for schedule in ("", "_edm")):
            for path in sorted(Path(f"{folder}/{name}").glob(f"{row}-[0-9]*.json")):
                took = seconds.get(f"{name}/{path.stem}", {})
                cells = found.setdefault(name, {}).setdefault(row, [])
                cells.extend(with_seconds(cell, took) for cell in read_json(path))
    write_text(f"{folder}/tables.md", page.page(found, settings))


def with_seconds(cell: dict[str, Any], took: dict[str, float]) -> dict[str, Any]:
    """A cell with the seconds that its NFE took, where they are known."""
    nfe = str(cell["nfe"])
    return cell | {"seconds": took[nfe]} if nfe in took else cell


if __name__ == "__main__":
    main()
