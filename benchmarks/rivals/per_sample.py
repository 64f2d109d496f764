"""What tables of a sample's own could gain: one for all samples beside one for each half of them, where the halves go
by a number that a sampler knows after its second evaluation.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.per_sample photos 0 5`, after `pairs photos
0`.
"""

from dataclasses import replace

import click
import torch
from torch import Tensor

from benchmarks.rivals import params, rows
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.learning import gauss_newton
from s4spipe.learning.families import Free
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau

CPU = torch.device("cpu")
STEPS = 20  # of every fit that begins at the common one


def numbers(problem: Problem, table: Tableau, pairs: Pairs) -> dict[str, Tensor]:
    """By name, a number [n] for each sample: of its noise, and of the first two predictions."""
    recording = sample(problem.denoiser, table, pairs.x_T, pairs.condition, record=True)
    first, second = (d.double().flatten(1) for d in recording.predictions[:2])
    return {
        "norm of the noise": pairs.x_T.double().flatten(1).norm(dim=1),
        "mean of the first prediction": first.mean(1),
        "norm of the second prediction": second.norm(dim=1),
        "deviation in it": second.std(1),
        "distance between the two": (second - first).norm(dim=1),
    }


def some(pairs: Pairs, which: Tensor) -> Pairs:
    return pairs.take(which.nonzero().flatten())


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
@click.argument("nfe", type=int)
def main(name: str, seed: int, nfe: int) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    parts = ("train", "validation", "sample")
    training, validation, judges = (Pairs.load(f"pairs/{name}-{seed}/{part}.safetensors", CPU) for part in parts)
    scratch = Scratch(fingerprint("per sample", name, seed, nfe, STEPS))
    cell = rows.Cell(problem, nfe, seed, settings["budget"], training, validation, scratch.within("common"))
    common = rows.free_fit(cell, {"steps": STEPS})[0]().detached()

    def learned(known: Pairs, others: Pairs, where: str) -> Tableau:
        student = Free(common)
        task = Task(student, problem.denoiser, known, others, scratch.within(where), seed, rows.MICRO_BATCH_SIZE)
        learns = (COEFFICIENTS, TIMES)
        gauss_newton.fit(task, learns, rows.DISTANCE, rows.NEWTON_BATCH_SIZE, STEPS)
        return student().detached()

    def loss(table: Tableau, pairs: Pairs) -> float:
        return gauss_newton.mean_distance(table, problem.denoiser, pairs, rows.DISTANCE, rows.MICRO_BATCH_SIZE)

    one = loss(learned(training, validation, "one"), judges)
    click.echo(f"one table for all: {one:.4g}")
    known, others, seen = (numbers(problem, common, pairs) for pairs in (training, validation, judges))
    for of, values in known.items():
        middle, total = values.median(), 0.0
        for half, sign in (("low", -1), ("high", 1)):
            streams = ((training, known), (validation, others), (judges, seen))
            own, checked, judged = (some(pairs, sign * (found[of] - middle) > 0) for pairs, found in streams)
            table = replace(learned(own, checked, f"{of} {half}"), name=half)
            total += loss(table, judged) * len(judged) / len(judges)
        click.echo(f"two, by the {of}: {total:.4g} ({total / one:.3f})")


if __name__ == "__main__":
    main()
