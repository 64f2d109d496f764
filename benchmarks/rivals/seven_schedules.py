"""S4S on each of seven schedules, against the solver it starts from, on a model of this comparison.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.seven_schedules photos 0`, after `pairs photos
0`. S4S is the row `s4s` of params.yaml but for its schedule; the schedules of DMN, GITS and LD3 are those of the rows
`dmn`, `gits` and `ld3`. An interrupted run goes on where it was; the table is printed.
"""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.rivals import params, rows, sampling
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.features.base import frechet
from s4spipe.learning.pairs import Pairs
from s4spipe.runtime.files import read_json, write_json
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry, timesteps

CPU = torch.device("cpu")
GIVEN = ("time_uniform", "time_quadratic", "edm", "logsnr")
SEARCHED = ("dmn", "gits", "ld3")


@dataclass(frozen=True, kw_only=True)
class On(rows.Cell):
    """A cell whose rows start on these times.

    Attributes:
        t: [nfe + 1], from T down to t_min.
    """

    t: Tensor

    def classical(self, solver: str, schedule: str) -> Tableau:
        return registry.build(solver, self.noise, self.t)


def times(cell: rows.Cell, schedule: str, ld3: dict) -> Tensor:
    """The schedule's times, searched or learned where they have to be."""
    if schedule in GIVEN:
        return timesteps.build(schedule, cell.noise, cell.nfe)
    makers = {"dmn": rows.dmn, "gits": rows.gits, "ld3": partial(rows.learned, settings=ld3)}
    return makers[schedule](cell)[0].t.detach()


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
@click.option("--nfe", default="4,5,6,8", show_default=True, help="Evaluations, with commas between.")
def main(name: str, seed: int, nfe: str) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    folder, evaluations = f"pairs/{name}-{seed}", [int(n) for n in nfe.split(",")]
    training = Pairs.load(f"{folder}/train.safetensors", CPU, settings["pairs"])
    validation, exact = (Pairs.load(f"{folder}/{stream}.safetensors", CPU) for stream in ("validation", "sample"))
    ideal = frechet.statistics(problem.judge(exact.x_0.clone()).double())
    s4s, ld3 = settings["rows"]["s4s"], settings["rows"]["ld3"]

    def judged(table: Tableau) -> dict[str, float]:
        end = sampling.samples(problem, table, Noises("sample", seed, len(exact))).x_0
        error = (end - exact.x_0).double().square().mean().sqrt().item()
        return {"to_teacher": frechet.distance_and_slope(problem.judge(end.clone()).double(), ideal)[0], "error": error}

    def measured(schedule: str, nfe: int) -> dict[str, dict[str, float]]:
        scratch = Scratch(fingerprint("seven_schedules", schedule, nfe, seed, s4s, ld3, files=(folder,)))
        cell = rows.Cell(problem, nfe, seed, settings["budget"], training, validation, scratch.within("times"))
        same = {field.name: getattr(cell, field.name) for field in fields(cell)} | {"scratch": scratch.within("s4s")}
        on = On(**same, t=times(cell, schedule, ld3))
        found = {"start": judged(on.classical(s4s["solver"], "")), "s4s": judged(rows.learned(on, s4s)[0])}
        scratch.clear()
        return found

    click.echo("| schedule |" + "".join(f" {s4s['solver']}, NFE {n} | s4s |" for n in evaluations))
    click.echo("|---|" + "--:|--:|" * len(evaluations))
    for schedule in (*GIVEN, *SEARCHED):
        cells = []
        for n in evaluations:
            file = Path(f"results/seven_schedules/{name}/{schedule}-{n}-{seed}.json")
            if not file.exists():
                write_json(file, {"schedule": schedule, "nfe": n, "seed": seed, **measured(schedule, n)})
            found = read_json(file)
            cells.append(f" {found['start']['to_teacher']:.3g} | {found['s4s']['to_teacher']:.3g} |")
        click.echo(f"| {schedule} |" + "".join(cells))


if __name__ == "__main__":
    main()
