"""Write a classical solver's tableau: one to compare with, the teacher, the reference, or a learned solver's start."""

import click

from s4spipe import best, classical, models, stage, steps
from s4spipe.errors import UserError
from s4spipe.params import Params


@stage.command
@click.argument("role")
@click.argument("nfe", type=int)
@click.argument("path")
def main(params: Params, role: str, nfe: int, path: str) -> None:
    key, solver, schedule = params.start(role)
    if schedule == "best":
        schedule = best.schedule(solver, nfe, best.read())
    noise = models.noise_schedule(params.model.model_dump())
    try:
        t = steps.build(schedule, noise, len(classical.costs(solver, nfe)))
    except UserError as error:
        raise UserError(f"params.yaml: {key}: {error}") from None
    meta = {"solver": solver, "steps": schedule}
    classical.build(solver, noise, t, meta, nfe).save(path)


if __name__ == "__main__":
    main()
