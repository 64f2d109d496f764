"""The tables, of the rows that have been run: of the development models, or of the confirmation models."""

from pathlib import Path
from typing import Any

import click

from benchmarks.rivals import figure, page, params
from s4spipe.runtime.files import read_json, write_text

FOLDERS = {"results": "models", "confirmed": "confirmation"}
BESIDE = "digits"  # a development model that the figure of the confirmation models shows, too


@click.command()
@click.argument("folder", type=click.Choice(tuple(FOLDERS)), default="results")
def main(folder: str) -> None:
    settings, seconds = params.load(), read_json("timings.json")
    by_model = [set(nfes) for nfes in settings["confirmation_nfe"].values()]
    if folder == "confirmed":
        settings["nfe"] = sorted(set.union(*by_model))
    found = {name: read(f"{folder}/{name}", settings, seconds) for name in settings[FOLDERS[folder]]}
    found = {name: rows for name, rows in found.items() if rows}
    write_text(f"{folder}/tables.md", page.page(found, settings))
    if folder == "confirmed":
        beside = {f"{BESIDE} (chosen on)": read(f"results/{BESIDE}", settings, seconds)}
        figure.draw(beside | found, sorted(set.intersection(*by_model)), Path(folder) / "distances.png")


def read(folder: str, settings: dict[str, Any], seconds: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The cells of every row that has been run on a model."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in (f"{row}{schedule}" for row in settings["rows"] for schedule in ("", "_edm")):
        for path in sorted(Path(folder).glob(f"{row}-[0-9]*.json")):
            took = seconds.get(f"{Path(folder).name}/{path.stem}", {})
            rows.setdefault(row, []).extend(with_seconds(cell, took) for cell in read_json(path))
    return rows


def with_seconds(cell: dict[str, Any], took: dict[str, float]) -> dict[str, Any]:
    """A cell with the seconds that its NFE took, where they are known."""
    nfe = str(cell["nfe"])
    return cell | {"seconds": took[nfe]} if nfe in took else cell


if __name__ == "__main__":
    main()
