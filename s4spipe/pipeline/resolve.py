"""What the parameters mean for the stages: the cells of a run, and the settings of each learner."""

from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Learner, Params


def learned_solvers(params: Params) -> list[str]:
    """The names of all learned solvers of this run."""
    return [*fitted_solvers(params), *params.spanning]


def fitted_solvers(params: Params) -> list[str]:
    """The names of those that are learned for each NFE by itself."""
    return [*params.learned, *params.refined]


def solvers(params: Params) -> list[str]:
    """The names of all solvers of this run except the teacher."""
    return [*params.classical, *learned_solvers(params)]


def teacher(params: Params) -> Cell:
    return Cell("teacher", params.teacher.nfe)


def cells(params: Params) -> list[Cell]:
    """All cells that are sampled and measured."""
    return [teacher(params), *(Cell(solver, nfe) for solver in solvers(params) for nfe in params.nfe)]


def learner(params: Params, name: str) -> Learner:
    """The settings of a learned solver: `learner_defaults`, overridden by its own block.

    Raises pydantic's ValidationError for an invalid block.
    """
    return Learner.model_validate(params.learner_defaults.model_dump() | params.learners[name])
