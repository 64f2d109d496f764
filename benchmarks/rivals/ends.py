"""When a fit shall end, on a development model: after so many steps, or when the validation pairs see little progress.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.ends photos 0`, after `pairs photos 0`. It
prints the distance to the teacher's samples by the judge after the fit and after the refinement, which is watched by
300 pairs, or by 600.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import click
import torch

from benchmarks.rivals import params, rows
from benchmarks.rivals.longer import CPU, judge
from benchmarks.rivals.problems.problem import Problem
from s4spipe.learning import refinement
from s4spipe.learning.pairs import Pairs
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.tableau import Tableau

WATCH = 600  # pairs, those after the ones to learn from
STEPS = {"free": 6, "free_bands": 8}  # of a fit, where all fits have as many
MOST = 24


@click.command()
@click.argument("name", type=click.Choice(["digits", "photos", "mixture"]))
@click.argument("seed", type=int)
@click.option("--nfe", default="3,4,5,6", show_default=True, help="Evaluations, with commas between.")
def main(name: str, seed: int, nfe: str) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    folder, count = f"pairs/{name}-{seed}", settings["pairs"]
    drawn = Pairs.load(f"{folder}/train.safetensors", CPU)
    training, watch = drawn.take(torch.arange(count)), drawn.take(torch.arange(count, count + WATCH))
    validation = Pairs.load(f"{folder}/validation.safetensors", CPU)
    judged = judge(problem, seed)
    click.echo("| model | NFE | learner | fit ends | seconds of the fit | fit | refined |")
    click.echo("|---|--:|---|---|--:|--:|--:|")
    for evaluations in map(int, nfe.split(",")):
        for learner, steps in STEPS.items():
            for ends, most, pace, by in (("by number", steps, "patient", validation),
                                         ("by progress", MOST, "brisk", watch)):  # fmt: skip
                scratch = Scratch(fingerprint("ends", name, seed, learner, ends, evaluations))
                scratch.clear()
                cell = rows.Cell(problem, evaluations, seed, 0, training, validation, scratch)
                block = {"bands": learner == "free_bands", "mean": "image", "steps": most, "pace": pace}
                row = measured(cell, block, replace(cell, validation=by), judged)
                scratch.clear()
                click.echo(f"| {name} | {evaluations} | `{learner}` | {ends} | {row} |")


def measured(cell: rows.Cell, block: dict, watched: rows.Cell, judged: Callable[[Tableau], float]) -> str:
    started = time.perf_counter()
    student, _ = rows.free_fit(cell, block)
    seconds, found = time.perf_counter() - started, judged(student())
    seen = partial(rows.with_random, cell.problem, cell.problem.seen)
    refinement.refine(watched.task(student), seen, refinement.steps_at(3, cell.nfe))
    return f"{seconds:.0f} | {found:.3g} | {judged(student()):.3g}"


if __name__ == "__main__":
    main()
