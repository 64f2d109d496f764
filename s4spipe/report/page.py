"""results/report.html: a run in one file that needs nothing else, and the same for two runs side by side."""

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from s4spipe.report import figures
from s4spipe.report.run import Run
from s4spipe.report.tables import COLUMNS, gap_closed
from s4spipe.tableau import Tableau

HERE = Path(__file__).parent


def report(run: Run) -> str:
    """The whole page of a run."""
    params, metrics = run.params, run.metrics
    teacher = f"{params.teacher.solver} on {params.teacher.steps} steps, {params.teacher.nfe} evaluations"
    count = params.sample.count if params.fid.count == "all" else params.fid.count
    against = "the model's own distribution" if params.reference.source == "model" else "real images"
    parts = [
        f"<h1>Few-step solvers of {escape(params.model.weights)}</h1>",
        f"<p>FID of {count:,} samples against {against}. The teacher is {escape(teacher)}; the best classical solver "
        "is the best of those below at the same number of evaluations (NFE). A click on a column's head sorts.</p>",
        _nav(params.nfe),
        _table(run),
        '<h2 id="fid">FID and gap closed</h2><div class="pair">',
        _figure(figures.fid_against_nfe(metrics, run.learned), "FID against NFE", "Lower is better; a log axis."),
        _figure(figures.gaps(metrics, run.learned), "Gap closed against NFE",
                "The part of the way from the best classical solver's FID (0) to the teacher's (1)."),
        "</div>",
    ]  # fmt: skip
    for nfe in params.nfe:
        parts += _section(run, nfe)
    return _page(f"s4spipe: {params.model.weights}", parts)


def comparison(runs: dict[str, Run]) -> str:
    """Two runs, by name, on one page: what was set otherwise, what came out."""
    (a, one), (b, other) = runs.items()
    ours, theirs = (_flat(run.params.model_dump()) for run in runs.values())
    changed = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    shown = [[key, *(str(side.get(key, "")) for side in (ours, theirs))] for key in changed]
    cells = dict.fromkeys([*one.cells, *other.cells])
    rows, kinds = [], []
    for cell in cells:
        values = [run.cells[cell]["fid"] if cell in run.cells else None for run in (one, other)]
        change = "" if None in values else f"{100 * (values[1] / values[0] - 1):+.1f}"
        rows.append([cell[0], cell[1], *("" if v is None else f"{v:.3f}" for v in values), change])
        kinds.append(_kind(cell[0], [*one.learned, *other.learned]))
    both = {f"{name} · {run}": (runs[run], name) for run in runs for name in runs[run].learned}
    merged = {"teacher": one.metrics["teacher"]} | {label: run.metrics[name] for label, (run, name) in both.items()}
    parts = [
        f"<h1>{escape(a)} and {escape(b)}</h1>",
        '<h2 id="parameters">What was set otherwise</h2>',
        _grid(["parameter", a, b], shown) if shown else "<p>Nothing: the parameters are the same.</p>",
        '<h2 id="fid">FID</h2>',
        _grid(["solver", "NFE", a, b, "change, %"], rows, kinds),
        _figure(figures.fid_against_nfe(merged, list(both)), "FID of both", f"The teacher is that of {a}."),
    ]
    for nfe in sorted({*one.params.nfe} & {*other.params.nfe}):
        arms = [(f"teacher · {name}", run, run.teacher) for name, run in runs.items()]
        arms += [(label, run, (name, nfe)) for label, (run, name) in both.items()]
        tables = {label: run.table(*cell) for label, run, cell in arms}
        sheet = [(label, run.cells[cell]["fid"], run.images(*cell)) for label, run, cell in arms]
        drawn = figures.schedules(tables, list(both))
        parts += [f'<h2 id="nfe{nfe}">NFE {nfe}</h2>', _sheet(sheet)]
        parts.append(_figure(drawn, f"Schedules at NFE {nfe}", "Steps of both runs' learned solvers."))
    return _page(f"s4spipe: {a} and {b}", parts)


def _section(run: Run, nfe: int) -> Iterable[str]:
    arms = run.arms(nfe)
    tables = {solver: run.table(solver, n) for solver, n in arms}
    histories = {solver: run.cells[solver, nfe]["history"] for solver in run.learned}
    best = run.best_classical(nfe)
    ways = (arm for arm in arms if arm[0] in ("teacher", best, *histories))
    paths = {arm[0]: run.cells[arm]["trajectories"] for arm in ways}
    yield f'<h2 id="nfe{nfe}">NFE {nfe}</h2><h3>Samples</h3><p>A column is one noise.</p>'
    yield _sheet([(solver, run.cells[solver, n]["fid"], run.images(solver, n)) for solver, n in arms])
    yield '<div class="pair">'
    yield _figure(figures.schedules(tables, run.learned), f"Schedules at NFE {nfe}",
                  "Where each solver steps, from noise on the left to the sample; a ring is another time that the "
                  "network is shown.")  # fmt: skip
    yield _figure(figures.trajectories(paths, run.learned), f"Trajectories at NFE {nfe}",
                  f"The states of {len(paths['teacher'])} samples, scaled to one size at all noise levels, in the "
                  "plane where the teacher's way has most of its extent; the ring is where that ends.")  # fmt: skip
    yield _figure(figures.losses(histories, run.learned), f"Losses at NFE {nfe}",
                  "On the validation pairs, relative to the solver that each fit started from; thin: on the training "
                  "pairs, whose noises move; the dot was kept.")  # fmt: skip
    yield "</div><h3>Coefficients</h3>"
    yield from (_coefficients(solver, tables[solver]) for solver in run.learned)


