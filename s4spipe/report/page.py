"""A run as one self-contained HTML page, and a page that compares two runs."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from s4spipe.evaluation.thumbnails import picture, tile
from s4spipe.pipeline.layout import Cell
from s4spipe.report import figures
from s4spipe.report.run import Run
from s4spipe.report.tables import COLUMNS, flat, gap_closed, spent
from s4spipe.runtime.errors import needs
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import Bands

with needs("pipeline", "writing the report"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

HERE = Path(__file__).parent
# The heads of the columns whose names are not plain words.
HEADS = {"fid_real": "FID to real images", "kid": "KID", "clip_score": "CLIP score",
         "teacher_distance": "distance to the teacher"}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure, and its name, which begins the caption."""

    name: str
    svg: Markup

    @classmethod
    def of(cls, figure: figures.Figure, name: str) -> "Drawing":
        return cls(name, Markup(figures.svg(figure, name)))


@dataclass(frozen=True)
class Row:
    """A row of a table, of the kind teacher, learned or classical, or of none."""

    cells: list[Any]
    kind: str = ""


@dataclass(frozen=True)
class Samples:
    """A labelled row of samples, as a data URL of a picture."""

    label: str
    fid: float
    image: str


@dataclass(frozen=True)
class Heat:
    """Rows of numbers as a heat map. `row` names a row; `limit` is the value with full colour."""

    title: str
    row: str
    matrix: list[list[float]]
    limit: float


def report(run: Run) -> str:
    """The page of a run."""
    params, learned = run.params, run.learned
    columns = [c for c in COLUMNS if c != "fid" and any(c in numbers for numbers in run.cells.values())]
    return _render(
        "report.html",
        title=params.model.name,
        samples=run.cells[run.teacher]["samples"],
        against="the model's own distribution" if params.reference.source == "model" else "real images",
        teacher=run.teachers_name,
        heads=["solver", "NFE", "FID", "gap closed", *(HEADS.get(c, c.replace("_", " ")) for c in columns), "schedule"],
        rows=[_row(run, cell, columns) for cell in run.cells],
        fid=Drawing.of(figures.fid_against_nfe(run.cells, learned), "FID against NFE"),
        gaps=Drawing.of(figures.gaps(run.cells, learned), "Gap closed against NFE") if learned else None,
        sections=[_section(run, nfe) for nfe in params.nfe],
    )


def comparison(runs: Mapping[str, Run]) -> str:
    """Two runs, by name, on one page: how their parameters and their results differ."""
    (a, one), (b, other) = runs.items()
    ours, theirs = (flat(run.params.model_dump()) for run in (one, other))
    changed = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    learned = {f"{solver} · {name}": (run, solver) for name, run in runs.items() for solver in run.learned}
    merged = {one.teacher: one.cells[one.teacher]}
    for label, (run, solver) in learned.items():
        merged |= {Cell(label, cell.nfe): numbers for cell, numbers in run.cells.items() if cell.solver == solver}
    sections = []
    for nfe in (nfe for nfe in one.params.nfe if nfe in other.params.nfe):
        shown = {f"teacher · {name}": (run, run.teacher) for name, run in runs.items()}
        shown |= {label: (run, Cell(solver, nfe)) for label, (run, solver) in learned.items()}
        tableaux = {label: run.tableau(cell) for label, (run, cell) in shown.items() if run.has_tableau(cell)}
        drawing = Drawing.of(figures.schedules(tableaux, list(learned)), f"Schedules at NFE {nfe}")
        sheet = [_samples(label, run, cell) for label, (run, cell) in shown.items()]
        sections.append({"nfe": nfe, "sheet": sheet, "schedules": drawing})
    return _render(
        "comparison.html",
        title=f"{a} and {b}",
        names=[a, b],
        parameters=[Row([key, *(side.get(key, "") for side in (ours, theirs))]) for key in changed],
        rows=[_change(cell, one, other) for cell in dict.fromkeys([*one.cells, *other.cells])],
        fid=Drawing.of(figures.fid_against_nfe(merged, list(learned)), "FID of both"),
        sections=sections,
    )


