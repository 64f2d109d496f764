"""The form of a tableau as JSON-ready data, and its numbers out of nested lists."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from s4spipe.runtime.checks import is_number
from s4spipe.runtime.errors import UserError, shown, unknown
from s4spipe.sampling.tableau.basis import PLAIN

# Schema 1 had no `steps` (they were nfe) and no c_0 (it was 1). Plain numbers are written in schema 2, without `basis`.
SCHEMA, PLAIN_SCHEMA = 3, 2
KEYS = ("schema", "name", "nfe", "steps", "noise", "basis", "t", "t_c", "c_0", "c", "W", "meta")
RK45 = "rk45"  # an adaptive solver, which stands in a file of its own form
EXTRAS = ("beta", "m", "V", "t_z")  # of schema 3, where a solver has them
MOST_SIDES = 6  # of a sample


def current(data: dict[str, Any], apart: Collection[str]) -> dict[str, Any]:
    """The data in the present schema, with all its keys but those that are in a file of their own (`apart`).

    Raises UserError for another schema, and for keys and kinds of entries that it does not have.
    """
    if RK45 in data:
        raise UserError("this is the adaptive solver rk45, which is no tableau: only the pipeline's stages run it")
    extras = [key for key in EXTRAS if data.get("schema") == SCHEMA and (key in data or key in apart)]
    if data.get("schema") == 1:
        data = {"steps": data.get("nfe"), "c_0": 1.0} | data | {"schema": PLAIN_SCHEMA}
    if data.get("schema") == PLAIN_SCHEMA:
        data = {"basis": PLAIN.describe()} | data | {"schema": SCHEMA}
    if data.get("schema") != SCHEMA:
        raise UserError(f"schema must be 1, 2 or {SCHEMA}, got {shown(data.get('schema'))}: another s4spipe wrote it")
    keys = [key for key in (*KEYS, *extras) if key not in apart]
    for key in data:
        if key not in keys:
            raise unknown("entry", key, keys)
    for key in keys:
        if key not in data:
            raise UserError(f"entry {key} is missing")
    for key, kind in {"name": str, "noise": dict, "meta": dict}.items():
        if not isinstance(data[key], kind):
            raise UserError(f"entry {key} must be of type {kind.__name__}, got {shown(data[key])}")
    return data


def check(key: str, value: Tensor, shape: tuple[int, ...], n: int) -> None:
    """Raises UserError unless an entry of a tableau with n evaluations is float64, of this shape, and finite."""
    if value.dtype != torch.float64 or tuple(value.shape) != shape:
        raise UserError(
            f"tableau entry {key} must be float64 of shape {list(shape)} to go with the {n} entries of c, "
            f"got {value.dtype} of shape {list(value.shape)}"
        )
    if not value.isfinite().all():
        raise UserError(f"tableau entry {key} must be finite, got {shown(value.detach().tolist())}")


def weights(data: dict[str, Any], k: tuple[int, ...]) -> dict[str, Tensor]:
    """c_0 [*k], c [N, *k], W [N, N, *k], beta [N+1, *k], V [N+1, Z, *k], t_z [Z+1] and m, as far as they are in the
    data."""
    found: dict[str, Tensor] = {key: row(key, data[key], k) for key in ("c", "beta") if key in data}
    if "c_0" in data:
        found["c_0"] = row("c_0", [data["c_0"]], k)[0]
    if "W" in data:
        found["W"] = _triangle(_rows("W", data["W"], k), k)
    if "V" in data:
        rows = _rows("V", data["V"], k)
        if not rows or any(len(own) != len(rows[0]) for own in rows):
            raise UserError(f"entry V must have rows of as many numbers, got {shown(data['V'])}")
        found["V"] = torch.stack(rows)
    if "t_z" in data:
        found["t_z"] = row("t_z", data["t_z"])
    if "m" in data:
        found["m"] = row("m", data["m"], _shape("m", data["m"])[1:])
    return found


def _rows(key: str, value: object, k: tuple[int, ...]) -> list[Tensor]:
    if not isinstance(value, list):
        raise UserError(f"entry {key} must be of type list, got {shown(value)}")
    return [row(f"{key}[{i}]", entry, k) for i, entry in enumerate(value)]


def _triangle(rows: list[Tensor], k: tuple[int, ...]) -> Tensor:
    W = torch.zeros(len(rows), len(rows), *k, dtype=torch.float64, device="cpu")
    for i, own in enumerate(rows):
        if len(own) != i + 1:
            raise UserError(f"entry W[{i}] must have {i + 1} numbers (lower triangular), got {len(own)}")
        W[i, : i + 1] = own
    return W


def _shape(key: str, value: object) -> tuple[int, ...]:
    """The shape of nested lists, by the first of each."""
    shape: list[int] = []
    while isinstance(value, list) and value and len(shape) <= MOST_SIDES:
        shape.append(len(value))
        value = value[0]
    if not 0 < len(shape) <= MOST_SIDES:
        raise UserError(f"entry {key} must be lists of numbers, 1 to {MOST_SIDES} deep, got {shown(value)}")
    return tuple(shape)


def row(key: str, value: object, shape: tuple[int, ...] = ()) -> Tensor:
    """A list of weights [n, *shape]."""
    if not isinstance(value, list) or not all(_is_weight(entry, shape) for entry in value):
        each = f" lists of the shape {list(shape)}" if shape else " numbers"
        raise UserError(f"entry {key} must be a list of{each}, got {shown(value)}")
    return torch.tensor(value, dtype=torch.float64, device="cpu").view(len(value), *shape)


def _is_weight(value: object, shape: tuple[int, ...]) -> bool:
    if not shape:
        return is_number(value)
    return isinstance(value, list) and len(value) == shape[0] and all(_is_weight(part, shape[1:]) for part in value)