def _table(run: Run) -> str:
    measured = {key for cells in run.metrics.values() for cell in cells.values() for key in cell}
    columns = [c for c in COLUMNS if c in measured - {"fid"}]
    heads = ["solver", "NFE", "FID", "gap closed", *columns, "steps"]
    rows, kinds = [], []
    for solver, cells in run.metrics.items():
        for key, cell in cells.items():
            nfe = int(key.removeprefix("nfe"))
            gap = f"{gap_closed(run.metrics, solver, nfe, run.learned):.3f}" if solver in run.learned else ""
            rest = ("" if cell.get(c) is None else f"{cell[c]:.4g}" for c in columns)
            rows.append([solver, nfe, f"{cell['fid']:.3f}", gap, *rest, cell["steps"]])
            kinds.append(_kind(solver, run.learned))
    return '<h2 id="table">All solvers</h2>' + _grid([head.replace("_", " ") for head in heads], rows, kinds)


def _kind(solver: str, learned: list[str]) -> str:
    return "teacher" if solver == "teacher" else "learned" if solver in learned else "classical"


def _grid(heads: list[str], rows: list[list], kinds: list[str] | None = None) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(h)}</button></th>' for h in heads)
    body = ""
    for row, kind in zip(rows, kinds or [""] * len(rows), strict=True):
        body += f'<tr class="{kind}">' + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>"
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _sheet(rows: list[tuple[str, float, np.ndarray]]) -> str:
    body = ""
    for label, fid, images in rows:
        image = f'<img alt="samples of {escape(label)}" src="{_data(images)}">'
        body += f"<tr><td>{escape(label)}<br>FID {fid:.2f}</td><td>{image}</td></tr>"
    return f'<div class="scroll"><table class="sheet"><tbody>{body}</tbody></table></div>'


def _data(images: np.ndarray) -> str:
    """A row of images as the text of a PNG, a gap of an eighth between them."""
    gap = np.zeros((*images.shape[1:3], max(1, images.shape[3] // 8)), np.uint8)
    row = np.concatenate([part for image in images for part in (image, gap)][:-1], 2).transpose(1, 2, 0)
    alpha = np.concatenate(
        [np.full(part.shape[1:], a, np.uint8) for image in images for part, a in ((image, 255), (gap, 0))][:-1], 1
    )
    out = BytesIO()
    Image.fromarray(np.dstack([row, alpha]), "LA" if row.shape[2] == 1 else "RGBA").save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _coefficients(solver: str, table: Tableau) -> str:
    meta = table.meta
    if "b" in meta:
        maps = {"b, learned": meta["b"], "b, at the start": meta["b_start"]}
        limit = np.abs([meta["b"], meta["b_start"]]).max()
    else:
        maps = {"W, the weight of each evaluation in each state": table.W.tolist()}
        limit = table.W.abs().max().item()
    return '<div class="maps">' + "".join(_heat(f"{solver}: {n}", m, limit) for n, m in maps.items()) + "</div>"


def _heat(title: str, matrix: list[list[float]], limit: float) -> str:
    body = ""
    for i, row in enumerate(matrix):
        cells = "".join(
            f'<td style="--hue:var(--{"warm" if value > 0 else "cool"});--w:{abs(value) / limit:.3f}">{value:.3f}</td>'
            for value in row[: i + 1]
        )
        body += f"<tr><td>step {i + 1}</td>{cells}</tr>"
    return (
        f'<div class="scroll"><table class="heat"><caption>{escape(title)}</caption><tbody>{body}</tbody></table></div>'
    )


def _figure(figure, name: str, caption: str) -> str:
    image = figures.svg(figure, escape(name))
    return f"<figure>{image}<figcaption>{escape(name)}. {escape(caption)}</figcaption></figure>"


def _nav(nfes: list[int]) -> str:
    links = {"table": "all solvers", "fid": "FID"} | {f"nfe{nfe}": f"NFE {nfe}" for nfe in nfes}
    return "<nav>" + "".join(f'<a href="#{key}">{text}</a>' for key, text in links.items()) + "</nav>"


def _page(title: str, parts: Iterable[str]) -> str:
    style, script = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{chr(10).join(parts)}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _flat(block: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in block.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
