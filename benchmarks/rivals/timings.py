"""Bring the seconds of the rows that were run here into timings.json, which the report reads.

Run as `PYTHONPATH=../.. python -m benchmarks.rivals.timings` in benchmarks/rivals. Seconds differ from run to run, so
no stage writes this file: it changes when someone means to publish new ones.
"""

import json
from pathlib import Path

from s4spipe.runtime.files import read_json, write_text

FILE, FOLDER = "timings.json", Path("timings")


def main() -> None:
    new = {str(path.relative_to(FOLDER).with_suffix("")): read_json(path) for path in FOLDER.glob("*/*.json")}
    known = read_json(FILE)
    for row, took in new.items():
        every = known.get(row, {}) | {nfe: round(seconds, 3) for nfe, seconds in took.items()}
        known[row] = {nfe: every[nfe] for nfe in sorted(every, key=int)}
    write(known)


def write(seconds: dict[str, dict[str, float]]) -> None:
    """A row a line."""
    lines = [f"  {json.dumps(row)}: {json.dumps(seconds[row])}" for row in sorted(seconds)]
    write_text(FILE, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
