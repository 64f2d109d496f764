"""The figures of a run, drawn with matplotlib: saved as PNG, or as SVG in the page, in the page's colours."""

import itertools
import re
from io import StringIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from s4spipe.files import atomic
from s4spipe.report.tables import Metrics, gap_closed
from s4spipe.tableau import Tableau

INK = "#000001"  # a black that is told from any other: on the page, the colour of its text
GREY = "#8b9199"
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
STYLE = dict.fromkeys(INKED, INK) | {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
}
COLOURS = ("#e66101", "#d6336c", "#1c9a6c", "#7c62d9", "#b8860b", "#2f8fd0", "#8a9a1b", "#c05621")  # of learned solvers
MARKS = "ovs^Dp*hXP<>"  # of classical solvers
WIDTH = 5.2  # inches: text keeps a readable size where the page is as wide as a phone


def save(figure: plt.Figure, path: Path) -> None:
    """PNG without the date, so that the same figure gives the same bytes."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def svg(figure: plt.Figure, name: str) -> str:
    """The figure as an <svg> element, drawn in the colour of the text around it; `name` sets its ids apart."""
    out = StringIO()
    with plt.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r' id="(?:figure|axes|text|patch|line2d|matplotlib\.axis|xtick|ytick|legend|PathC)[^"]*"', "", text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{name}">', text)
    return text.replace(INK, "currentColor")


def colours(learned: list[str]) -> dict[str, str]:
    return dict(zip(learned, itertools.cycle(COLOURS), strict=False))


def _styled(draw):
    def styled(*args, **kwargs):
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def _legend_below(figure: plt.Figure, axes: plt.Axes, columns: int = 3) -> None:
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=columns)


@_styled
def fid_against_nfe(metrics: Metrics, learned: list[str]) -> plt.Figure:
    """FID of every solver against NFE, on a log axis, with the teacher as a line."""
    figure, axes = plt.subplots(figsize=(WIDTH, 4.4))
    marks, colour = itertools.cycle(MARKS), colours(learned)
    for solver, cells in metrics.items():
        nfe = [int(key.removeprefix("nfe")) for key in cells]
        fid = [cell["fid"] for cell in cells.values()]
        if solver == "teacher":
            axes.axhline(fid[0], color=INK, linestyle="--", linewidth=1, label=f"teacher ({nfe[0]} NFE)")
        elif solver in colour:
            axes.plot(nfe, fid, "o-", color=colour[solver], linewidth=2.5, label=solver, zorder=3)
        else:
            axes.plot(nfe, fid, marker=next(marks), color=GREY, linewidth=1, markersize=5, label=solver)
    _log_axis(axes)
    _nfe_axis(axes, metrics)
    axes.set_ylabel("FID")
    _legend_below(figure, axes)
    return figure


@_styled
def gaps(metrics: Metrics, learned: list[str]) -> plt.Figure:
    """The part of the gap between the best classical solver and the teacher that each learned solver closes."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6))
    for solver, colour in colours(learned).items():
        nfe = [int(key.removeprefix("nfe")) for key in metrics[solver]]
        axes.plot(nfe, [gap_closed(metrics, solver, n, learned) for n in nfe], "o-", color=colour, label=solver)
    axes.axhline(1, color=INK, linestyle="--", linewidth=1, label="teacher")
    axes.axhline(0, color=GREY, linewidth=1, label="best classical")
    _nfe_axis(axes, metrics)
    axes.set_ylabel("gap closed")
    _legend_below(figure, axes)
    return figure


