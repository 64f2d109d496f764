"""The figures of a run, drawn with matplotlib so that they can be read offline."""

import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from s4spipe.files import atomic
from s4spipe.report.tables import Metrics

STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.constrained_layout.use": True}
COLOURS = ("#d95f02", "#b2182b", "#e7298a", "#a6761d", "#66a61e", "#1b9e77", "#e6ab02", "#7570b3")  # of learned solvers


def save(figure: plt.Figure, path: Path) -> None:
    """PNG without the date, so that the same figure gives the same bytes."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def fid_against_nfe(metrics: Metrics, learned: list[str], path: Path) -> None:
    """FID of every solver against NFE, on a log axis, with the teacher as a line."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.2))
        greys = iter(plt.cm.viridis(np.linspace(0.1, 0.85, max(1, len(metrics) - 1))))
        colours = dict(zip(learned, itertools.cycle(COLOURS), strict=False))
        for solver, cells in metrics.items():
            nfe = [int(key.removeprefix("nfe")) for key in cells]
            fid = [cell["fid"] for cell in cells.values()]
            if solver == "teacher":
                axes.axhline(fid[0], color="black", linestyle="--", linewidth=1, label=f"teacher ({nfe[0]} NFE)")
            elif solver in colours:
                axes.plot(nfe, fid, "o-", color=colours[solver], linewidth=2.5, label=solver, zorder=3)
            else:
                axes.plot(nfe, fid, "o-", color=next(greys), linewidth=1.2, markersize=4, label=solver)
        axes.set_yscale("log")
        axes.set_xticks(
            sorted({int(key.removeprefix("nfe")) for s, c in metrics.items() if s != "teacher" for key in c})
        )
        axes.set_xlabel("NFE (network evaluations per sample)")
        axes.set_ylabel("FID")
        axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
        save(figure, path)


def losses(histories: dict[str, list[dict]], path: Path) -> None:
    """Training and validation loss of every fit against its epoch."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(histories), figsize=(4 * len(histories), 3.2), squeeze=False)
        for ax, (name, history) in zip(axes[0], histories.items(), strict=True):
            epochs = [row["epoch"] for row in history]
            ax.plot(epochs[1:], [row["train"] for row in history[1:]], color="#7f7f7f", label="training (moved noises)")
            ax.plot(epochs, [row["validation"] for row in history], color="#b2182b", label="validation")
            best = min(history, key=lambda row: row["validation"])
            ax.plot(best["epoch"], best["validation"], "o", color="#b2182b", label="kept")
            ax.set(title=name, xlabel="epoch", yscale="log")
        axes[0][0].set_ylabel("distance to the teacher's sample")
        axes[0][0].legend(frameon=False, fontsize=8)
        save(figure, path)


def sample_sheet(rows: list[tuple[str, np.ndarray]], title: str, path: Path) -> None:
    """Images uint8 [n, C, H, W] of each labelled row, enlarged without smoothing; a column is one noise."""
    images = np.stack([row for _, row in rows])
    height, width, n = len(rows), images.shape[1], images.shape[2]
    pad = max(1, images.shape[-1] // 8)
    tiles = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, pad), (0, pad)), constant_values=255)
    canvas = tiles.transpose(0, 3, 1, 4, 2).reshape(height * tiles.shape[3], width * tiles.shape[4], n)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(1.6 + 0.62 * width, 0.5 + 0.62 * height))
        axes.imshow(canvas.squeeze(-1) if n == 1 else canvas, cmap="gray", interpolation="nearest")
        step_y, half = tiles.shape[3], images.shape[3] / 2
        axes.set_yticks([i * step_y + half for i in range(height)], [name for name, _ in rows])
        axes.set_xticks([])
        axes.set_title(title, fontsize=9)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        save(figure, path)


def coefficients(fits: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Heat maps of each fit's (initial, learned) b [N, k]: rows are steps, the newest evaluation is on the left."""
    with plt.rc_context(STYLE):
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
        save(figure, path)
