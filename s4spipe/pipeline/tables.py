"""The tableaux of a run that come from formulas: classical solvers, and the starts of learned ones."""

from collections.abc import Iterator, Mapping
from typing import Any

from s4spipe.learning import starts
from s4spipe.models.noise import NoiseSchedule
from s4spipe.pipeline import resolve
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Params, Start
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.adaptive import Adaptive
from s4spipe.sampling.tableau.form import RK45
from s4spipe.solvers import best_schedules, registry
from s4spipe.solvers.dpm_v3 import Statistics
from s4spipe.solvers.timesteps import Schedule


def tables(
    params: Params, noise: NoiseSchedule, named: Mapping[str, Any], statistics: Statistics | None = None
) -> Iterator[tuple[Cell, Tableau | Adaptive]]:
    """The solvers of the teacher and the reference, and every classical solver's tableau at every NFE.

    Args:
        params: the parameters.
        noise: the noise schedule of the model.
        named: schedules by name, as for `timesteps.build`.
        statistics: of the model, if a classical solver needs them.

    Raises UserError, naming the key, if a schedule does not suit its solver.
    """
    for role in ("teacher", "reference"):
        block = getattr(params, role)
        if block.solver == RK45:
            yield Cell(role, block.nfe), Adaptive(noise, block.tolerance, block.nfe)
            continue
        yield Cell(role, block.nfe), _table(f"{role}.schedule", block.solver, block.schedule, noise, block.nfe, named)
    for solver in params.classical:
        schedule = params.classical_schedules[solver]
        for nfe in params.nfe:
            chosen = best_schedules.schedule(solver, nfe, best_schedules.read()) if schedule == "best" else schedule
            key = f"classical_schedules.{solver}"
            yield Cell(solver, nfe), _table(key, solver, chosen, noise, nfe, named, statistics)


def start_tables(
    params: Params, noise: NoiseSchedule, named: Mapping[str, Any]
) -> Iterator[tuple[Cell, list[Tableau]]]:
    """The tableaux that each solver learned for one NFE may start from, at every NFE. Arguments and errors as for
    `tables`."""
    for name in resolve.fitted_solvers(params):
        for nfe in params.nfe:
            yield Cell(name, nfe), candidates(name, params.starts[name], noise, nfe, named)


def candidates(
    name: str, start: Start, noise: NoiseSchedule, nfe: int, named: Mapping[str, Any] | None = None
) -> list[Tableau]:
    """The tableaux that the learned solver `name` may start from. Other arguments and errors as for `tables`."""
    found: list[Tableau] = []
    for schedule in start.schedules:
        table = _table(f"starts.{name}.schedules", start.solver, schedule, noise, nfe, named or {})
        found += [starts.late(table, skip) for skip in start.skip] if start.skip else [table]
    return found


def _table(
    key: str,
    solver: str,
    schedule: Schedule,
    noise: NoiseSchedule,
    nfe: int,
    named: Mapping[str, Any],
    statistics: Statistics | None = None,
) -> Tableau:
    try:
        return registry.make(solver, schedule, noise, nfe, named, statistics)
    except UserError as error:
        raise UserError(f"params.yaml: {key}: {error}") from None
