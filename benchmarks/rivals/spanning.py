"""One fit for several NFEs beside a fit for each: how far their samples are from the teacher's.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.spanning photos 0`, after `pairs photos 0` and
`reference photos`. An interrupted run goes on where it was.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import click
import torch

from benchmarks.rivals import params, rows, sampling
from benchmarks.rivals.problems.problem import NAMES, Problem
from s4spipe.features.base import frechet
from s4spipe.learning import gauss_newton, refinement, span, starts
from s4spipe.learning.families import Family, Free
from s4spipe.learning.pairs import Pairs
from s4spipe.runtime.files import write_json
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry

CPU = torch.device("cpu")
NFES = range(4, 13)
BATCH_SIZE, STEPS, REFINED = 100, 60, 3


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

    def both(student: Family, nfe: int, where: str, spent: int) -> dict[str, Any]:
        """As fitted, and as refined by three steps."""
        fitted = judged(student())
        cell = rows.Cell(problem, nfe, seed, settings["budget"], training, validation, scratch.within(where))
        history = refinement.refine(cell.task(student), partial(rows.with_random, problem, problem.seen), REFINED)
        return {"fit": fitted, "refined": judged(student()), "evaluations": spent + history[-1]["evaluations"]}

    def alone(nfe: int) -> dict[str, Any]:
        given = problem, nfe, seed, settings["budget"], training, validation
        student, spent = rows.free_fit(rows.Cell(*given, scratch.within(f"alone-{nfe}")), {})
        return both(student, nfe, f"alone-{nfe}-refined", spent)

    def together() -> dict[str, Any]:
        trial = training.take(torch.arange(starts.TRIAL_PAIRS))
        loss = partial(gauss_newton.mean_distance, denoiser=problem.denoiser, pairs=trial, distance=rows.DISTANCE,
                       micro_batch_size=rows.MICRO_BATCH_SIZE)  # fmt: skip
        student = span.Span(span.choose({nfe: candidates(problem, nfe) for nfe in NFES}, loss))
        cell = rows.Cell(problem, max(NFES), seed, settings["budget"], training, validation, scratch.within("together"))
        history = span.fit(student, cell.task(span.Member(student, cell.nfe)), rows.DISTANCE, BATCH_SIZE, STEPS)
        tables = [student(nfe).detached().to_dict() for nfe in NFES]
        return {"tables": tables, "evaluations": history[-1]["evaluations"], "numbers": student.parameter_count}

    cells = [{"nfe": nfe, "alone": scratch.once(f"own-{nfe}", partial(alone, nfe))} for nfe in NFES]
    fit = scratch.once("spanning", together)
    for cell, data in zip(cells, fit["tables"], strict=True):
        nfe = cell["nfe"]
        student = Free(Tableau.from_dict(data))
        cell["spanning"] = scratch.once(f"of-{nfe}", partial(both, student, nfe, f"of-{nfe}-refined", 0))
    result = {"numbers": fit["numbers"], "evaluations of the fit": fit["evaluations"], "cells": cells}
    write_json(f"results/spanning/{name}-{seed}.json", result)
    scratch.clear()
    click.echo(table(cells))


def candidates(problem: Problem, nfe: int) -> list[Tableau]:
    noise = problem.denoiser.noise_schedule
    made = [registry.make(rows.FREE_START, schedule, noise, nfe) for schedule in rows.SCHEDULES]
    return [starts.late(table, skip) for table in made for skip in rows.SKIP]


def table(cells: Sequence[dict]) -> str:
    """In markdown: the distances as fitted and as refined, the RMS errors as fitted, and how they compare."""
    columns = [("fit", "to_teacher"), ("refined", "to_teacher"), ("fit", "error")]
    heads = [f"{what}, {which}" for what in ("fitted", "refined", "RMS error") for which in ("alone", "spanning")]
    lines = [f"| NFE | {' | '.join(heads)} |", "|--:|" + "--:|" * 6]
    for cell in cells:
        shown = [f"{cell['nfe']}"]
        for stage, key in columns:
            one, other = cell["alone"][stage][key], cell["spanning"][stage][key]
            shown += [f"{one:.3g}", f"{other:.3g} ({other / one:.2f})"]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
