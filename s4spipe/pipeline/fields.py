"""The types of the values in params.yaml, each with its checks."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from s4spipe.runtime import distributed
from s4spipe.runtime.checks import MOST_NFE, check_plain
from s4spipe.runtime.errors import UserError, shown, unknown
from s4spipe.sampling.tableau.adaptive import COARSEST, FINEST
from s4spipe.solvers import registry, timesteps


def one_of(what: str, known: Any) -> BeforeValidator:
    def check(name: Any) -> Any:
        if isinstance(name, str) and name not in known:
            raise unknown(what, name, known)
        return name

    return BeforeValidator(check)


def _classical(name: Any) -> Any:
    if isinstance(name, str):
        registry.parse(name)
    return name


def _solver(name: Any) -> Any:
    if isinstance(name, str) and registry.needs_statistics(name):
        raise UserError(f"{name} needs statistics of the model, which only the solvers in `classical` have; use "
                        "another one here")  # fmt: skip
    return name


def _schedule(value: Any) -> Any:
    if not isinstance(value, str):  # which names there are is checked with the files, in `params.load`
        timesteps.check(value)
    return value


def _name(value: str) -> str:
    if not re.fullmatch("[a-z0-9_]{1,60}", value):
        raise UserError(f"must be lower-case letters, digits and _, 60 at most, got {shown(value)}")
    return value


def _origin(value: str) -> str:
    if not value.strip() or not value.isprintable() or len(value) > 1000:
        raise UserError(f"must be a path or a name, of printable characters, got {shown(value)}")
    if value.startswith("~"):
        raise UserError(f"~ is not replaced here; write the whole path, got {shown(value)}")
    return value


def _file(value: str) -> str:
    if "://" in value:
        raise UserError(f"must be a local path, got {shown(value)}; download it and name the file, or list it in fetch")
    return _origin(value)


def _argument(value: str) -> str:
    if not re.fullmatch(r"[\w./+@:=,%-]{1,1000}", value) or value.startswith("-"):  # DVC runs a shell with it
        raise UserError(f"must be a path of letters, digits and ./+@:=,%_- without spaces, got {shown(value)}")
    return value


def _launcher(value: str) -> str:
    distributed.words(value)
    return value


def _plain(value: Any) -> Any:
    check_plain("must be plain data", value)
    return value


Launcher = Annotated[str, AfterValidator(_launcher)]
Argument = Annotated[str, AfterValidator(_argument)]
Classical = Annotated[str, BeforeValidator(_classical)]
Solver = Annotated[str, BeforeValidator(_solver)]  # one that is built without the model
AnySolver = Solver | Literal["rk45"]
Tolerance = Annotated[float, Field(ge=FINEST, le=COARSEST)]
Schedule = Annotated[str | list[float], BeforeValidator(_schedule)]
Name = Annotated[str, AfterValidator(_name)]
Origin = Annotated[str, AfterValidator(_origin)]
File = Annotated[str, AfterValidator(_file)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Nfe = Annotated[int, Field(ge=1, le=MOST_NFE)]
Pairs = Annotated[int, Field(ge=2, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Epochs = Annotated[int, Field(ge=0, le=10**9)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bands = Annotated[int, Field(ge=1, le=64)] | Literal["auto"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Plain = Annotated[dict[str, Any], BeforeValidator(_plain)]


def key(default: Any, description: str = "", **limits: Any) -> Any:
    """A key with its default and its description, which params.yaml shows as a comment."""
    return Field(default, description=description, **limits)


class Block(BaseModel):
    """A mapping with fixed keys and strict types: a string is no number, and a number is no truth value."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
