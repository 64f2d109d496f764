"""Quality against budget: rivals and ours with 1, 5 and 25 times as many network evaluations to learn with.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.budgets mixture 0`, after `pairs mixture 0`.
An interrupted run goes on where it was. Rivals have the budget of params.yaml times 1, 5 or 25, and of the pairs, all
that there are where it is larger. Ours have steps instead (`OURS`): what they spend is counted.
"""

from functools import partial
from pathlib import Path

import click
import torch

from benchmarks.rivals import params, rows, sampling
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.features.base import frechet
from s4spipe.learning.pairs import Pairs
from s4spipe.runtime.files import write_json
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises

CPU = torch.device("cpu")
RIVALS = ("dss", "dyweight", "s4s_alt", "gs", "bns", "ld3")
OURS = {1: {"steps": 10, "refine": 3}, 5: {"steps": 40, "refine": 6}, 25: {"steps": 160, "refine": 24}}


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
@click.option("--nfe", default="4,6", show_default=True, help="Evaluations, with commas between.")
@click.option("--times", default="1,5,25", show_default=True, help="Budgets, as multiples of that in params.yaml.")
@click.option("--row", "names", multiple=True, help="Only this row; may be repeated.")
def main(name: str, seed: int, nfe: str, times: str, names: tuple[str, ...]) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    ours = ("free",) if name == "mixture" else ("free", "free_bands")  # vectors have no bands
    folder = f"pairs/{name}-{seed}"
    load = partial(Pairs.load, device=CPU)
    validation, exact = (load(f"{folder}/{stream}.safetensors") for stream in ("validation", "sample"))
    ideal = frechet.statistics(problem.judge(exact.x_0.clone()).double())

    def measured(row: str, evaluations: int, multiple: int, scratch: Scratch) -> dict[str, float]:
        own = {"bands": row == "free_bands", "by": "free", **OURS[multiple]} if row not in RIVALS else {}
        training = load(f"{folder}/train.safetensors", count=settings["pairs"] if multiple == 1 else None)
        budget = multiple * settings["budget"]
        cell = rows.Cell(problem, evaluations, seed, budget, training, validation, scratch)
        table, cost = rows.make(row, settings["rows"][row] | own, cell)
        end = sampling.samples(problem, table, Noises("sample", seed, len(exact))).x_0
        error = (end - exact.x_0).double().square().mean().sqrt().item()
        to_teacher = frechet.distance_and_slope(problem.judge(end.clone()).double(), ideal)[0]
        return {"to_teacher": to_teacher, "error": error, "evaluations": cost["evaluations"] / evaluations}

    for evaluations in map(int, nfe.split(",")):
        for multiple in map(int, times.split(",")):
            for row in names or (*ours, *RIVALS):
                file = Path(f"results/budgets/{name}/{row}-{evaluations}-{multiple}-{seed}.json")
                if file.exists():
                    continue
                block = settings["rows"][row]
                scratch = Scratch(fingerprint(row, evaluations, multiple, block, OURS, files=(folder,)))
                found = measured(row, evaluations, multiple, scratch)
                write_json(file, {"row": row, "nfe": evaluations, "times": multiple, "seed": seed, **found})
                scratch.clear()
                click.echo(f"{row}, NFE {evaluations}, times {multiple}: {found['to_teacher']:.3g}")


if __name__ == "__main__":
    main()
