"""The input of every optimiser of solvers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from s4spipe.learning.families import Family
from s4spipe.learning.pairs import Pairs, batches
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch

COEFFICIENTS, TIMES = "coefficients", "times"


@dataclass(frozen=True)
class Task:
    """A solver to learn, and what it is learned from.

    Attributes:
        student: the family whose parameters are learned in place.
        denoiser: the model, (x, t, condition) -> x0 prediction.
        training, validation: the teacher's pairs.
        scratch: where progress is saved, so that an interrupted run resumes.
        seed: seed of the minibatches and probes.
        micro_batch_size: how many pairs of a minibatch are in memory, with their activations, at a time.
        description: label of the progress bar.
    """

    student: Family
    denoiser: Callable
    training: Pairs
    validation: Pairs
    scratch: Scratch
    seed: int = 0
    micro_batch_size: int = 2**31
    description: str = "learn"


def kind(parameter: str) -> str:
    """Whether the parameter of a family with this name belongs to its times or its coefficients."""
    return TIMES if parameter.startswith("times.") else COEFFICIENTS


def in_micro_batches(index: Tensor, x: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of an index [n] and of x [n, ...], `size` at a time; nothing where n is 0."""
    yield from zip(batches(index, size), batches(x, size), strict=True)


def check_history(history: Sequence[Mapping[str, Any]], description: str) -> None:
    """Raises UserError if the validation loss was never finite: nothing was learned then."""
    if not any(math.isfinite(row["validation"]) for row in history):
        raise UserError(
            f"{description}: the validation loss was never finite, so nothing was learned; the samples of the start "
            "diverge: choose another solver, schedule or NFE to start from"
        )


def plain(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A history as JSON can hold it: a loss that was not finite is null."""
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in history
    ]
