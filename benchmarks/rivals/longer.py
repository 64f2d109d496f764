"""What more a refinement gives when it may run longer, on a development model.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.longer photos 0`, after `pairs photos 0`. A
fit is refined with more and more steps; the table is printed.
"""

from collections.abc import Callable
from functools import partial

import click
import torch

from benchmarks.rivals import params, rows, sampling
from benchmarks.rivals.problems.problem import Problem
from s4spipe.features.base import frechet
from s4spipe.learning import refinement
from s4spipe.learning.pairs import Pairs
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau import Tableau

CPU = torch.device("cpu")
STEPS = (3, 6, 12, 24, 48)


@click.command()
@click.argument("name", type=click.Choice(["digits", "photos", "mixture"]))
@click.argument("seed", type=int)
@click.option("--nfe", default="4,6", show_default=True, help="Evaluations, with commas between.")
@click.option("--row", type=click.Choice(["free_mean", "free_bands_mean"]), default="free_bands_mean")
def main(name: str, seed: int, nfe: str, row: str) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    folder, block = f"pairs/{name}-{seed}", settings["rows"][row]
    training = Pairs.load(f"{folder}/train.safetensors", CPU, block.get("pairs", settings["pairs"]))
    validation = Pairs.load(f"{folder}/validation.safetensors", CPU)
    judged = judge(problem, seed)
    click.echo("| model | NFE | fit |" + "".join(f" {steps} |" for steps in STEPS) + " steps made |")
    click.echo("|---|" + "--:|" * (3 + len(STEPS)))
    for evaluations in map(int, nfe.split(",")):
        scratch = Scratch(fingerprint("longer", name, seed, row, evaluations))
        scratch.clear()
        cell = rows.Cell(problem, evaluations, seed, 0, training, validation, scratch)
        student, _ = rows.free_fit(cell, block)
        found, history = [judged(student())], []
        for steps in STEPS:  # each goes on where the last one stopped
            history = refinement.refine(cell.task(student), partial(rows.with_random, problem, problem.seen), steps)
            found.append(judged(student()))
        scratch.clear()
        click.echo(f"| {name} | {evaluations} |" + "".join(f" {d:.3g} |" for d in found) + f" {len(history) - 1} |")


def judge(problem: Problem, seed: int) -> Callable[[Tableau], float]:
    """How far a solver's samples are from the teacher's, from the noises to judge of this seed."""
    exact = Pairs.load(f"pairs/{problem.name}-{seed}/sample.safetensors", CPU)
    goal = frechet.statistics(problem.judge(exact.x_0.clone()).double())

    def judged(table: Tableau) -> float:
        own = sampling.samples(problem, table, Noises("sample", seed, len(exact))).x_0
        return frechet.distance_and_slope(problem.judge(own.clone()).double(), goal)[0]

    return judged


if __name__ == "__main__":
    main()
