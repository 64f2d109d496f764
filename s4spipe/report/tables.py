"""fid.json, fid.csv and the table of FID by solver."""

import csv
import io

Metrics = dict[
    str, dict[str, dict]
]  # {solver: {"nfe5": {"fid": .., "teacher_distance": .., "seconds_per_sample": ..}}}

COLUMNS = ["network_calls", "depth", "fid", "fid_real", "kid", "precision", "recall", "clip_score"]
COLUMNS += ["teacher_distance", "seconds_per_sample"]


def to_csv(metrics: Metrics) -> str:
    """One row per solver and NFE. `network_calls` is how many a sample needs (under guidance two for an evaluation),
    `depth` how many evaluations wait for one another. What was not measured is left empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["solver", "nfe", "steps", *COLUMNS])
    for solver, cells in metrics.items():
        for nfe, cell in cells.items():
            writer.writerow([solver, nfe.removeprefix("nfe"), cell["steps"], *(cell.get(c, "") for c in COLUMNS)])
    return out.getvalue()


def to_markdown(metrics: Metrics, nfes: list[int], learned: list[str]) -> str:
    """FID by solver (rows) and NFE (columns), the learned solvers' gap closed, the teacher, and under guidance how many
    network calls a sample needs."""
    teacher = metrics["teacher"]
    ((teacher_nfe, reference),) = teacher.items()
    rows = [["FID at NFE", *map(str, nfes)]]
    for solver, cells in metrics.items():
        if solver != "teacher":
            rows.append([solver, *(f"{cells[f'nfe{nfe}']['fid']:.3f}" for nfe in nfes)])
    rows.append([f"teacher ({teacher_nfe.removeprefix('nfe')} NFE)", *[f"{reference['fid']:.3f}"] * len(nfes)])
    for solver in learned:
        rows.append([f"gap closed by {solver}", *(f"{gap_closed(metrics, solver, nfe, learned):.3f}" for nfe in nfes)])
    calls = [
        next(cells[f"nfe{nfe}"] for s, cells in metrics.items() if s != "teacher")["network_calls"] for nfe in nfes
    ]
    if calls != nfes:
        rows.append(["network calls", *map(str, calls)])
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ["| " + " | ".join([name.ljust(first), *map(str.rjust, values, widths)]) + " |" for name, *values in rows]
    lines.insert(1, f"|{'-' * (first + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths))
    return "\n".join(lines) + "\n"


def of_fid(metrics: Metrics, learned: list[str]) -> dict[str, float]:
    """What `dvc exp show` and `dvc metrics diff` have room for: FIDs, and the gap closed by each learned solver."""
    shown = {}
    for solver, cells in metrics.items():
        for key, cell in cells.items():
            nfe = int(key.removeprefix("nfe"))
            shown[f"{solver}-{nfe}"] = cell["fid"]
            if solver in learned:
                shown[f"gap {solver}-{nfe}"] = round(gap_closed(metrics, solver, nfe, learned), 4)
    return shown


def gap_closed(metrics: Metrics, solver: str, nfe: int, learned: list[str]) -> float:
    """(best classical - solver) / (best classical - teacher) in FID; 1 is as good as the teacher."""
    (teacher,) = (cell["fid"] for cell in metrics["teacher"].values())
    best = min(cells[f"nfe{nfe}"]["fid"] for name, cells in metrics.items() if name not in ("teacher", *learned))
    return (best - metrics[solver][f"nfe{nfe}"]["fid"]) / (best - teacher)
