"""Each classical solver's best schedule, as measured on the embedded model: docs/schedules.csv."""

import csv
from pathlib import Path

from s4spipe.errors import UserError
from s4spipe.files import missing

PATH = Path("docs/schedules.csv")  # made by `python -m benchmarks.schedules`
USUAL = ("time_uniform", "time_quadratic", "edm", "logsnr")


def read(path: Path = PATH) -> dict[tuple[str, str, int], float]:
    """FID by (solver, schedule, NFE). Raises UserError for a file that is missing or broken."""
    try:
        with open(path, newline="") as file:
            return {(row["solver"], row["steps"], int(row["nfe"])): float(row["fid"]) for row in csv.DictReader(file)}
    except FileNotFoundError:
        raise missing(path) from None
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path}: not a table of solver, steps, nfe and fid") from None


def schedule(solver: str, nfe: int, fids: dict[tuple[str, str, int], float]) -> str:
    """The best of the four usual schedules for the solver, at the measured NFE nearest to `nfe`."""
    measured = {n for name, _, n in fids if name == solver}
    if not measured:
        raise UserError(
            f"{PATH}: has no row for {solver}: name its schedule in params.yaml, at classical_steps.{solver}"
        )
    nearest = min(measured, key=lambda n: (abs(n - nfe), n))
    return min(USUAL, key=lambda name: fids.get((solver, name, nearest), float("inf")))