def _section(run: Run, nfe: int) -> dict[str, Any]:
    """The section of one NFE."""
    learned, cells = run.learned, run.cells_at(nfe)
    tableaux = {cell.solver: run.tableau(cell) for cell in cells if run.has_tableau(cell)}
    followed = [run.teacher, run.best_classical(nfe), *run.learned_at(nfe)]
    paths = {cell.solver: run.trajectories(cell) for cell in followed}
    histories = {cell.solver: run.history(cell) for cell in run.learned_at(nfe)}
    return {
        "nfe": nfe,
        "sheet": [_samples(cell.solver, run, cell) for cell in cells],
        "schedules": Drawing.of(figures.schedules(tableaux, learned), f"Schedules at NFE {nfe}"),
        "trajectories": Drawing.of(figures.trajectories(paths, learned), f"Trajectories at NFE {nfe}"),
        "shown": len(paths[run.teacher.solver]),
        "losses": Drawing.of(figures.losses(histories, learned), f"Losses at NFE {nfe}") if histories else None,
        "maps": [_maps(solver, tableaux[solver]) for solver in learned],
    }


def _row(run: Run, cell: Cell, columns: Sequence[str]) -> Row:
    numbers = run.cells[cell]
    gap = f"{gap_closed(run.cells, cell, run.learned):.3f}" if cell.solver in run.learned else ""
    rest = ["" if numbers.get(column) is None else f"{numbers[column]:.4g}" for column in columns]
    row = [cell.solver, spent(cell, numbers), f"{numbers['fid']:.3f}", gap, *rest, numbers["schedule"]]
    return Row(row, _kind(cell, run))


def _change(cell: Cell, one: Run, other: Run) -> Row:
    fids = [run.cells[cell]["fid"] for run in (one, other) if cell in run.cells]
    change = f"{100 * (fids[1] / fids[0] - 1):+.1f}" if len(fids) == 2 and fids[0] else ""
    shown = (f"{run.cells[cell]['fid']:.3f}" if cell in run.cells else "" for run in (one, other))
    return Row([cell.solver, cell.nfe, *shown, change], _kind(cell, one, other))


def _kind(cell: Cell, *runs: Run) -> str:
    if cell.solver == "teacher":
        return "teacher"
    return "learned" if any(cell.solver in run.learned for run in runs) else "classical"


def _samples(label: str, run: Run, cell: Cell) -> Samples:
    """The samples of a cell as a picture, with transparent gaps of an eighth of their width."""
    images = run.images(cell)
    gap = max(1, images.shape[3] // 8)
    opaque = np.concatenate([images, np.full_like(images[:, :1], 255)], 1)
    png = BytesIO()
    picture(tile(opaque[None], gap, 0)[:-gap, :-gap]).save(png, "PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    return Samples(label, run.cells[cell]["fid"], address)


def _maps(solver: str, table: Tableau) -> list[Heat]:
    """The coefficients b of a learned solver and their initial values; or W if it has no b, also by frequency."""
    if "b" not in table.meta:
        plain = table.W.ndim == 2
        W = table.W if plain else table.W.flatten(2).mean(2)
        title = f"{solver}: W, the {'weight' if plain else 'mean weight'} of each evaluation in each state"
        maps = [Heat(title, "state", triangle(W.tolist()), W.abs().max().item() or 1.0)]
        if isinstance(table.basis, Bands):
            sums = table.W.sum(1)
            title = f"{solver}: the weights of all evaluations together in each state, by band, from low frequencies up"
            maps.append(Heat(title, "state", sums.tolist(), sums.abs().max().item() or 1.0))
        return maps
    matrices = {"b, learned": table.meta["b"], "b, initial": table.meta["b_start"]}
    limit = float(np.abs(list(matrices.values())).max()) or 1.0
    return [Heat(f"{solver}: {name}", "step", triangle(matrix), limit) for name, matrix in matrices.items()]


def triangle(matrix: list[list[float]]) -> list[list[float]]:
    """The lower triangle of a matrix."""
    return [row[: i + 1] for i, row in enumerate(matrix)]


def _render(template: str, **content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader([HERE / "templates", HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(content)
