"""The figure of the confirmation models: how close each row comes to the teacher's samples, beside a development model.

Distances of different judges have different units, so all are told as parts of the best classical solver's.
"""

from pathlib import Path
from statistics import mean
from typing import Any

from s4spipe.report import figures
from s4spipe.report.figures import plt

ROWS = (
    *("ld3", "dss", "gs", "bns", "dyweight", "s4s", "s4s_alt"),
    *("free", "free_bands", "free_bands_mean", "free_bands_default"),
)
Found = dict[str, dict[str, list[dict[str, Any]]]]


def parts(rows: dict[str, list[dict[str, Any]]], nfe: int) -> dict[str, float]:
    """For each of ROWS that has been run at this NFE, its mean distance over seeds as a part of the classical row's."""
    found = {
        row: mean(cell["to_teacher"] for cell in cells if cell["nfe"] == nfe)
        for row, cells in rows.items()
        if any(cell["nfe"] == nfe for cell in cells)
    }
    return {row: found[row] / found["classical"] for row in ROWS if row in found}


def draw(found: Found, nfes: list[int], path: Path) -> None:
    """A panel for every NFE, a line for every row, a mark for every model."""
    values = {nfe: {name: parts(rows, nfe) for name, rows in found.items()} for nfe in nfes}
    rows = [row for row in ROWS if any(row in values[nfe][name] for nfe in nfes for name in found)]
    with plt.rc_context(figures.STYLE):
        figure, panels = plt.subplots(1, len(nfes), figsize=(3.6 * len(nfes), 0.9 + 0.3 * len(rows)), sharey=True)
        for nfe, axes in zip(nfes, panels, strict=True):
            for number, (name, of_rows) in enumerate(values[nfe].items()):
                at = [rows.index(row) for row in of_rows]
                axes.plot(of_rows.values(), at, figures.MARKS[number], color=figures.COLOURS[number], label=name)
            axes.set(xscale="log", title=f"NFE {nfe}", yticks=range(len(rows)), yticklabels=rows)
            axes.axvline(1, color=figures.GREY, lw=1)
            axes.grid(axis="y", color=figures.GREY, alpha=0.3)
        panels[0].invert_yaxis()
        panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.supxlabel("distance to the teacher's samples, as a part of the best classical solver's", fontsize=10)
    figures.save(figure, path)
