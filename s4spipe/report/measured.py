"""Reading what a run has measured: files that lie in git, and so may be merged, edited or old."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from s4spipe.runtime.errors import UserError, shown
from s4spipe.runtime.files import read_json

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]


class Metrics(BaseModel):
    model_config = ConfigDict(extra="allow")

    fid: Number
    teacher_distance: Number
    nfe: Count
    depth: Count
    network_calls: Count
    samples: Count
    thumbnails: Count
    schedule: str | list[Number]
    fid_real: Number | None = None
    kid: Number | None = None
    precision: Number | None = None
    recall: Number | None = None
    clip_score: Number | None = None


class Epoch(BaseModel):
    epoch: Annotated[int, Field(strict=True, ge=0, le=10**9)]
    train: Number | None
    validation: Number | None  # null: it was not finite


Row = Annotated[list[Number], Field(min_length=1)]
Point = Annotated[list[Number], Field(min_length=2, max_length=2)]
OF_METRICS = TypeAdapter(Metrics)
OF_HISTORY = TypeAdapter(Annotated[list[Epoch], Field(min_length=1)])
OF_TRAJECTORIES = TypeAdapter(Annotated[list[Annotated[list[Point], Field(min_length=1)]], Field(min_length=1)])
OF_COEFFICIENTS = TypeAdapter(Annotated[list[Row], Field(min_length=1)])


def metrics(path: Path) -> dict[str, Any]:
    """What was measured of a cell. This and the next two raise UserError for any other file."""
    return _read(path, OF_METRICS)


def history(path: Path) -> list[dict[str, Any]]:
    """The losses of a learned solver, a row for each epoch."""
    rows = _read(path, OF_HISTORY)
    if all(row["validation"] is None for row in rows):
        raise UserError(f"{path}: no validation loss is a number; make it again with `dvc repro`")
    return rows


def trajectories(path: Path) -> list[list[list[float]]]:
    """The states of a few samples, [n][nfe + 1][2]."""
    return _read(path, OF_TRAJECTORIES)


def check_coefficients(path: Path, meta: dict[str, Any]) -> None:
    """Raises UserError unless a solver's `meta`, read from `path`, has both of b and b_start as matrices [N, k] of the
    same shape, or neither."""
    if "b" not in meta:
        return
    for key in ("b", "b_start"):
        try:
            OF_COEFFICIENTS.validate_python(meta.get(key))
        except ValidationError as error:
            raise _told(path, error, f"meta.{key}") from None
    if {len(row) for row in meta["b"]} != {len(meta["b"][0])} or [*map(len, meta["b"])] != [*map(len, meta["b_start"])]:
        raise UserError(
            f"{path}: meta.b and meta.b_start must be matrices of the same shape; learn it with `dvc repro`"
        )


def _read(path: Path, kind: TypeAdapter) -> Any:
    value = read_json(path)
    try:
        kind.validate_python(value)
    except ValidationError as error:
        raise _told(path, error) from None
    return value  # as it stands in the file


def _told(path: Path, invalid: ValidationError, key: str = "") -> UserError:
    """The first of pydantic's errors, as a sentence."""
    error = invalid.errors()[0]
    where = ".".join([*([key] if key else []), *(shown(part).strip("'") for part in error["loc"])])
    wrong = error["msg"][0].lower() + error["msg"][1:]
    return UserError(
        f"{path}: {where or 'content'}: {wrong}, got {shown(error['input'])}; make it again with `dvc repro`"
    )
