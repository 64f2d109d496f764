"""Tables, figures and the page, from the cells that params.yaml names, and from no others."""

from pathlib import Path

import click
import numpy as np

from s4spipe import stage
from s4spipe.files import write_json, write_text
from s4spipe.params import Params
from s4spipe.report import figures, page, tables
from s4spipe.report.run import Run


@stage.command
def main(params: Params) -> None:
    run, results, plots = Run(Path(), params), Path("results"), Path("results/figures")
    learned, metrics = run.learned, run.metrics
    for stale in plots.glob("*.png"):
        stale.unlink()
    figures.save(figures.fid_against_nfe(metrics, learned), plots / "fid.png")
    for nfe in params.nfe:
        fits = {solver: run.table(solver, nfe) for solver in learned}
        histories = {solver: run.cells[solver, nfe]["history"] for solver in learned}
        figures.save(figures.losses(histories, learned), plots / f"loss-{nfe}.png")
        matrices = {s: (np.array(t.meta["b_start"]), np.array(t.meta["b"])) for s, t in fits.items() if "b" in t.meta}
        figures.save(figures.coefficients(matrices), plots / f"coefficients-{nfe}.png")
        rows = [(f"{arm[0]}  FID {run.cells[arm]['fid']:.2f}", run.images(*arm)) for arm in run.arms(nfe)]
        title = f"one column, one noise; {nfe} NFE, the teacher {params.teacher.nfe}"
        figures.save(figures.sample_sheet(rows, title), plots / f"samples-{nfe}.png")
    write_text(results / "fid.csv", tables.to_csv(metrics))
    table = tables.to_markdown(metrics, params.nfe, learned)
    write_text(results / "table.md", table)
    write_json(results / "metrics.json", metrics)
    write_json(results / "fid.json", tables.of_fid(metrics, learned))
    write_text(results / "report.html", page.report(run))
    click.echo(table)


if __name__ == "__main__":
    main()
