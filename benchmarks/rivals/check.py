"""Whether the confirmation models are fit to judge solvers: run as `python -m benchmarks.rivals.check` in this folder.

No solver is learned. The teacher must have converged, so that its samples hardly change with twice as many evaluations,
and classical solvers must be far from it at few. All distances are the judge's, to the teacher's samples from the same
noises.
"""

import time

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

from benchmarks.rivals import params, sampling
from benchmarks.rivals.problems import confirmation
from benchmarks.rivals.problems.problem import Problem
from s4spipe.features.base import frechet
from s4spipe.runtime.files import read_tensors, write_text
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry

NFES = (4, 6, 10)
SOLVERS, SCHEDULES = ("dpmpp_3m", "ipndm"), ("edm", "vp_quadratic")
SHOWN = 32
HEAD = """| model | classifier's accuracy | judge's error | teacher | at twice as many | from other noises | {} |
|---|--:|--:|--:|--:|--:|{}|
"""


@click.command()
@click.option("--samples", default=200, show_default=True, help="Noises that a distance is of.")
@click.argument("names", nargs=-1, type=click.Choice(tuple(confirmation.MODELS)))
def main(samples: int, names: tuple[str, ...]) -> None:
    rows, settings = [], params.load()
    for name in tqdm(names or tuple(confirmation.MODELS), "models", disable=None):
        problem, nfe = Problem(name, torch.device("cpu")), settings["teacher"][name]
        started = time.process_time()
        ends = {count: run(problem, sampling.teacher(problem, count), samples) for count in (nfe, 2 * nfe)}
        each = (time.process_time() - started) / samples / (3 * nfe)
        tqdm.write(f"{name}: {1000 * each:.2f} ms of a core for an evaluation of one sample")
        goal = frechet.statistics(problem.judge(ends[nfe]).double())

        def distance(x: Tensor, goal=goal, problem=problem) -> float:
            return frechet.distance_and_slope(problem.judge(x).double(), goal)[0]

        others = run(problem, sampling.teacher(problem, nfe), samples, seed=1)
        best = [min(distance(run(problem, table, samples)) for table in classical(problem, few)) for few in NFES]
        seen, judged = (read_tensors(confirmation.path(name, which), tensors=False)[1] for which in ("seen", "judge"))
        numbers = [f"{x:.3g}" for x in (distance(ends[2 * nfe]), distance(others), *best)]
        rows.append(f"| {name} | {seen['accuracy']:.2f} | {judged['error']:.3f} | {nfe} | {' | '.join(numbers)} |\n")
        show(name, problem, ends[nfe][:SHOWN].clone())
    if not names:
        head = HEAD.format(" | ".join(f"NFE {few}" for few in NFES), "|".join(["--:"] * len(NFES)))
        write_text("confirmation/table.md", head + "".join(rows))
    print("".join(rows))


def run(problem: Problem, table: Tableau, count: int, seed: int = 0) -> Tensor:
    """Samples [count, ...]."""
    return sampling.samples(problem, table, Noises("sample", seed, count)).x_0.clone()


def classical(problem: Problem, nfe: int) -> list[Tableau]:
    noise = problem.denoiser.noise_schedule
    return [registry.make(solver, schedule, noise, nfe) for solver in SOLVERS for schedule in SCHEDULES]


def show(name: str, problem: Problem, samples: Tensor) -> None:
    """A picture: as many samples, and below them patches that the model was trained on."""
    patches, _ = confirmation.MODELS[name].PATCHES.draw(np.random.default_rng(0), SHOWN)
    both = torch.cat([problem.denoiser.decode(samples).clamp(-1, 1), patches])
    both = interpolate(both, size=(64, 64))
    save_image(make_grid((both + 1) / 2, nrow=16, padding=4, pad_value=1.0), f"confirmation/{name}.png")


if __name__ == "__main__":
    main()
