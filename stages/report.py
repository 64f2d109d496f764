"""Tables and figures from the cells that params.yaml names, and from no others."""

from pathlib import Path

import click
import numpy as np

from s4spipe import stage
from s4spipe.files import read_array, read_json, write_json, write_text
from s4spipe.params import Params
from s4spipe.report import figures, tables
from s4spipe.tableau import Tableau


@stage.command
def main(params: Params) -> None:
    learned = params.learned_solvers
    cells = {"teacher": [params.teacher.nfe], **dict.fromkeys((*params.classical, *learned), params.nfe)}
    metrics = {solver: {f"nfe{nfe}": cell(params, solver, nfe) for nfe in nfes} for solver, nfes in cells.items()}
    results, plots = Path("results"), Path("results/figures")
    for stale in plots.glob("*.png"):
        stale.unlink()
    figures.fid_against_nfe(metrics, learned, plots / "fid.png")
    for nfe in params.nfe:
        fits = {
            solver: (
                Tableau.load(params.solver_path(solver, nfe)),
                read_json(params.solver_path(solver, f"{nfe}.history")),
            )
            for solver in learned
        }
        figures.losses({solver: losses for solver, (_, losses) in fits.items()}, plots / f"loss-{nfe}.png")
        matrices = {
            s: (np.array(t.meta["b_start"]), np.array(t.meta["b"])) for s, (t, _) in fits.items() if "b" in t.meta
        }
        figures.coefficients(matrices, plots / f"coefficients-{nfe}.png")
        arms = [("teacher", params.teacher.nfe), *((solver, nfe) for solver in (*params.classical, *learned))]
        rows = [
            (f"{solver}  FID {metrics[solver][f'nfe{n}']['fid']:.2f}", images(solver, n, params.report.sheet_columns))
            for solver, n in arms
        ]
        title = f"one column, one noise; {nfe} NFE, the teacher {params.teacher.nfe}"
        figures.sample_sheet(rows, title, plots / f"samples-{nfe}.png")
    write_text(results / "fid.csv", tables.to_csv(metrics))
    table = tables.to_markdown(metrics, params.nfe, learned)
    write_text(results / "table.md", table)
    write_json(results / "metrics.json", metrics)
    click.echo(table)


def cell(params: Params, solver: str, nfe: int) -> dict:
    steps = Tableau.load(params.solver_path(solver, nfe)).meta["steps"]
    about = read_json(f"samples/{solver}-{nfe}.json")
    cost = {key: about[key] for key in ("nfe", "depth", "network_calls", "seconds_per_sample")}
    return read_json(f"evaluations/{solver}-{nfe}.json") | cost | {"steps": steps}


def images(solver: str, nfe: int, count: int) -> np.ndarray:
    return read_array(f"samples/{solver}-{nfe}.npy")[:count]


if __name__ == "__main__":
    main()
