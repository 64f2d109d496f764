"""Solvers averaged over fits of several seeds, beside each of them and beside one fit of all their pairs.

Run in benchmarks/rivals as `PYTHONPATH=../.. python -m benchmarks.rivals.averaged photos`, after `pairs photos 0`, and
the same with seeds 1 and 2. All fits start from one solver, so that their parameters can be averaged. They are judged
by the noises of seed 0; the table is printed.
"""

from functools import partial
from statistics import mean

import click
import torch

from benchmarks.rivals import params, rows
from benchmarks.rivals.longer import CPU, judge
from benchmarks.rivals.problems.problem import Problem
from s4spipe.learning import gauss_newton, refinement, starts
from s4spipe.learning.families import Family, Free
from s4spipe.learning.gauss_newton import Parameters
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.tableau import Tableau


@click.command()
@click.argument("name", type=click.Choice(["digits", "photos", "mixture"]))
@click.option("--nfe", default="3,4", show_default=True, help="Evaluations, with commas between.")
def main(name: str, nfe: str) -> None:
    settings, problem = params.load(), Problem(name, CPU)
    block, judged = settings["rows"]["free_mean"], judge(problem, 0)
    sets = [Pairs.load(f"pairs/{name}-{s}/train.safetensors", CPU, settings["pairs"]) for s in settings["seeds"]]
    validation = Pairs.load(f"pairs/{name}-0/validation.safetensors", CPU)
    every = joined(sets)
    click.echo("| model | NFE | what | each seed | mean of these | averaged | one fit of all pairs |")
    click.echo("|---|--:|---|--:|--:|--:|--:|")
    for evaluations in map(int, nfe.split(",")):
        scratch = Scratch(fingerprint("averaged", name, evaluations))

        def cell(training: Pairs, n: int = evaluations, scratch: Scratch = scratch) -> rows.Cell:
            scratch.clear()
            return rows.Cell(problem, n, 0, 0, training, validation, scratch)

        start = nearest(cell(sets[0]), starts.mean(every.x_0, block["mean"]))
        found: dict[str, list[float]] = {"fit": [], "refined": []}
        points: dict[str, list[torch.Tensor]] = {"fit": [], "refined": []}
        for training in (*sets, every):
            student, _ = rows.newton(cell(training), [Free(start, True)], block)
            parameters = Parameters(student, (COEFFICIENTS, TIMES))
            for what in found:
                if what == "refined":
                    refined(cell(training), student, block["refine"])
                found[what].append(judged(student()))
                points[what].append(parameters.get())
        scratch.clear()
        for what, (*each, last) in found.items():
            parameters.put(torch.stack(points[what][:-1]).mean(0))
            shown = (mean(each), judged(student()), last)
            click.echo(f"| {name} | {evaluations} | {what} | {', '.join(f'{distance:.3g}' for distance in each)} | "
                       + " | ".join(f"{distance:.3g}" for distance in shown) + " |")  # fmt: skip


def joined(sets: list[Pairs]) -> Pairs:
    conditions = [pairs.condition for pairs in sets if pairs.condition is not None]
    return Pairs(
        torch.cat([pairs.x_T for pairs in sets]),
        torch.cat([pairs.x_0 for pairs in sets]),
        torch.cat(conditions) if conditions else None,
    )


def nearest(cell: rows.Cell, m: torch.Tensor) -> Tableau:
    """The start that the row would choose."""
    trial = cell.training.take(torch.arange(starts.TRIAL_PAIRS))
    tables = [cell.classical(rows.FREE_START, schedule) for schedule in rows.SCHEDULES]
    tables = [starts.with_constant(starts.late(table, skip), m) for table in tables for skip in rows.SKIP]
    far = partial(gauss_newton.mean_distance, denoiser=cell.problem.denoiser, pairs=trial, distance=rows.DISTANCE,
                  micro_batch_size=rows.MICRO_BATCH_SIZE)  # fmt: skip
    return min(tables, key=far)


def refined(cell: rows.Cell, student: Family, steps: int) -> None:
    refinement.refine(cell.task(student), partial(rows.with_random, cell.problem, cell.problem.seen), steps)


if __name__ == "__main__":
    main()
