"""The choices inside S4S-Alt, one changed at a time, on a model of the comparison.

Run as `python -m benchmarks.ablations photos 0`, after `PYTHONPATH=../.. python -m benchmarks.rivals.stages.pairs
photos 0` in benchmarks/rivals. Everything else is as params.yaml says. An interrupted run goes on where it was. The
table of all models that have been run, with this seed and so many evaluations, goes to docs/results/ablations.
"""

import os
from itertools import accumulate
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.rivals import sampling
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.features.base import frechet
from s4spipe.learning import adam, distance
from s4spipe.learning.families import Family
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.models.noise import NoiseSchedule
from s4spipe.pipeline import params as pipeline
from s4spipe.pipeline import resolve
from s4spipe.pipeline.schema import Learner, Params, Start
from s4spipe.runtime.files import read_json, write_json, write_text
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau.basis import PLAIN
from s4spipe.solvers import registry
from stages import learn

CPU = torch.device("cpu")

# name -> what is changed in the block learners.s4s_alt, and in starts.s4s_alt
ROWS: dict[str, tuple[dict, dict]] = {
    "as params.yaml has it": ({}, {}),
    "radius 0": ({"radius": 0.0}, {}),
    "radius 0.005": ({"radius": 0.005}, {}),
    "radius 0.05": ({"radius": 0.05}, {}),
    "radius 0.2": ({"radius": 0.2}, {}),
    "order 1": ({"order": 1}, {"solver": "ipndm_1"}),
    "order 2": ({"order": 2}, {"solver": "ipndm_2"}),
    "order 4": ({"order": 4}, {}),
    "order 5, the whole history": ({"order": 5}, {}),
    "joint": ({"learns": "joint", "epochs": 16}, {}),
    "times alone (LD3)": ({"learns": "times", "epochs": 18}, {}),
    "coefficients alone (S4S)": ({"learns": "coefficients", "epochs": 18}, {}),
    "start: dpmpp_3m": ({}, {"solver": "dpmpp_3m"}),
    "start: ddim": ({}, {"solver": "ddim"}),
    "start: unip_bh2": ({}, {"solver": "unip_bh2"}),
    "start: Gaussian": ({"gaussian": True}, {}),
    "rows keep their sum": ({"consistent": True}, {}),
    "coefficients the same at all times": ({"shared": True}, {}),
    "distance l2": ({"distance": "l2"}, {}),
    "distance perceptual": ({"distance": "perceptual"}, {}),
    "100 pairs": ({"pairs": 100}, {}),
    "300 pairs": ({"pairs": 300}, {}),
    "network times are the steps'": ({"decoupling": 0.0}, {}),
    "start schedule edm": ({}, {"schedules": ["edm"]}),
    "start schedule logsnr": ({}, {"schedules": ["logsnr"]}),
}


class Eye:
    """The network that fits may see, as distances by features want it."""

    def __init__(self, problem: Problem):
        self.seen = problem.seen

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        return self.seen(x) - self.seen(y)


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
@click.option("--nfe", default=5, show_default=True)
@click.option("--row", "chosen", multiple=True, type=click.Choice(list(ROWS)), help="Only these.")
def main(name: str, seed: int, nfe: int, chosen: tuple[str, ...]) -> None:
    params, problem = pipeline.load(), Problem(name, CPU)
    os.chdir("benchmarks/rivals")  # where the models lie
    folder, file = f"pairs/{name}-{seed}", Path(f"results/ablations/{name}-{nfe}-{seed}.json")
    exact = Pairs.load(f"{folder}/sample.safetensors", CPU)
    ideal = frechet.statistics(problem.judge(exact.x_0.clone()).double())

    def measured(row: str) -> dict[str, float]:
        block, student = changed(params, row, problem.denoiser.noise_schedule, nfe)
        training = Pairs.load(f"{folder}/train.safetensors", CPU, block.pairs)
        validation = Pairs.load(f"{folder}/validation.safetensors", CPU, block.validation_pairs)
        scratch = Scratch(fingerprint("ablations", name, row, nfe, seed, block.model_dump(), files=(folder,)))
        task = Task(student, problem.denoiser, training, validation, scratch, seed, params.run.micro_batch_size, row)
        rates = adam.Adam(block.batch_size, block.learning_rate, block.radius)
        history = adam.fit(task, learn.phases(block), distance.build(block.distance, Eye(problem)), rates)
        end = sampling.samples(problem, student(), Noises("sample", seed, len(exact))).x_0
        error = (end - exact.x_0).double().square().mean().sqrt().item()
        to_teacher = frechet.distance_and_slope(problem.judge(end.clone()).double(), ideal)[0]
        scratch.clear()
        return {"to_teacher": to_teacher, "error": error, **epochs_kept(history)}

    found = read_json(file) if file.exists() else {}
    for row in tqdm(chosen or ROWS, disable=None):
        if row not in found:
            found[row] = measured(row)
            write_json(file, found)
            write_text(f"../../docs/results/ablations/{nfe}-{seed}.md", table(nfe, seed))


def changed(params: Params, row: str, noise: NoiseSchedule, nfe: int) -> tuple[Learner, Family]:
    """The settings of a row, and what it learns."""
    of_learner, of_start = ROWS[row]
    block = Learner.model_validate(resolve.learner(params, "s4s_alt").model_dump() | of_learner)
    start = Start.model_validate(params.starts["s4s_alt"].model_dump() | of_start)
    return block, learn.student_of(block, registry.make(start.solver, start.schedules[0], noise, nfe), PLAIN)


def epochs_kept(history: list[dict]) -> dict[str, int]:
    """How many epochs lowered the validation loss, by what they learned."""
    lows = accumulate((epoch["validation"] for epoch in history), min)
    kept = [epoch["learns"] for epoch, low in zip(history[1:], lows, strict=False) if epoch["validation"] < low]
    return {what: sum(what in learns for learns in kept) for what in (TIMES, COEFFICIENTS)}


def table(nfe: int, seed: int) -> str:
    """Markdown, of what has been run."""
    files = {name: Path(f"results/ablations/{name}-{nfe}-{seed}.json") for name in NAMES}
    found = {name: read_json(file) for name, file in files.items() if file.exists()}
    heads = "".join(f" {name}: distance | RMS error | epochs kept |" for name in found)
    lines = [f"| changed |{heads}", "|---|" + "--:|--:|--:|" * len(found)]
    shown = [row for row in ROWS if any(row in of for of in found.values())]
    lines += [f"| {row} |" + "".join(cells(of.get(row)) for of in found.values()) for row in shown]
    return "\n".join([*lines, ""])


def cells(found: dict | None) -> str:
    """Those of a row and a model; dashes for what has not been run."""
    if found is None:
        return " - | - | - |"
    return f" {found['to_teacher']:.3g} | {found['error']:.3g} | {found[TIMES]}, {found[COEFFICIENTS]} |"


if __name__ == "__main__":
    main()
