"""Each classical solver's best schedule, as measured on the embedded model (docs/results/schedules.md)."""

import csv
from pathlib import Path

from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import missing

PATH = Path(__file__).with_suffix(".csv")  # made by `python -m benchmarks.schedules`
USUAL = ("time_uniform", "time_quadratic", "edm", "logsnr")


def read(path: Path = PATH) -> dict[tuple[str, str, int], float]:
    """FID by (solver, schedule, NFE). Raises UserError for a file that is missing or broken."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {
                (row["solver"], row["schedule"], int(row["nfe"])): float(row["fid"]) for row in csv.DictReader(file)
            }
    except FileNotFoundError:
        raise missing(path) from None
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path}: not a table of solver, schedule, nfe and fid") from None


def schedule(solver: str, nfe: int, fids: dict[tuple[str, str, int], float]) -> str:
    """The best of the four usual schedules for a solver, at the measured NFE that is closest to `nfe`."""
    measured = {n for name, _, n in fids if name == solver}
    if not measured:
        raise UserError(
            f"{PATH.name}: has no row for {solver}: name its schedule in params.yaml, at classical_schedules.{solver}"
        )
    nearest = min(measured, key=lambda n: (abs(n - nfe), n))
    return min(USUAL, key=lambda name: fids.get((solver, name, nearest), float("inf")))
