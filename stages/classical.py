"""Write a classical solver's tableau on the solver's schedule, or with solver `teacher`, the teacher's."""

import click

from s4spipe import best, classical, models, stage, steps
from s4spipe.params import Params


@stage.command
@click.argument("solver")
@click.argument("nfe", type=int)
def main(params: Params, solver: str, nfe: int) -> None:
    noise = models.noise_schedule(params.model.model_dump())
    if solver == "teacher":
        name, schedule = params.teacher.solver, params.teacher.steps
    else:
        name, schedule = solver, params.classical_steps[solver]
        if schedule == "best":
            schedule = best.schedule(solver, nfe, best.read())
    meta = {"solver": name, "steps": schedule}
    t = steps.build(schedule, noise, len(classical.costs(name, nfe)))
    tableau = classical.build(name, noise, t, meta, nfe)
    tableau.save(f"solvers/{solver}/{nfe}.json")


if __name__ == "__main__":
    main()
