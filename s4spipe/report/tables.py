"""Tables of a run's metrics: Markdown, CSV, and the JSON that DVC shows."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

from s4spipe.pipeline.layout import Cell

# The metrics of each cell: fid, teacher_distance, nfe, ...; the first cell is the teacher's.
Metrics = Mapping[Cell, Mapping[str, Any]]

COLUMNS = ["network_calls", "depth", "fid", "fid_real", "kid", "precision", "recall", "clip_score", "teacher_distance"]
DISPLAY = ("thumbnails",)  # entries of a cell that are not metrics


def by_solver(metrics: Metrics) -> dict[str, dict[int, Mapping[str, Any]]]:
    """The same numbers, by solver and then by NFE."""
    solvers: dict[str, dict[int, Mapping[str, Any]]] = {}
    for cell, numbers in metrics.items():
        solvers.setdefault(cell.solver, {})[cell.nfe] = numbers
    return solvers


def flat(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of nested mappings, with their keys joined by dots."""
    entries: dict[str, Any] = {}
    for key, value in block.items():
        entries |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return entries


def to_json(metrics: Metrics) -> dict[str, dict[str, dict[str, Any]]]:
    """JSON-ready data: {"ddim": {"nfe5": {"fid": .., "teacher_distance": .., ..}}}."""
    return {
        solver: {f"nfe{nfe}": {k: v for k, v in numbers.items() if k not in DISPLAY} for nfe, numbers in cells.items()}
        for solver, cells in by_solver(metrics).items()
    }


def to_csv(metrics: Metrics) -> str:
    """One row per solver and NFE; missing metrics are left empty.

    `network_calls` is the number of network evaluations per sample (under guidance, two per evaluation of the
    denoiser). `depth` is the number of the denoiser's calls in sequence.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["solver", "nfe", "schedule", *COLUMNS])
    for cell, numbers in metrics.items():
        shown = (numbers.get(c, "") for c in COLUMNS)
        writer.writerow([cell.solver, spent(cell, numbers), numbers["schedule"], *shown])
    return out.getvalue()


def to_markdown(metrics: Metrics, nfes: Iterable[int], learned: list[str]) -> str:
    """FID by solver (rows) and NFE (columns), then the teacher's, the gap that each learned solver closes, and under
    guidance the network calls per sample."""
    nfes, target = list(nfes), teacher(metrics)
    solvers = {solver: cells for solver, cells in by_solver(metrics).items() if solver != target.solver}
    rows = [["FID at NFE", *map(str, nfes)]]
    for solver, cells in solvers.items():
        rows.append([solver, *(f"{cells[nfe]['fid']:.3f}" for nfe in nfes)])
    rows.append([teacher_label(metrics), *[f"{metrics[target]['fid']:.3f}"] * len(nfes)])
    for solver in learned:
        gaps = (gap_closed(metrics, Cell(solver, nfe), learned) for nfe in nfes)
        rows.append([f"gap closed by {solver}", *(f"{gap:.3f}" for gap in gaps)])
    calls = [next(cells[nfe] for cells in solvers.values())["network_calls"] for nfe in nfes]
    if calls != nfes:
        rows.append(["network calls", *map(str, calls)])
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ["| " + " | ".join([name.ljust(first), *map(str.rjust, values, widths)]) + " |" for name, *values in rows]
    lines.insert(1, f"|{'-' * (first + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths))
    return "\n".join(lines) + "\n"


def of_fid(metrics: Metrics, learned: list[str]) -> dict[str, float]:
    """What fits into `dvc exp show` and `dvc metrics diff`: FIDs, and the gap that each learned solver closes."""
    shown = {}
    for cell, numbers in metrics.items():
        shown[str(cell)] = numbers["fid"]
        gap = gap_closed(metrics, cell, learned) if cell.solver in learned else math.nan
        if not math.isnan(gap):
            shown[f"gap {cell}"] = round(gap, 4)
    return shown


def gap_closed(metrics: Metrics, cell: Cell, learned: list[str]) -> float:
    """(best classical - solver) / (best classical - teacher), in FID at the cell's NFE; 1 is as good as the teacher.

    NaN if the best classical solver is just as good as the teacher: there is no gap then.
    """
    target = teacher(metrics)
    classical = (other for other in metrics if other.nfe == cell.nfe and other.solver not in (target.solver, *learned))
    best = min(metrics[other]["fid"] for other in classical)
    gap = best - metrics[target]["fid"]
    return (best - metrics[cell]["fid"]) / gap if gap else math.nan


def teacher(metrics: Metrics) -> Cell:
    """The teacher's cell."""
    return next(cell for cell in metrics if cell.solver == "teacher")


def teacher_label(metrics: Metrics) -> str:
    """What the teacher is called where its NFE belongs to its name."""
    target = teacher(metrics)
    spends = metrics[target].get("evaluations")  # of an adaptive solver
    return f"teacher ({spends['mean']:.0f} NFE on average)" if spends else f"teacher ({target.nfe} NFE)"


def spent(cell: Cell, numbers: Mapping[str, Any]) -> int:
    """Evaluations per sample; of an adaptive solver, whose cell has those that are allowed, the most of a sample."""
    return numbers["nfe"] if "evaluations" in numbers else cell.nfe
