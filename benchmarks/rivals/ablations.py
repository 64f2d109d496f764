"""The choices inside S4S-Alt (benchmarks/ablations.py), one changed at a time, on a model of this comparison.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.ablations photos 0`, after `pairs photos 0`.
Everything else is as the pipeline's params.yaml says. An interrupted run goes on where it was; the table is printed.
"""

from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.ablations import ROWS, changed, epochs_kept
from benchmarks.rivals import sampling
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.features.base import frechet
from s4spipe.learning import adam, distance
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.pipeline import params as pipeline
from s4spipe.runtime.files import read_json, write_json
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises
from stages.learn import phases

CPU = torch.device("cpu")


class Eye:
    """The network that fits may see, as `perceptual` wants it."""

    def __init__(self, problem: Problem):
        self.seen = problem.seen

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        return self.seen(x) - self.seen(y)


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
@click.option("--nfe", default="4,6", show_default=True, help="Evaluations, with commas between.")
def main(name: str, seed: int, nfe: str) -> None:
    params, problem = pipeline.load("../../params.yaml"), Problem(name, CPU)
    folder, evaluations = f"pairs/{name}-{seed}", [int(n) for n in nfe.split(",")]
    load = partial(Pairs.load, device=CPU)
    exact = load(f"{folder}/sample.safetensors")
    ideal = frechet.statistics(problem.judge(exact.x_0.clone()).double())

    def measured(row: str, nfe: int) -> dict[str, float]:
        block, student = changed(params, row, problem.denoiser.noise_schedule, nfe)
        training = load(f"{folder}/train.safetensors", count=block.pairs)
        validation = load(f"{folder}/validation.safetensors", count=block.validation_pairs)
        scratch = Scratch(fingerprint("ablations", row, nfe, seed, block.model_dump(), files=(folder,)))
        task = Task(student, problem.denoiser, training, validation, scratch, seed, params.run.micro_batch_size, row)
        rates = adam.Adam(block.batch_size, block.learning_rate, block.radius)
        history = adam.fit(task, phases(block), distance.build(block.distance, Eye(problem)), rates)
        end = sampling.samples(problem, student(), Noises("sample", seed, len(exact))).x_0
        error = (end - exact.x_0).double().square().mean().sqrt().item()
        to_teacher = frechet.distance_and_slope(problem.judge(end.clone()).double(), ideal)[0]
        scratch.clear()
        return {"to_teacher": to_teacher, "error": error, **epochs_kept(history)}

    click.echo("| changed |" + "".join(f" NFE {n} | error | epochs kept |" for n in evaluations))
    click.echo("|---|" + "--:|--:|--:|" * len(evaluations))
    for number, row in enumerate(ROWS):
        cells = []
        for n in evaluations:
            file = Path(f"results/ablations/{name}/{n}-{seed}-{number}.json")
            if not file.exists():
                write_json(file, {"changed": row, "nfe": n, "seed": seed, **measured(row, n)})
            found = read_json(file)
            if found["changed"] != row:
                raise click.ClickException(f"{file} is of {found['changed']!r}, not of {row!r}; remove it.")
            cells.append(f" {found['to_teacher']:.3g} | {found['error']:.3g} | {found[TIMES]}, {found[COEFFICIENTS]} |")
        click.echo(f"| {row} |" + "".join(cells))


if __name__ == "__main__":
    main()
