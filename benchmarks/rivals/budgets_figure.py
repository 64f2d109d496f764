"""The figure and the table of what `budgets` measured: distance against network evaluations spent on learning.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.budgets_figure`. It makes
results/budgets/distances.png, and prints the table.
"""

from itertools import groupby
from pathlib import Path
from typing import Any

import click

from s4spipe.report import figures
from s4spipe.report.figures import plt
from s4spipe.runtime.files import read_json

FOLDER = Path("results/budgets")
ROWS = ("ld3", "dss", "gs", "bns", "dyweight", "s4s_alt", "free", "free_bands")
TIMES = (1, 5, 25)


@click.command()
def main() -> None:
    cells = [{"model": path.parent.name, **read_json(path)} for path in sorted(FOLDER.glob("*/*.json"))]
    cells.sort(key=lambda cell: (cell["model"], cell["nfe"], ROWS.index(cell["row"]), cell["times"]))
    panels = {key: list(found) for key, found in groupby(cells, lambda cell: (cell["model"], cell["nfe"]))}
    draw(panels, FOLDER / "distances.png")
    click.echo("| model | NFE | row | " + " | ".join(f"times {times}" for times in TIMES) + " |")
    click.echo("|---|--:|---|" + "--:|" * len(TIMES))
    for (model, nfe), found in panels.items():
        for row, own in groupby(found, lambda cell: cell["row"]):
            by_times = {cell["times"]: f"{cell['to_teacher']:.3g}" for cell in own}
            shown = " | ".join(by_times.get(times, "-") for times in TIMES)
            click.echo(f"| {model} | {nfe} | {row} | {shown} |")


def draw(panels: dict[tuple[str, int], list[dict[str, Any]]], path: Path) -> None:
    """A panel for each model and NFE, a line for each row."""
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.2))
        for (model, nfe), ax in zip(panels, axes, strict=True):
            for row, own in groupby(panels[model, nfe], lambda cell: cell["row"]):
                number, points = ROWS.index(row), list(own)
                ax.plot([cell["evaluations"] for cell in points], [cell["to_teacher"] for cell in points],
                        color=figures.COLOURS[number % len(figures.COLOURS)],
                        marker=figures.MARKS[number % len(figures.MARKS)], label=row)  # fmt: skip
            ax.set(xscale="log", yscale="log", title=f"{model}, NFE {nfe}", xlim=(2e4, 1e6))
            ax.set_xticks([30e3, 150e3, 750e3], ["30", "150", "750"])
            ax.set_xticks([], minor=True)
        axes[0].set_ylabel("distance to the teacher's samples")
        known = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        shown = [row for row in ROWS if row in known]
        figure.legend([known[row] for row in shown], shown, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.supxlabel("thousand network evaluations of learning, for every evaluation of a sample", fontsize=10)
    figures.save(figure, path)


if __name__ == "__main__":
    main()
