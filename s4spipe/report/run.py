"""A finished run, read from what lies in git: its parameters, its cells' evaluations, its solvers."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from s4spipe import params, strip
from s4spipe.files import read_json
from s4spipe.params import Params
from s4spipe.report.tables import Metrics
from s4spipe.tableau import Tableau

SHOWN = ("images", "trajectories", "history")  # of an evaluation: to look at, not to count


@dataclass
class Run:
    """The cells that params.yaml in the folder `root` names, and no others, whatever else lies there."""

    root: Path
    params: Params

    @classmethod
    def at(cls, root: str | Path) -> "Run":
        return cls(Path(root), params.load(Path(root) / "params.yaml"))

    @property
    def learned(self) -> list[str]:
        return self.params.learned_solvers

    @property
    def teacher(self) -> tuple[str, int]:
        return "teacher", self.params.teacher.nfe

    def arms(self, nfe: int) -> list[tuple[str, int]]:
        """The cells to look at side by side: the teacher and all solvers of `nfe` evaluations."""
        return [self.teacher, *((solver, nfe) for solver in (*self.params.classical, *self.learned))]

    @cached_property
    def cells(self) -> dict[tuple[str, int], dict]:
        """All that was written down of each cell. Raises UserError if one is missing."""
        solvers = (*self.params.classical, *self.learned)
        names = [self.teacher, *((solver, nfe) for solver in solvers for nfe in self.params.nfe)]
        return {(solver, n): read_json(self.root / f"evaluations/{solver}-{n}.json") for solver, n in names}

    @cached_property
    def metrics(self) -> Metrics:
        """The numbers of all cells, by solver and then by NFE."""
        metrics = {}
        for (solver, n), cell in self.cells.items():
            numbers = {key: value for key, value in cell.items() if key not in SHOWN}
            metrics.setdefault(solver, {})[f"nfe{n}"] = numbers
        return metrics

    def table(self, solver: str, nfe: int) -> Tableau:
        return Tableau.load(self.root / self.params.solver_path(solver, nfe))

    def images(self, solver: str, nfe: int) -> np.ndarray:
        """uint8 [n, C, H, W], as many as a sheet is to show."""
        row = strip.read(self.root / f"evaluations/{solver}-{nfe}.png", self.cells[solver, nfe]["images"])
        return row[: self.params.report.sheet_columns]

    def best_classical(self, nfe: int) -> str:
        return min(self.params.classical, key=lambda solver: self.cells[solver, nfe]["fid"])
