"""The figures of a run, drawn by matplotlib: as PNG files, or as SVG within the page, in the colours of its text."""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from torch import Tensor

from s4spipe.evaluation.thumbnails import tile
from s4spipe.report.tables import Metrics, by_solver, gap_closed, teacher, teacher_label
from s4spipe.runtime.errors import UserError, needs
from s4spipe.runtime.files import atomic
from s4spipe.sampling.tableau import Tableau

os.environ["MPLBACKEND"] = "agg"  # that of a notebook or a window, which a shell may hand on, stops the import
with needs("pipeline", "drawing figures"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    matplotlib.rcdefaults()  # whatever a matplotlibrc here or at home says
    import matplotlib.pyplot as plt

Arguments = ParamSpec("Arguments")

INK = "#000001"  # a black that differs from any other; on the page it becomes the colour of the text
GREY = "#8b9199"
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = {
    **dict.fromkeys(INKED, INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
}
COLOURS = ("#e66101", "#d6336c", "#1c9a6c", "#7c62d9", "#b8860b", "#2f8fd0", "#8a9a1b", "#c05621")  # of learned solvers
MARKS = "ovs^Dp*hXP<>"  # of classical solvers
WIDTH = 5.2  # inches: text keeps a readable size where the page is as wide as a phone


def save(figure: Figure, path: Path) -> None:
    """A PNG without the date, so that the same figure gives the same bytes."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element, in the colour of the text around it; `name` is its label, and sets its ids apart
    from those of other figures."""
    out = StringIO()
    with plt.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r' id="(?:figure|axes|text|patch|line2d|matplotlib\.axis|xtick|ytick|legend|PathC)[^"]*"', "", text)
    label = escape(name)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>',
                  lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{label}">', text)  # fmt: skip
    return text.replace(INK, "currentColor")


def colours(learned: Iterable[str]) -> dict[str, str]:
    """A colour for each learned solver."""
    return dict(zip(learned, itertools.cycle(COLOURS), strict=False))


def plain(name: str, most: int = 60) -> str:
    """A name from a file or the command line as matplotlib shows it letter by letter: no formula, no endless line."""
    shown = name if len(name) <= most else f"{name[: most - 3]}..."
    return "".join(c if c.isprintable() else "?" for c in shown).replace("$", r"\$")


def _styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    @wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def _legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=columns)


@_styled
def fid_against_nfe(metrics: Metrics, learned: Sequence[str]) -> Figure:
    """FID of every solver against NFE, on a log axis, with the teacher as a line."""
    figure, axes = plt.subplots(figsize=(WIDTH, 4.4))
    marks, colour, target = itertools.cycle(MARKS), colours(learned), teacher(metrics)
    for solver, cells in by_solver(metrics).items():
        nfe, fid = list(cells), [numbers["fid"] for numbers in cells.values()]
        if solver == target.solver:
            axes.axhline(fid[0], color=INK, linestyle="--", linewidth=1, label=teacher_label(metrics))
        elif solver in colour:
            axes.plot(nfe, fid, "o-", color=colour[solver], linewidth=2.5, label=plain(solver), zorder=3)
        else:
            axes.plot(nfe, fid, marker=next(marks), color=GREY, linewidth=1, markersize=5, label=plain(solver))
    _log_axis(axes)
    _nfe_axis(axes, metrics)
    axes.set_ylabel("FID")
    _legend_below(figure, axes)
    return figure


@_styled
def gaps(metrics: Metrics, learned: list[str]) -> Figure:
    """The fraction of the gap between the best classical solver and the teacher that each learned solver closes."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6))
    for solver, colour in colours(learned).items():
        closed = {cell.nfe: gap_closed(metrics, cell, learned) for cell in metrics if cell.solver == solver}
        axes.plot(list(closed), list(closed.values()), "o-", color=colour, label=solver)
    axes.axhline(1, color=INK, linestyle="--", linewidth=1, label="teacher")
    axes.axhline(0, color=GREY, linewidth=1, label="best classical")
    _nfe_axis(axes, metrics)
    axes.set_ylabel("gap closed")
    _legend_below(figure, axes)
    return figure


def _log_axis(axes: Axes) -> None:
    """Label a log axis with plain numbers at 1, 2 and 5 of every decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _nfe_axis(axes: Axes, metrics: Metrics) -> None:
    target = teacher(metrics)
    axes.set_xticks(sorted({cell.nfe for cell in metrics if cell.solver != target.solver}))
    axes.set_xlabel("NFE (network evaluations per sample)")


