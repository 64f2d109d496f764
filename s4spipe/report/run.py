"""A finished run, read from the files in git: its parameters, its solvers and their metrics."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from s4spipe.evaluation import thumbnails
from s4spipe.pipeline import layout, resolve
from s4spipe.pipeline import params as parameters
from s4spipe.pipeline.layout import Cell, Layout
from s4spipe.pipeline.schema import Params
from s4spipe.report import measured
from s4spipe.report.tables import Metrics
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.form import RK45


@dataclass(frozen=True)
class Run:
    """The run in the project's folder `root`: the cells that `params` names, whatever other files are there."""

    root: Path
    params: Params

    @classmethod
    def at(cls, root: str | Path) -> "Run":
        """The run of the params.yaml in a folder. Raises UserError if it is missing or invalid."""
        return cls(Path(root), parameters.load(Path(root) / layout.PARAMS))

    @property
    def places(self) -> Layout:
        return Layout(self.params.model.name, self.root)

    @property
    def learned(self) -> list[str]:
        """The names of the learned solvers."""
        return resolve.learned_solvers(self.params)

    @property
    def teacher(self) -> Cell:
        return resolve.teacher(self.params)

    def cells_at(self, nfe: int) -> list[Cell]:
        """The cells to compare: the teacher, and every solver at `nfe` evaluations."""
        return [self.teacher, *(Cell(solver, nfe) for solver in resolve.solvers(self.params))]

    def learned_at(self, nfe: int) -> list[Cell]:
        """The cells of the learned solvers at `nfe` evaluations."""
        return [Cell(solver, nfe) for solver in self.learned]

    @cached_property
    def cells(self) -> Metrics:
        """The metrics of every cell. Raises UserError if a cell was not evaluated."""
        return {
            cell: measured.metrics(self.places.evaluation(cell, "metrics.json")) for cell in resolve.cells(self.params)
        }

    def history(self, cell: Cell) -> list[dict[str, Any]]:
        """The losses of a learned solver, a row for each epoch."""
        return measured.history(self.places.learned("solvers", cell)[1])

    @property
    def teachers_name(self) -> str:
        """The teacher's solver and its cost, in words."""
        teacher = self.params.teacher
        if not self.has_tableau(self.teacher):
            spends = self.cells[self.teacher]["evaluations"]
            return f"rk45 at tolerance {teacher.tolerance:g}, with {spends['mean']:g} NFE on average"
        schedule = "custom steps" if isinstance(teacher.schedule, list) else f"{teacher.schedule} steps"
        return f"{teacher.solver} on {schedule}, with {teacher.nfe} NFE"

    def has_tableau(self, cell: Cell) -> bool:
        """Whether a cell's solver is a tableau; an adaptive teacher is not."""
        return cell != self.teacher or self.params.teacher.solver != RK45

    def tableau(self, cell: Cell) -> Tableau:
        learned = cell.solver in self.learned
        path = self.places.learned("solvers", cell)[0] if learned else self.places.table(cell)
        table = Tableau.load(path)
        measured.check_coefficients(path, table.meta)
        return table

    def trajectories(self, cell: Cell) -> list[list[list[float]]]:
        """The states of a few samples, [n][nfe + 1][2], in the plane of the teacher's trajectory."""
        return measured.trajectories(self.places.evaluation(cell, "trajectories.json"))

    def images(self, cell: Cell) -> np.ndarray:
        """The first samples, uint8 [n, C, H, W], as many as a sheet shows."""
        path = self.places.evaluation(cell, "samples.png")
        return thumbnails.read(path, self.cells[cell]["thumbnails"])[: self.params.report.sheet_columns]

    def best_classical(self, nfe: int) -> Cell:
        """The classical solver of lowest FID at `nfe` evaluations."""
        return min((Cell(solver, nfe) for solver in self.params.classical), key=lambda cell: self.cells[cell]["fid"])
