"""A row of the comparison on a model with a seed: its solvers at every NFE, and how far their samples are off."""

from pathlib import Path

import click
import torch

from benchmarks.rivals import params, rows, sampling
from benchmarks.rivals.problems import confirmation
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.features.base import frechet
from s4spipe.learning.pairs import Pairs
from s4spipe.runtime.files import read_tensors, write_json
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau import Tableau

CPU = torch.device("cpu")


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
@click.argument("row")
@click.option("--schedule", type=click.Choice(rows.SCHEDULES), help="To start on, instead of the row's own.")
def main(name: str, seed: int, row: str, schedule: str | None) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    block, teacher_nfe = settings["rows"][row], settings["teacher"][name]
    if schedule:
        if "schedule" not in block:
            raise click.UsageError(f"--schedule: {row} has none in params.yaml, rows; name a row that Adam learns.")
        block["schedule"] = schedule
    folder, reference = f"pairs/{name}-{seed}", f"references/{name}.safetensors"
    files = (reference, *sorted(Path(folder).glob("*.safetensors")))
    given = settings["pairs"], settings["budget"]
    scratch = Scratch(fingerprint(name, seed, row, block, teacher_nfe, given, files=files))
    statistics = read_tensors(reference)[0]
    goal = statistics["mean"], statistics["covariance"]
    count = block.get("pairs", settings["pairs"])
    drawn, validation, exact = (
        Pairs.load(f"{folder}/{of}.safetensors", CPU) for of in ("train", "validation", "sample")
    )
    training, others = drawn.take(torch.arange(count)), drawn.take(torch.arange(count, len(drawn)))

    def judged(table: Tableau) -> dict[str, float]:
        noises = Noises("sample", seed, len(exact))
        own = exact.x_0 if row == "teacher" else sampling.samples(problem, table, noises).x_0
        error = (own - exact.x_0).double().square().mean().sqrt().item()
        seen, ideal = (problem.judge(x.clone()).double() for x in (own, exact.x_0))
        to_teacher = frechet.distance_and_slope(seen, frechet.statistics(ideal))[0]
        return {"fid": frechet.distance_and_slope(seen, goal)[0], "to_teacher": to_teacher, "error": error}

    def measured(nfe: int) -> dict:
        if row == "teacher":
            return judged(sampling.teacher(problem, 1))
        own = scratch.within(str(nfe))
        cell = rows.Cell(problem, nfe, seed, settings["budget"], training, validation, own, others)
        table, cost = rows.make(row, block, cell)
        return judged(table) | {"evaluations": cost["evaluations"], "solver": cost.get("solver", ""),
                                "seconds": cost["seconds"]}  # fmt: skip

    confirms = name in confirmation.MODELS
    nfes = settings["confirmation_nfe"][name] if confirms else settings["nfe"]
    nfes = [teacher_nfe] if row == "teacher" else nfes
    cells = [{"nfe": nfe, "seed": seed, **scratch.once(f"cell-{nfe}", lambda nfe=nfe: measured(nfe))} for nfe in nfes]
    file = f"{name}/{row}{f'_{schedule}' if schedule else ''}-{seed}.json"
    # What a clock says differs from run to run: it is no result.
    write_json(f"timings/{file}", {cell["nfe"]: cell.pop("seconds") for cell in cells if "seconds" in cell})
    # Apart, so that nothing but their own stage makes those of the confirmation models.
    write_json(f"{'confirmed' if confirms else 'results'}/{file}", cells)
    scratch.clear()


if __name__ == "__main__":
    main()