@_styled
def losses(histories: dict[str, list[dict[str, Any]]], learned: Sequence[str]) -> Figure:
    """The validation loss of every learned solver by epoch, divided by that of its initial solver, since solvers may
    have different losses. Thin lines: the training loss, with moving noises. A dot marks the epoch that was kept.
    Losses for a reward may be negative: such have no place on the axis, and are left out."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8))
    for solver, history in histories.items():
        if any(row[key] is not None and row[key] <= 0 for row in history for key in ("train", "validation")):
            continue
        judged = [row for row in history if row["validation"] is not None]  # null: it was not finite
        colour, start = colours(learned)[solver], judged[0]["validation"]
        epochs, kept = [row["epoch"] for row in judged], min(judged, key=lambda row: row["validation"])
        axes.plot(epochs, [row["validation"] / start for row in judged], color=colour, label=solver)
        trained = [row for row in history if row["train"] is not None]
        train = [row["train"] / start for row in trained]
        axes.plot([row["epoch"] for row in trained], train, color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(kept["epoch"], kept["validation"] / start, "o", color=colour)
    axes.set(xlabel="epoch", ylabel="loss / initial loss")
    _log_axis(axes)
    _legend_below(figure, axes)
    return figure


@_styled
def schedules(tables: dict[str, Tableau], learned: Sequence[str]) -> Figure:
    """The steps of every solver, by sigma/alpha. Rings are times shown to the network that are not steps."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.32 * len(tables)))
    for row, (solver, table) in enumerate(tables.items()):
        colour = colours(learned).get(solver, INK if solver == "teacher" else GREY)
        axes.axhline(row, color=GREY, linewidth=0.4, zorder=0)
        axes.plot(_noise_level(table, table.t), [row] * len(table.t), "o", color=colour, markersize=6)
        shown = table.t_c[~(table.t_c[:, None] - table.t).abs().lt(1e-6 * table.t_c[:, None]).any(1)]
        axes.plot(_noise_level(table, shown), [row] * len(shown), "o", color=colour, markersize=10, fillstyle="none")
    axes.set(xscale="log", xlabel="noise level (sigma/alpha)", ylim=(len(tables) - 0.5, -0.5))
    axes.set_yticks(range(len(tables)), [plain(name) for name in tables])
    axes.invert_xaxis()
    axes.tick_params(axis="y", length=0)
    return figure


def _noise_level(table: Tableau, t: Tensor) -> np.ndarray:
    return (table.noise.sigma(t) / table.noise.alpha(t)).numpy()


@_styled
def trajectories(paths: dict[str, list[list[list[float]]]], learned: Sequence[str]) -> Figure:
    """Trajectories [n][S][2] of a few samples of each solver, in the plane of the teacher's, whose end has a ring."""
    count = len(paths["teacher"])
    for solver, path in paths.items():
        if len(path) != count:
            raise UserError(
                f"{solver}: {len(path)} trajectories were kept, but {count} of the teacher's; run `dvc repro`"
            )
    columns = min(2, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 2.3 * rows + 0.5), squeeze=False)
    for sample, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if sample >= count:
            continue
        for solver, path in paths.items():
            x, y = zip(*path[sample], strict=True)
            own: dict[str, Any] = {"color": colours(learned).get(solver, GREY), "linewidth": 1.6, "zorder": 3}
            if solver == "teacher":
                axes.plot(x[-1], y[-1], "o", color=INK, markersize=11, fillstyle="none")
                own = {"color": INK, "linewidth": 1, "linestyle": "--", "zorder": 2}
            axes.plot(x, y, marker="o", markersize=3, label=solver, **own)
    _legend_below(figure, grid[0, 0])
    return figure


@_styled
def sample_sheet(rows: list[tuple[str, np.ndarray]], title: str) -> Figure:
    """Images, uint8 [n, C, H, W] in each labelled row, enlarged without smoothing. A column is one noise."""
    if len({row.shape for _, row in rows}) > 1:
        raise UserError("the rows of samples differ in their numbers or sizes; make them again with `dvc repro`")
    images = np.stack([row for _, row in rows])
    count, columns, _, height, width = images.shape
    gap = max(1, width // 8)
    pixels = tile(images, gap)
    figure, axes = plt.subplots(figsize=(1.6 + 0.62 * columns, 0.5 + 0.62 * count))
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", interpolation="nearest")
    axes.set_yticks([i * (height + gap) + height / 2 for i in range(count)], [plain(name) for name, _ in rows])
    axes.set_xticks([])
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


@_styled
def coefficients(solvers: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Heat maps of each solver's initial and learned b [N, k]. A row is a step, newest evaluation on the left."""
    steps = [len(b) for _, b in solvers.values()]
    size = (7, 0.6 + 0.38 * sum(steps) + 0.7 * len(steps))
    figure, axes = plt.subplots(len(solvers), 2, figsize=size, squeeze=False, gridspec_kw={"height_ratios": steps})
    limit = max(np.abs(matrix).max() for pair in solvers.values() for matrix in pair)
    for row, (name, pair) in zip(axes, solvers.items(), strict=True):
        for ax, title, matrix in zip(row, ("initial", "learned"), pair, strict=True):
            image = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
            for (i, j), value in np.ndenumerate(matrix):
                if j <= i:
                    colour = "white" if abs(value) > 0.6 * limit else "black"
                    ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
            ax.set_title(f"{name}, {title}", fontsize=9)
            ax.set_xticks(range(matrix.shape[1]), [f"b{j}" for j in range(matrix.shape[1])])
            ax.set_yticks(range(len(matrix)), [f"step {i + 1}" for i in range(len(matrix))])
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
