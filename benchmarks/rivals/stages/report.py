"""The tables, of the rows that have been run."""

from pathlib import Path
from typing import Any

from benchmarks.rivals import page, params
from s4spipe.runtime.files import read_json, write_text


def main() -> None:
    settings, seconds = params.load(), read_json("timings.json")
    names = [f"{row}{schedule}" for row in settings["rows"] for schedule in ("", "_edm")]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in settings["models"]}
    for name, rows in found.items():
        for row in names:
            for path in sorted(Path(f"results/{name}").glob(f"{row}-[0-9]*.json")):
                took = seconds.get(f"{name}/{path.stem}", {})
                rows.setdefault(row, []).extend(with_seconds(cell, took) for cell in read_json(path))
    write_text("results/tables.md", page.page(found, settings))


def with_seconds(cell: dict[str, Any], took: dict[str, float]) -> dict[str, Any]:
    """A cell with the seconds that its NFE took, where they are known."""
    nfe = str(cell["nfe"])
    return cell | {"seconds": took[nfe]} if nfe in took else cell


if __name__ == "__main__":
    main()