def _log_axis(axes: plt.Axes) -> None:
    """With plain numbers at 1, 2 and 5 of every decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _nfe_axis(axes: plt.Axes, metrics: Metrics) -> None:
    axes.set_xticks(sorted({int(key.removeprefix("nfe")) for s, c in metrics.items() if s != "teacher" for key in c}))
    axes.set_xlabel("NFE (network evaluations per sample)")


@_styled
def losses(histories: dict[str, list[dict]], learned: list[str]) -> plt.Figure:
    """The loss on the validation pairs of every fit against its epoch, relative to the solver it started from (fits
    need not use one distance); thin: on the training pairs, whose noises move. A dot: the epoch that was kept."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8))
    for solver, history in histories.items():
        colour, start = colours(learned)[solver], history[0]["validation"]
        epochs, kept = [row["epoch"] for row in history], min(history, key=lambda row: row["validation"])
        axes.plot(epochs, [row["validation"] / start for row in history], color=colour, label=solver)
        trained = [(row["epoch"], row["train"] / start) for row in history if row["train"] is not None]
        axes.plot(*zip(*trained, strict=True), color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(kept["epoch"], kept["validation"] / start, "o", color=colour)
    axes.set(xlabel="epoch", ylabel="loss, relative to the start")
    _log_axis(axes)
    _legend_below(figure, axes)
    return figure


@_styled
def schedules(tables: dict[str, Tableau], learned: list[str]) -> plt.Figure:
    """The steps of every solver on the axis of sigma/alpha; rings: other times that the network is shown."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.32 * len(tables)))
    for row, (solver, table) in enumerate(tables.items()):
        colour = colours(learned).get(solver, INK if solver == "teacher" else GREY)
        axes.axhline(row, color=GREY, linewidth=0.4, zorder=0)
        axes.plot(_noise_level(table, table.t), [row] * len(table.t), "o", color=colour, markersize=6)
        shown = table.t_c[~(table.t_c[:, None] - table.t).abs().lt(1e-6 * table.t_c[:, None]).any(1)]
        axes.plot(_noise_level(table, shown), [row] * len(shown), "o", color=colour, markersize=10, fillstyle="none")
    axes.set(xscale="log", xlabel="noise level (sigma/alpha)", ylim=(len(tables) - 0.5, -0.5))
    axes.set_yticks(range(len(tables)), tables)
    axes.invert_xaxis()
    axes.tick_params(axis="y", length=0)
    return figure


def _noise_level(table: Tableau, t: Tensor) -> np.ndarray:
    return (table.noise.sigma(t) / table.noise.alpha(t)).numpy()


@_styled
def trajectories(paths: dict[str, list], learned: list[str]) -> plt.Figure:
    """A few samples' ways [n][S][2] by each solver, in the plane of the teacher's way; the ring is where that ends."""
    count = len(paths["teacher"])
    columns = min(2, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, 2.3 * rows + 0.5), squeeze=False)
    for sample, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if sample >= count:
            continue
        for solver, path in paths.items():
            x, y = zip(*path[sample], strict=True)
            own = {"color": colours(learned).get(solver, GREY), "linewidth": 1.6, "zorder": 3}
            if solver == "teacher":
                axes.plot(x[-1], y[-1], "o", color=INK, markersize=11, fillstyle="none")
                own = {"color": INK, "linewidth": 1, "linestyle": "--", "zorder": 2}
            axes.plot(x, y, marker="o", markersize=3, label=solver, **own)
    _legend_below(figure, grid[0, 0])
    return figure


@_styled
def sample_sheet(rows: list[tuple[str, np.ndarray]], title: str) -> plt.Figure:
    """Images uint8 [n, C, H, W] of each labelled row, enlarged without smoothing; a column is one noise."""
    images = np.stack([row for _, row in rows])
    height, width, n = len(rows), images.shape[1], images.shape[2]
    pad = max(1, images.shape[-1] // 8)
    tiles = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, pad), (0, pad)), constant_values=255)
    canvas = tiles.transpose(0, 3, 1, 4, 2).reshape(height * tiles.shape[3], width * tiles.shape[4], n)
    figure, axes = plt.subplots(figsize=(1.6 + 0.62 * width, 0.5 + 0.62 * height))
    axes.imshow(canvas.squeeze(-1) if n == 1 else canvas, cmap="gray", interpolation="nearest")
    step_y, half = tiles.shape[3], images.shape[3] / 2
    axes.set_yticks([i * step_y + half for i in range(height)], [name for name, _ in rows])
    axes.set_xticks([])
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


@_styled
def coefficients(fits: dict[str, tuple[np.ndarray, np.ndarray]]) -> plt.Figure:
    """Heat maps of each fit's (initial, learned) b [N, k]: rows are steps, the newest evaluation is on the left."""
    steps = [len(b) for _, b in fits.values()]
    size = (7, 0.6 + 0.38 * sum(steps) + 0.7 * len(steps))
    figure, axes = plt.subplots(len(fits), 2, figsize=size, squeeze=False, gridspec_kw={"height_ratios": steps})
    limit = max(np.abs(matrix).max() for pair in fits.values() for matrix in pair)
    for row, (name, pair) in zip(axes, fits.items(), strict=True):
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
