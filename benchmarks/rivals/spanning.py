"""One fit for several NFEs beside a fit for each: how far their samples are from the teacher's.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.spanning photos 0`, after `pairs photos 0` and
`reference photos`. An interrupted run goes on where it was.
"""

from collections.abc import Sequence
from functools import partial

import click
import torch

from benchmarks.rivals import params, rows, sampling
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.features.base import frechet
from s4spipe.learning import gauss_newton, span, starts
from s4spipe.learning.pairs import Pairs
from s4spipe.runtime.files import write_json
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry

CPU = torch.device("cpu")
NFES = range(4, 13)
BATCH_SIZE, STEPS = 100, 60


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("seed", type=int)
def main(name: str, seed: int) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    folder = f"pairs/{name}-{seed}"
    training = Pairs.load(f"{folder}/train.safetensors", CPU, settings["pairs"])
    validation, exact = (Pairs.load(f"{folder}/{stream}.safetensors", CPU) for stream in ("validation", "sample"))
    scratch = Scratch(fingerprint("spanning", name, seed, list(NFES), BATCH_SIZE, STEPS, files=(folder,)))
    ideal = frechet.statistics(problem.judge(exact.x_0.clone()).double())

    def judged(table: Tableau) -> dict[str, float]:
        own = sampling.samples(problem, table, Noises("sample", seed, len(exact))).x_0
        error = (own - exact.x_0).double().square().mean().sqrt().item()
        to_teacher = frechet.distance_and_slope(problem.judge(own.clone()).double(), ideal)[0]
        return {"to_teacher": to_teacher, "error": error}

    def alone(nfe: int) -> dict[str, float]:
        given = problem, nfe, seed, settings["budget"], training, validation
        student, spent = rows.free_fit(rows.Cell(*given, scratch.within(f"alone-{nfe}")), {})
        return judged(student()) | {"evaluations": spent}

    def together() -> dict[str, list[dict[str, float]]]:
        trial = training.take(torch.arange(starts.TRIAL_PAIRS))
        loss = partial(gauss_newton.mean_distance, denoiser=problem.denoiser, pairs=trial, distance=rows.DISTANCE,
                       micro_batch_size=rows.MICRO_BATCH_SIZE)  # fmt: skip
        student = span.Span(span.choose({nfe: candidates(problem, nfe) for nfe in NFES}, loss))
        cell = rows.Cell(problem, max(NFES), seed, settings["budget"], training, validation, scratch.within("together"))
        history = span.fit(student, cell.task(span.Member(student, cell.nfe)), rows.DISTANCE, BATCH_SIZE, STEPS)
        spent = {"evaluations": history[-1]["evaluations"], "numbers": student.parameter_count}
        return {"cells": [judged(student(nfe).detached()) | spent for nfe in NFES]}

    own = [scratch.once(f"own-{nfe}", partial(alone, nfe)) for nfe in NFES]
    spanning = scratch.once("spanning", together)["cells"]
    cells = [{"nfe": nfe, "alone": one, "spanning": all_} for nfe, one, all_ in zip(NFES, own, spanning, strict=True)]
    write_json(f"results/spanning/{name}-{seed}.json", cells)
    scratch.clear()
    click.echo(table(cells))


def candidates(problem: Problem, nfe: int) -> list[Tableau]:
    noise = problem.denoiser.noise_schedule
    made = [registry.make(rows.FREE_START, schedule, noise, nfe) for schedule in rows.SCHEDULES]
    return [starts.late(table, skip) for table in made for skip in rows.SKIP]


def table(cells: Sequence[dict]) -> str:
    """In markdown: the distance and the error of both, and how they compare."""
    lines = ["| NFE | distance, alone | spanning | times | error, alone | spanning | times |", "|--:|" + "--:|" * 6]
    for cell in cells:
        shown = [f"{cell['nfe']}"]
        for key, digits in (("to_teacher", 3), ("error", 3)):
            one, other = cell["alone"][key], cell["spanning"][key]
            shown += [f"{one:.{digits}g}", f"{other:.{digits}g}", f"{other / one:.2f}"]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
