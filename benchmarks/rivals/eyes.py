"""What a refinement does by networks that see well, poorly and at random, alone and with random features beside.

Run as `PYTHONPATH=../.. python -m benchmarks.rivals.eyes photos 1` in this folder, which holds the pairs of that seed
(`dvc repro -s pairs@photos-1`). It prints the distance to the teacher's samples by the judge's network, after the fit
of `free`, or of `free_bands`, and after its refinement. Alone, only the network that is minimised says which step is
kept. With `--seeing`, each fit is by what the network sees of pairs (`perceptual_huber`), and its refinement has random
features beside.
"""

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.rivals import params, rows, sampling
from benchmarks.rivals.problems import mixture, photos
from benchmarks.rivals.problems.problem import FeatureFn, Problem
from s4spipe.features.base import frechet
from s4spipe.features.digits import DigitFeatures, to_255
from s4spipe.features.random import BESIDE, RandomFeatures
from s4spipe.learning import refinement
from s4spipe.learning.families import Family
from s4spipe.learning.gauss_newton import Parameters
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau import Tableau
from s4spipe.training import digits

CPU = torch.device("cpu")
STEPS, BATCH_SIZE, SEED = 100, 100, 3  # training of the poor classifiers; the good ones' has 900 or 1,500 such steps


@click.command()
@click.argument("name", type=click.Choice(["digits", "photos", "mixture"]))
@click.argument("seed", type=int)
@click.option("--nfe", default="3,4,5,6", show_default=True, help="Evaluations, with commas between.")
@click.option("--row", type=click.Choice(["free", "free_bands"]), default="free", show_default=True)
@click.option("--seeing", is_flag=True, help="Fit by what each network sees, too.")
def main(name: str, seed: int, nfe: str, row: str, seeing: bool) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    folder, block = f"pairs/{name}-{seed}", settings["rows"][row]
    training = Pairs.load(f"{folder}/train.safetensors", CPU, block.get("pairs", settings["pairs"]))
    validation, exact = (Pairs.load(f"{folder}/{stream}.safetensors", CPU) for stream in ("validation", "sample"))
    goal = frechet.statistics(problem.judge(exact.x_0).double())

    def judged(table: Tableau) -> float:
        own = sampling.samples(problem, table, Noises("sample", seed, len(exact))).x_0
        return frechet.distance_and_slope(problem.judge(own).double(), goal)[0]

    chance, second = RandomFeatures(), RandomFeatures(BESIDE)

    def beside(x: Tensor) -> Tensor:
        return second.embed(problem.denoiser.decode(x))

    networks = {
        "good": problem.seen,
        "poor": poor(problem),
        "random": lambda x: chance.embed(problem.denoiser.decode(x)),
    }
    heads = "{net}: fit by it | refined" if seeing else "{net} alone | {net}"
    click.echo(f"| model | NFE | fit | {' | '.join(heads.format(net=net) for net in networks)} |")
    click.echo("|---|" + "--:|" * (2 + 2 * len(networks)))
    for evaluations in map(int, nfe.split(",")):
        cell = rows.Cell(problem, evaluations, seed, 0, training, validation, Scratch(Path(".s4spipe/eyes")))

        def fitted(cell: rows.Cell = cell, **more: FeatureFn) -> tuple[Family, float]:
            cell.scratch.clear()
            student, _ = rows.free_fit(cell, block | more)
            return student, judged(student())

        def refined(student: Family, *nets: FeatureFn, cell: rows.Cell = cell) -> float:
            cell.scratch.clear()
            refinement.refine(cell.task(student), lambda x: [net(x) for net in nets], block["refine"])
            return judged(student())

        student, distance = fitted()
        parameters = Parameters(student, (COEFFICIENTS, TIMES))
        begun, found = parameters.get(), [distance]
        for net in networks.values():
            if seeing:
                other, distance = fitted(seeing=net)
                found += [distance, refined(other, net, beside)]
                continue
            for nets in ((net,), (net, beside)):
                parameters.put(begun)
                found.append(refined(student, *nets))
        cell.scratch.clear()
        click.echo(f"| {name} | {evaluations} | " + " | ".join(f"{distance:.3g}" for distance in found) + " |")


def poor(problem: Problem) -> FeatureFn:
    """A network that has hardly learned; of the mixture, one that sees eight numbers."""
    if problem.name == "mixture":
        return mixture.RandomFeatures(SEED, 8).requires_grad_(False)
    torch.manual_seed(SEED)
    if problem.name == "photos":
        images = photos.photographs()
        return trained(photos.PatchFeatures((12, 24, 24), 3), lambda rng: photos.patches(images, rng, BATCH_SIZE),
                       problem.denoiser.decode)  # fmt: skip
    x, y = digits.images()

    def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        index = torch.tensor(rng.integers(len(x), size=BATCH_SIZE))
        return x[index], y[index]

    return trained(DigitFeatures((8, 12, 12), width=24), draw, problem.denoiser.decode)


def trained(net: nn.Module, draw: Callable, decode: Callable[[Tensor], Tensor]) -> FeatureFn:
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for step in range(STEPS):
        x, labels = draw(np.random.default_rng((SEED, step)))
        loss = cross_entropy(net.head(net(to_255(x))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    click.echo(f"the poor network's loss: {loss.item():.2f}", err=True)
    net.eval().requires_grad_(False)
    return lambda x: net.embed(decode(x))


if __name__ == "__main__":
    main()
