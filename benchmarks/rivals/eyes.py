"""What a refinement does by networks that see well, poorly and at random, alone and with random features beside.

Run as `PYTHONPATH=../.. python -m benchmarks.rivals.eyes photos 1` in this folder, which holds the pairs of that seed
(`dvc repro -s pairs@photos-1`). It prints the distance to the teacher's samples by the judge's network, after the fit
of a row, and after its refinement by each network with random features beside, which is the pipeline's way. With
`--alone`, also after a refinement by the network alone, which alone says then which step is kept. With `--seeing`, each
fit is by what the network sees of pairs (`perceptual_huber`).
"""

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.rivals import params, rows, sampling
from benchmarks.rivals.problems import confirmation, mixture, photos
from benchmarks.rivals.problems.problem import NAMES, FeatureFn, Problem
from s4spipe.features.base import frechet
from s4spipe.features.digits import DigitFeatures, to_255
from s4spipe.features.random import RandomFeatures, joined
from s4spipe.learning.families import Family
from s4spipe.learning.gauss_newton import Parameters
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau import Tableau
from s4spipe.training import digits

CPU = torch.device("cpu")
ROWS = ["free_bands_default", "free_default", "free_bands", "free"]
STEPS, BATCH_SIZE, SEED = 100, 100, 3  # training of the poor classifiers; the good ones' has 900 or 1,500 such steps


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
@click.option("--nfe", default="3,4,5,6", show_default=True, help="Evaluations, with commas between.")
@click.option("--row", type=click.Choice(ROWS), default=ROWS[0], show_default=True)
@click.option("--alone", is_flag=True, help="Refine by each network alone, too.")
@click.option("--seeing", is_flag=True, help="Fit by what each network sees, too.")
def main(name: str, seed: int, nfe: str, row: str, alone: bool, seeing: bool) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    folder, block = f"pairs/{name}-{seed}", settings["rows"][row]
    count = block.get("pairs", settings["pairs"])
    drawn, validation, exact = (
        Pairs.load(f"{folder}/{of}.safetensors", CPU) for of in ("train", "validation", "sample")
    )
    training, others = drawn.take(torch.arange(count)), drawn.take(torch.arange(count, len(drawn)))
    goal = frechet.statistics(problem.judge(exact.x_0).double())

    def judged(table: Tableau) -> float:
        own = sampling.samples(problem, table, Noises("sample", seed, len(exact))).x_0
        return frechet.distance_and_slope(problem.judge(own).double(), goal)[0]

    chance = RandomFeatures()

    def beside(x: Tensor) -> Tensor:
        return joined(problem.denoiser.decode(x))

    networks = {
        "good": problem.seen,
        "poor": poor(problem),
        "random": lambda x: chance.embed(problem.denoiser.decode(x)),
    }
    heads = [f"{net}{head}" for net in networks for head in [" alone"] * alone + [": fit by it"] * seeing + [""]]
    click.echo(f"| model | NFE | fit | {' | '.join(heads)} |")
    click.echo("|---|" + "--:|" * (2 + len(heads)))
    for evaluations in map(int, nfe.split(",")):
        cell = rows.Cell(problem, evaluations, seed, 0, training, validation, Scratch(Path(".s4spipe/eyes")), others)

        def fitted(cell: rows.Cell = cell, **more: FeatureFn) -> tuple[Family, float]:
            cell.scratch.clear()
            student, _ = rows.free_fit(cell, block | more)
            return student, judged(student())

        def refined(student: Family, *nets: FeatureFn, cell: rows.Cell = cell) -> float:
            cell.scratch.clear()
            rows.refined(cell, block, student, lambda x: [net(x) for net in nets])
            return judged(student())

        student, distance = fitted()
        parameters = Parameters(student, (COEFFICIENTS, TIMES))
        begun, found = parameters.get(), [distance]
        for net in networks.values():
            if alone:
                found.append(refined(student, net))
                parameters.put(begun)
            if seeing:
                other, distance = fitted(seeing=net)
                found += [distance, refined(other, net, beside)]
            else:
                found.append(refined(student, net, beside))
                parameters.put(begun)
        cell.scratch.clear()
        click.echo(f"| {name} | {evaluations} | " + " | ".join(f"{distance:.3g}" for distance in found) + " |")


def poor(problem: Problem) -> FeatureFn:
    """A network that has hardly learned; of the mixture, one that sees eight numbers."""
    if problem.name == "mixture":
        return mixture.RandomFeatures(SEED, 8).requires_grad_(False)
    torch.manual_seed(SEED)
    decode = problem.denoiser.decode
    if problem.name in confirmation.MODELS:
        patches = confirmation.MODELS[problem.name].PATCHES
        look = confirmation.look(problem.name, "seen")
        train(look, look, lambda rng: patches.draw(rng, BATCH_SIZE))
        return lambda x: look.features(decode(x).float().clamp(-1, 1))
    if problem.name == "photos":
        net, images = photos.PatchFeatures((12, 24, 24), 3), photos.photographs()
        train(net, lambda x: net.head(net(to_255(x))), lambda rng: photos.patches(images, rng, BATCH_SIZE))
        return lambda x: net.embed(decode(x))
    digit, (x, y) = DigitFeatures((8, 12, 12), width=24), digits.images()

    def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        index = torch.tensor(rng.integers(len(x), size=BATCH_SIZE))
        return x[index], y[index]

    train(digit, lambda x: digit.head(digit(to_255(x))), draw)
    return lambda x: digit.embed(decode(x))


def train(net: nn.Module, logits: Callable[[Tensor], Tensor], draw: Callable) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for step in range(STEPS):
        x, labels = draw(np.random.default_rng((SEED, step)))
        loss = cross_entropy(logits(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    click.echo(f"the poor network's loss: {loss.item():.2f}", err=True)
    net.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
