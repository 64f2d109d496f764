"""What a refinement does with networks that see well, poorly and at random, watched and not.

Run as `PYTHONPATH=../.. python -m benchmarks.rivals.watched photos 0` in benchmarks/rivals, which holds the pairs of
that seed (`dvc repro -s pairs@photos-0`). It prints, for each number of evaluations, the distance to the teacher's
samples by the judge's network: after the fit of `free`, and after its refinement.
"""

from pathlib import Path

import click
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.rivals import params, rows, sampling
from benchmarks.rivals.problems import photos
from benchmarks.rivals.problems.problem import NAMES, FeatureFn, Problem
from s4spipe.features.base import frechet
from s4spipe.features.digits import to_255
from s4spipe.features.random import RandomFeatures
from s4spipe.learning import refinement
from s4spipe.learning.families import Free
from s4spipe.learning.gauss_newton import Parameters
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.starts import late
from s4spipe.learning.task import COEFFICIENTS, TIMES
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau import Tableau

CPU = torch.device("cpu")
STEPS = 3


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
@click.option("--nfe", default="3,4,5,6", show_default=True, help="Evaluations, with commas between.")
def main(name: str, seed: int, nfe: str) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    folder = f"pairs/{name}-{seed}"
    training = Pairs.load(f"{folder}/train.safetensors", CPU, settings["pairs"])
    validation, exact = (Pairs.load(f"{folder}/{stream}.safetensors", CPU) for stream in ("validation", "sample"))
    goal = frechet.statistics(problem.judge(exact.x_0).double())

    def judged(table: Tableau) -> float:
        own = sampling.samples(problem, table, Noises("sample", seed, len(exact))).x_0
        return frechet.distance_and_slope(problem.judge(own).double(), goal)[0]

    networks = seeing(problem)
    click.echo(f"| NFE | fit | {' | '.join(f'{net}, watched | not' for net in networks)} |")
    for evaluations in map(int, nfe.split(",")):
        cell = rows.Cell(problem, evaluations, seed, 0, training, validation, Scratch(Path(".s4spipe/watched/none")))
        tables = [late(cell.classical(rows.FREE_START, s), skip) for s in rows.SCHEDULES for skip in rows.SKIP]
        student, _ = rows.newton(cell, [Free(table) for table in tables], {})
        cell.scratch.clear()
        parameters = Parameters(student, (COEFFICIENTS, TIMES))
        fitted = parameters.get()

        found = [judged(student())]
        for feature_fn in networks.values():
            for watch in (lambda x: rows.WATCH.embed(problem.denoiser.decode(x)), lambda x: x.new_zeros(len(x), 1)):
                parameters.put(fitted)
                refinement.refine(cell.task(student), feature_fn, STEPS, watch)
                cell.scratch.clear()
                found.append(judged(student()))
        click.echo(f"| {evaluations} | " + " | ".join(f"{distance:.3g}" for distance in found) + " |")


def seeing(problem: Problem) -> dict[str, FeatureFn]:
    """Networks for the refinement: the model's own, random ones, and for the photographs one that hardly learned."""
    decode, chance = problem.denoiser.decode, RandomFeatures()
    found = {"seen": problem.seen}
    if problem.name == "photos":
        net = poorly_trained()
        found["poor"] = lambda x: net.embed(decode(x))
    return found | {"random": lambda x: chance.embed(decode(x))}


def poorly_trained(steps: int = 100, seed: int = 3) -> photos.PatchFeatures:
    """A small classifier of where a patch is from, after 100 steps instead of 1,500."""
    images = photos.photographs()
    torch.manual_seed(seed)
    net = photos.PatchFeatures((12, 24, 24), 3)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for step in range(steps):
        x, places = photos.patches(images, np.random.default_rng((seed, step)), 100)
        loss = cross_entropy(net.head(net(to_255(x))), places)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    click.echo(f"poor: loss {loss.item():.2f}")
    return net.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
