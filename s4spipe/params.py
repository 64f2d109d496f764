"""params.yaml as checked data: every key known, every value of the right type and within its range."""

import re
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML, YAMLError

from s4spipe import classical, ranks, steps
from s4spipe.distance import DISTANCES
from s4spipe.errors import UserError, unknown
from s4spipe.families import FAMILIES
from s4spipe.features import FOR_DISTANCE, FOR_FID, MODES
from s4spipe.models import KINDS, PRECISIONS
from s4spipe.steps import SEARCHED

# What stands for none: DVC wants to see a file.
NO_PROMPTS = "prompts/none.txt"
NO_IMAGES = "statistics/none.txt"


def _one_of(what: str, known) -> type:
    def check(name):
        if name not in known:
            raise unknown(what, name, known)
        return name

    return Annotated[str, BeforeValidator(check)]


def _solver(name):
    classical.parse(name)
    return name


def _schedule(*also: str) -> type:
    def check(value):
        steps.check(value, also)
        return value

    return Annotated[str | list[float], BeforeValidator(check)]


Solver = Annotated[str, BeforeValidator(_solver)]
Schedule = _schedule()
ClassicalSchedule = _schedule("best")
Distance = _one_of("distance", DISTANCES)
Family = _one_of("family", FAMILIES)
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Epochs = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Block(BaseModel):
    """A mapping that knows all its keys; numbers are not read out of strings, nor truth values out of numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Run(Block):
    device: str
    batch_size: Count
    fit_batch_size: Count = 200
    compile: bool = False
    launcher: str | None = None


class Model(Block):
    kind: _one_of("kind of model", KINDS) = "digits"
    weights: str
    condition: Literal["labels", "prompts", "none"]
    guidance: NonNegative
    precision: _one_of("precision", PRECISIONS) = "float32"
    solvers: str = "solvers"
    source: str | None = None
    revision: str | None = None
    size: Count | None = None
    shape: list[Count] | None = None
    scheduler: dict = {}


class Perceptual(Block):
    network: _one_of("perceptual network", FOR_DISTANCE)
    weights: str


class TrainDigits(Block):
    steps: Count
    batch_size: Count
    learning_rate: Positive
    ema: Fraction
    label_dropout: Fraction
    seed: Seed


class TrainFeatures(Block):
    epochs: Count
    learning_rate: Positive
    seed: Seed


class Fit(Block):
    """How the solver `free` is fitted to the pairs."""

    init: Solver
    starts: Annotated[list[Schedule], Field(min_length=1)]
    distance: Literal["l2", "pseudo_huber"]
    pairs: Count
    validation_pairs: Count
    batch_size: Count
    steps: Epochs
    seed: Seed


class Refine(Block):
    """How it is refined by the Fréchet distance."""

    pairs: Annotated[int, Field(ge=2)]
    validation_pairs: Annotated[int, Field(ge=2)]
    steps: Epochs
    seed: Seed


class Gits(Block):
    solver: Solver
    grid: Annotated[int, Field(ge=2)]
    coefficient: Positive
    noises: Count
    seed: Seed


class Dmn(Block):
    start: Schedule
    order: Annotated[int, Field(ge=1, le=4)]
    up_to: Count


class Teacher(Block):
    solver: Solver
    steps: Schedule
    nfe: Count
    train: Count
    validation: Count
    seed: Seed


class Learn(Block):
    """What S4S and S4S-Alt share."""

    init: Solver
    steps: Schedule
    order: Count
    distance: Distance
    radius: NonNegative
    pairs: Count
    validation_pairs: Count
    batch_size: Count
    learning_rate: Positive
    seed: Seed


class S4S(Learn):
    epochs: Epochs


class S4SAlt(Learn):
    warmup_epochs: Epochs
    alternations: Epochs
    epochs: Epochs
    decoupling: Annotated[float, Field(ge=0, le=0.5)]
    joint: bool


class Arm(S4SAlt):
    """S4S-Alt of any family, or of times or coefficients alone."""

    family: Family = "lms"
    learns: Literal["both", "times", "coefficients"] = "both"
    consistent: bool = False
    shared: bool = False
    gaussian: bool = False
    optimizer: Literal["adam", "gauss_newton"] = "adam"


class Sample(Block):
    count: Count
    seed: Seed


class Reference(Block):
    source: Literal["model", "real"] = "model"
    solver: Solver
    steps: Schedule
    nfe: Count
    count: Count
    seed: Seed


class Fid(Block):
    count: Count | Literal["all"]
    network: _one_of("features network", FOR_FID) = "digits"
    mode: _one_of("mode of FID", MODES) = "clean"
    features: str
    real: str
    reference: str
    clip: str | None = None


class Report(Block):
    sheet_columns: Annotated[int, Field(ge=1, le=20)]


class Params(Block):
    nfe: Annotated[list[Count], Field(min_length=1)]
    classical: Annotated[list[Solver], Field(min_length=1)]
    run: Run
    model: Model
    fetch: list[str]
    prompts: str
    perceptual: Perceptual
    train_digits: TrainDigits
    train_features: TrainFeatures
    train_perceptual: TrainFeatures
    searched: list[_one_of("searched schedule", SEARCHED)]
    gits: Gits
    dmn: Dmn
    teacher: Teacher
    classical_steps: dict[Solver, ClassicalSchedule]
    s4s: S4S
    s4s_alt: S4SAlt
    fit: Fit
    refine: Refine
    learned: list[str]
    arms: dict[str, dict]
    sample: Sample
    reference: Reference
    fid: Fid
    report: Report

    @property
    def learned_solvers(self) -> list[str]:
        """The names of all learned solvers of this run."""
        return ["s4s", "s4s_alt", "free", *self.learned]

    def solver_path(self, solver: str, nfe: int | str) -> str:
        """Where the tableau of a solver lies, in git; that of a learned one with what was measured of it."""
        return f"{self.model.solvers}/{solver}/{nfe}.json"

    def fit_path(self, solver: str, nfe: int | str) -> str:
        """Where a learned solver lies before anything is measured of it, and what it started from."""
        return f"fits/{solver}/{nfe}.json"

    def table_path(self, solver: str, nfe: int) -> str:
        """The tableau to sample with."""
        return (self.fit_path if solver in self.learned_solvers else self.solver_path)(solver, nfe)

    def arm(self, name: str) -> Arm:
        """The settings of `arms.<name>`: those of s4s_alt, but for what the block says otherwise."""
        return Arm.model_validate(self.s4s_alt.model_dump() | self.arms.get(name, {}))

    def start(self, role: str) -> tuple[str, str, steps.Schedule]:
        """The classical solver behind the teacher, the reference, a learned solver or itself: the key of its schedule
        in params.yaml, its name and its schedule."""
        if role in self.classical_steps:
            return f"classical_steps.{role}", role, self.classical_steps[role]
        if role in ("teacher", "reference"):
            block = getattr(self, role)
            return f"{role}.steps", block.solver, block.steps
        block = self.s4s if role == "s4s" else self.arm(role)
        return f"{'arms.' if role in self.arms else ''}{role}.steps", block.init, block.steps

    def check(self) -> None:
        """The rules that join two keys."""
        self._check_model()
        for name in self.learned:
            if name not in self.arms:
                raise UserError(f"learned: {unknown('arm', name, self.arms)}")
        for name in self.arms:
            taken = {"teacher", "reference", "s4s", "s4s_alt", "free", *self.classical, *self.classical_steps}
            if name in taken or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise UserError(
                    f"arms.{name}: give it another name, of small letters, digits and _, that no other solver has"
                )
            try:
                arm = self.arm(name)
            except ValidationError as error:
                raise UserError(f"arms.{name}.{_sentence(error.errors()[0], Arm)}") from None
            if arm.consistent and arm.family in ("fixed", "gs", "bns", "free"):
                raise UserError(f"arms.{name}.consistent: not for the family {arm.family}; lms, pc, dss, ss and epd "
                                "have rows that can keep their sum")  # fmt: skip
            if (arm.shared or arm.gaussian) and arm.family not in ("lms", "pc"):
                switch = "shared" if arm.shared else "gaussian"
                raise UserError(f"arms.{name}.{switch}: for the families lms and pc alone, not {arm.family}")
            if arm.optimizer == "gauss_newton" and (arm.distance == "perceptual" or arm.radius > 0):
                raise UserError(f"arms.{name}.optimizer: gauss_newton is for the distances l2 and pseudo_huber and "
                                f"the radius 0, got "
                                f"{arm.distance} and {arm.radius:g}")  # fmt: skip
        for name in self.classical:
            if name not in self.classical_steps:
                raise UserError(
                    f"classical_steps.{name}: missing; give one of the schedules {', '.join(sorted(steps.STEPS))}"
                )
        for role in ("teacher", "reference", *self.classical, "s4s", "s4s_alt", *self.learned):
            key, _, schedule = self.start(role)
            if isinstance(schedule, str) and schedule in SEARCHED and schedule not in self.searched:
                raise UserError(f"{key}: {schedule} is searched for first: name it in `searched` too")
        for key in ("nfe", "classical", "learned", "searched"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise UserError(f"{key}: every entry must stand once, got {values}")
        if self.fid.count != "all" and self.fid.count > self.sample.count:
            raise UserError(f"fid.count: must be at most sample.count = {self.sample.count}, got {self.fid.count}")
        blocks = {"s4s": self.s4s, "s4s_alt": self.s4s_alt} | {f"arms.{name}": self.arm(name) for name in self.learned}
        for schedule in self.fit.starts:
            if isinstance(schedule, str) and schedule in SEARCHED and schedule not in self.searched:
                raise UserError(f"fit.starts: {schedule} is searched for first: name it in `searched` too")
        blocks |= {"fit": self.fit, "refine": self.refine}
        for block, learn in blocks.items():
            if getattr(learn, "order", 1) > min(self.nfe) and getattr(learn, "family", "lms") in ("lms", "pc"):
                raise UserError(
                    f"{block}.order: must not exceed the smallest NFE, which is {min(self.nfe)}, got {learn.order}"
                )
            if learn.pairs > self.teacher.train:
                raise UserError(
                    f"{block}.pairs: must be at most teacher.train = {self.teacher.train}, got {learn.pairs}"
                )
            if learn.validation_pairs > self.teacher.validation:
                raise UserError(
                    f"{block}.validation_pairs: must be at most teacher.validation = {self.teacher.validation}, "
                    f"got {learn.validation_pairs}"
                )

    def _check_model(self) -> None:
        model = self.model
        if (model.condition == "prompts") != (self.prompts != NO_PROMPTS):
            raise UserError(f"prompts: must name a file of prompts if model.condition is prompts, and {NO_PROMPTS} "
                            f"otherwise, got {self.prompts}")  # fmt: skip
        if model.condition == "prompts" and model.kind != "diffusers":
            raise UserError(
                f"model.condition: prompts are for text-to-image models of kind diffusers, not {model.kind}"
            )
        if self.reference.source == "real" and self.fid.real == NO_IMAGES:
            raise UserError("reference.source: real needs real images, named in fid.real")
        if self.fid.clip and self.prompts == NO_PROMPTS:
            raise UserError("fid.clip: a CLIP score needs prompts; set it to null")
        if model.kind != "digits":
            for solver in self.classical:
                if self.classical_steps.get(solver) == "best":
                    raise UserError(f"classical_steps.{solver}: which schedule is best is known of the embedded model "
                                    "alone; name one")  # fmt: skip


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a parameter file. Raises UserError, naming the file and the key, for the first mistake in it."""
    try:
        data = YAML(typ="safe").load(Path(path))  # the parser that DVC uses
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root") from None
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a mapping of blocks")
    try:
        params = Params.model_validate(data)
        params.check()
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error.errors()[0])}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return params


def _sentence(error: dict, block: type[BaseModel] = Params) -> str:
    """One of pydantic's errors about `block` in the words of a parameter file."""
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        for part in error["loc"][:-1]:
            block = block.model_fields[part].annotation
        return f"{where}: {unknown('key', error['loc'][-1], block.model_fields)}"
    if error["type"] == "missing":
        return f"{where}: missing"
    if "error" in error.get("ctx", {}):  # raised by one of the validators above
        return f"{where}: {error['ctx']['error']}"
    message = (
        error["msg"]
        .replace("Input should be", "must be")
        .replace("a valid integer", "an integer")
        .replace("valid ", "")
    )
    return f"{where}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def device(name: str) -> torch.device:
    """The device named `name`; `auto` is CUDA where there is one, else the CPU. Raises UserError for an absent one.

    Of several processes on a machine each has its own: `auto` and `cuda` are the GPU of its rank.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.world() > 1 and torch.cuda.is_available():
        name = f"cuda:{ranks.local_rank() % torch.cuda.device_count()}"
    try:
        chosen = torch.device(name)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"run.device: {name!r} is not available on this machine (CUDA devices seen: {torch.cuda.device_count()}); "
            "use auto or cpu in params.yaml"
        ) from None
    return chosen
