"""Where everything in a project lies. No other module of s4spipe/ names a folder of it."""

from dataclasses import dataclass
from pathlib import Path

PARAMS = "params.yaml"
NONE = "inputs/none.txt"  # stands for "no file", because DVC needs one
INPUT_SCHEDULES = "inputs/schedules"
DIGITS_WEIGHTS = "models/digits.safetensors"
DIGITS_IMAGES = "data/digits.npy"
FEATURES_WEIGHTS = {"features": "models/features.safetensors", "perceptual": "models/perceptual.safetensors"}
DOWNLOADS = ".s4spipe/downloads"


@dataclass(frozen=True, order=True)
class Cell:
    """A solver and its NFE, the unit of learning, sampling and evaluation. As text it is `<solver>-<nfe>`."""

    solver: str
    nfe: int

    def __str__(self) -> str:
        return f"{self.solver}-{self.nfe}"


@dataclass(frozen=True)
class Layout:
    """The paths of all outputs of a run: runs/<model> in the project's folder `root`."""

    model: str
    root: Path = Path()

    @property
    def run(self) -> Path:
        return self.root / "runs" / self.model

    @property
    def prompts(self) -> Path:
        """The embedded prompts."""
        return self.run / "prompts.safetensors"

    @property
    def real(self) -> Path:
        """Statistics of the real images."""
        return self.run / "real.safetensors"

    @property
    def reference(self) -> Path:
        """Statistics of the model's own distribution."""
        return self.run / "reference.safetensors"

    @property
    def schedules(self) -> Path:
        """Schedules by name: the user's in inputs.json, and those that were searched for."""
        return self.run / "schedules"

    @property
    def statistics(self) -> Path:
        """Statistics of the model, for the solvers that need some; beside the schedules, of which tables are made
        too."""
        return self.schedules / "statistics.safetensors"

    def pairs(self, stream: str) -> Path:
        return self.run / "pairs" / f"{stream}.safetensors"

    def table(self, cell: Cell) -> Path:
        """The tableau of a classical solver, the teacher or the reference."""
        return self.run / "tables" / f"{cell}.json"

    def starts(self, cell: Cell) -> Path:
        """A list of the tableaux that a learner may start from."""
        return self.run / "starts" / f"{cell}.json"

    def learned(self, folder: str, cell: Cell) -> tuple[Path, Path]:
        """The tableau and the history of a learned solver, in `fits` (to be refined) or `solvers`."""
        return self.run / folder / str(cell) / "solver.json", self.run / folder / str(cell) / "history.json"

    def span(self, name: str) -> tuple[Path, Path]:
        """The tableaux of all NFEs, to be refined, and the history of a spanning solver."""
        return self.run / "fits" / name / "solvers.json", self.run / "fits" / name / "history.json"

    def joined(self, name: str) -> Path:
        """The one file of a spanning solver, with its refined tableaux of all NFEs."""
        return self.run / "spans" / f"{name}.json"

    def samples(self, cell: Cell, file: str) -> Path:
        """images.npy, states.safetensors or about.json of a cell's samples."""
        return self.run / "samples" / str(cell) / file

    def evaluation(self, cell: Cell, file: str) -> Path:
        """metrics.json, trajectories.json or samples.png of a cell's evaluation."""
        return self.run / "evaluations" / str(cell) / file

    def timing(self, cell: Cell) -> Path:
        """Wall-clock times. They differ from run to run, so they are neither in git nor an output of a stage."""
        return self.run / "timings" / f"{cell}.json"

    @property
    def measured(self) -> list[Path]:
        """The folders that the report reads. All their files are small and in git."""
        return [self.run / name for name in ("evaluations", "solvers", "tables")]

    @property
    def report(self) -> Path:
        return self.run / "report"


def cell_of(solver: str | Path) -> tuple[Layout, Cell] | None:
    """The run and the cell that a solver's file belongs to; None if the file is not in a run."""
    path = Path(solver).resolve()
    folder = path.parent if path.name == "solver.json" else path.with_suffix("")
    name, _, nfe = folder.name.rpartition("-")
    if not nfe.isdigit() or len(folder.parents) < 4:
        return None
    run = folder.parent.parent
    places, cell = Layout(run.name, run.parent.parent), Cell(name, int(nfe))
    return (places, cell) if path in (places.table(cell), places.learned("solvers", cell)[0]) else None


def input_schedules(root: Path = Path()) -> dict[str, Path]:
    """The user's schedule files, by name. Hidden files are left out: systems and archives put them there (._x.json)."""
    paths = sorted((root / INPUT_SCHEDULES).glob("*.json"))
    return {path.stem: path for path in paths if not path.name.startswith(".")}
