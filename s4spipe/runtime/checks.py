"""Checks of what users and files hand over: numbers, and data that a JSON file can hold."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s4spipe.runtime.errors import UserError, shown

LARGEST = sys.float_info.max  # whole numbers of Python, JSON and YAML may be larger
MOST_NFE = 5000  # evaluations of a solver; a tableau has as many weights squared
DEEPEST = 64  # lists and mappings inside one another; what writes or shows them calls itself for each


def is_number(value: object) -> bool:
    """Whether a value is a plain number that a float can hold; NaN and the infinities are."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    )


def whole(what: str, value: Any, least: int = 1, most: int = 10**9) -> int:
    """A whole number from `least` to `most`; one of numpy or of torch (of no dimension) is taken too.

    Raises UserError for anything else; `what` names the number.
    """
    if (torch.is_tensor(value) and value.ndim == 0) or isinstance(value, np.integer):
        value = value.item()
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{what} must be a whole number, got {shown(value)}")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise UserError(f"{what} must be {bound}, got {shown(value)}")
    return value


def check_like(what: str, value: object, x: Tensor) -> None:
    """Raises UserError unless a value is a dense tensor of floating-point numbers, of the shape and on the device of x.

    `what` names what returned it.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        got = f"{value.dtype}, {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{what} must return a dense tensor of floating-point numbers, got {got}")
    if value.shape != x.shape:
        raise UserError(f"{what} must return the shape of its input, {list(x.shape)}, got {list(value.shape)}")
    if value.device != x.device:
        raise UserError(f"{what} must return a tensor on the device of its input, {x.device}, got {value.device}")


def check_shapes(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Raises RuntimeError for a network of other shapes than its tensors, before memory is taken for it: a few numbers
    in a small file can ask for any amount."""
    with torch.device("meta"):
        wanted = build().state_dict()
    for name, value in wanted.items():
        if name in tensors and tensors[name].shape != value.shape:
            raise RuntimeError(f"{name} is {list(tensors[name].shape)}, not {list(value.shape)}")
    if missing := sorted(set(wanted) - set(tensors)):
        raise RuntimeError(f"{missing[0]} is missing")


def device(what: str, name: Any, right: str = "cpu") -> torch.device:
    """The device of a name.

    Raises UserError if there is no such device on this machine; `what` names the setting, `right` a device that is.
    """
    try:
        chosen = torch.device(name)
        torch.zeros(1, device=chosen)
    except Exception:  # each kind of device that is not there raises its own
        raise UserError(f"{what}: {shown(name)} is not available on this machine (CUDA devices seen: "
                        f"{torch.cuda.device_count()}); use {right}") from None  # fmt: skip
    return chosen


def check_plain(what: str, value: object) -> None:
    """Raises UserError for what a JSON file cannot hold, and for lists and mappings too deep inside one another.

    `what` names the value.
    """
    waiting = [(value, 0)]
    seen: dict[int, int] = {}  # how deep: an alias of YAML may stand for itself, or a few lines for millions of entries
    while waiting:
        inner, depth = waiting.pop()
        if isinstance(inner, dict | list | tuple):
            if seen.get(id(inner), -1) >= depth:
                continue
            seen[id(inner)] = depth
        if depth > DEEPEST:
            raise UserError(f"{what}: lists and mappings are more than {DEEPEST} deep inside one another")
        if isinstance(inner, dict):
            for key in inner:
                if not isinstance(key, str):
                    raise UserError(f"{what}: keys must be strings, got {shown(key)}")
            waiting += [(entry, depth + 1) for entry in inner.values()]
        elif isinstance(inner, list | tuple):
            waiting += [(entry, depth + 1) for entry in inner]
        elif not (inner is None or isinstance(inner, str | bool) or is_number(inner)):
            fault = "a number that is too large" if isinstance(inner, int) else "what JSON cannot hold"
            raise UserError(f"{what}: holds {fault}: {shown(inner)}")
