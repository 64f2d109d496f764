"""Write tables, figures and an HTML page for the cells that params.yaml names, and for no others."""

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from s4spipe.pipeline import stage
from s4spipe.pipeline.schema import Params
from s4spipe.report import figures, page, tables
from s4spipe.report.run import Run
from s4spipe.runtime.files import write_json, write_text


@stage.command
def main(params: Params) -> None:
    run = Run(Path(), params)
    folder, plots = run.places.report, run.places.report / "figures"
    drawn = set()
    for name, figure in drawings(run):
        figures.save(figure, plots / f"{name}.png")
        drawn.add(plots / f"{name}.png")
    for stale in set(plots.glob("*.png")) - drawn:
        stale.unlink()
    table = tables.to_markdown(run.cells, params.nfe, run.learned)
    write_text(folder / "table.md", table)
    write_text(folder / "fid.csv", tables.to_csv(run.cells))
    write_json(folder / "fid.json", tables.of_fid(run.cells, run.learned))
    write_json(folder / "metrics.json", tables.to_json(run.cells))
    write_text(folder / "report.html", page.report(run))
    click.echo(table)


def drawings(run: Run) -> Iterator[tuple[str, figures.Figure]]:
    """The figures by name, one at a time, since each is closed once it is saved."""
    yield "fid", figures.fid_against_nfe(run.cells, run.learned)
    for nfe in run.params.nfe:
        learned = {cell.solver: cell for cell in run.learned_at(nfe)}
        if learned:
            histories = {solver: run.history(cell) for solver, cell in learned.items()}
            yield f"loss-{nfe}", figures.losses(histories, run.learned)
        metas = {solver: run.tableau(cell).meta for solver, cell in learned.items()}
        pairs = {solver: (np.array(m["b_start"]), np.array(m["b"])) for solver, m in metas.items() if "b" in m}
        if pairs:
            yield f"coefficients-{nfe}", figures.coefficients(pairs)
        rows = [(f"{cell.solver}  FID {run.cells[cell]['fid']:.2f}", run.images(cell)) for cell in run.cells_at(nfe)]
        title = f"each column starts from one noise; {nfe} NFE, the {tables.teacher_label(run.cells)}"
        yield f"samples-{nfe}", figures.sample_sheet(rows, title)


if __name__ == "__main__":
    main()
