"""An adaptive solver, which chooses its steps for each sample: what stands in a tableau's file in its place."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from s4spipe.models import noise
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.checks import is_number, whole
from s4spipe.runtime.errors import UserError, shown
from s4spipe.runtime.files import read_json, write_text
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.form import RK45

FINEST, COARSEST = 1e-12, 0.1  # tolerances; below the first, float64 rounds


@dataclass(frozen=True)
class Adaptive:
    """The adaptive Runge-Kutta solver `rk45` (`s4spipe.sampling.rk45.solve` runs it). It is no tableau: its steps, and
    so the weights of its evaluations, depend on the sample.

    Attributes:
        noise: the noise schedule of the model.
        tolerance: the error that a step may make, relative to a state of standard deviation 1, from 1e-12 to 0.1.
        nfe: the most evaluations that a sample may take.

    Raises:
        UserError: if an attribute breaks one of these rules.
    """

    noise: NoiseSchedule
    tolerance: float
    nfe: int

    name: ClassVar[str] = RK45
    meta: ClassVar[dict[str, Any]] = {"solver": RK45, "schedule": "adaptive"}

    def __post_init__(self) -> None:
        if not isinstance(self.noise, NoiseSchedule):
            raise UserError(f"rk45 needs a noise schedule, got {shown(self.noise)}")
        check_tolerance("the tolerance of rk45", self.tolerance)
        whole("nfe of rk45", self.nfe)

    def agrees(self, other: object) -> bool:
        """Whether the other is the same solver, as for a tableau."""
        return self == other

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        entries = {RK45: {"tolerance": self.tolerance, "nfe": self.nfe}, "noise": noise.describe(self.noise)}
        write_text(path, json.dumps(entries, indent=2) + "\n")


def check_tolerance(what: str, value: object) -> None:
    """Raises UserError, which names `what`, unless a value is a tolerance that rk45 can meet."""
    if not (is_number(value) and math.isfinite(value) and FINEST <= value <= COARSEST):  # type: ignore[arg-type,operator]
        raise UserError(f"{what} must be a number from {FINEST:g} to {COARSEST:g}, got {shown(value)}")


def load(path: str | Path) -> Tableau | Adaptive:
    """The solver in a file of the pipeline's: a tableau, or an adaptive solver. Raises UserError for any other file."""
    data = read_json(path)
    if not (isinstance(data, dict) and RK45 in data):
        return Tableau.load(path)
    try:
        own = data[RK45]
        if set(data) != {RK45, "noise"} or not isinstance(own, dict) or set(own) != {"tolerance", "nfe"}:
            raise UserError("an adaptive solver has the entries rk45 (tolerance, nfe) and noise; make it again with "
                            "`dvc repro`")  # fmt: skip
        return Adaptive(noise.from_description(data["noise"]), **own)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
