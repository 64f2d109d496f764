"""The sampling loop, one for all tableaux."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.noise import precision
from s4spipe.runtime.checks import check_like
from s4spipe.runtime.errors import UserError, shown
from s4spipe.sampling.tableau import Tableau


@dataclass(frozen=True)
class Recording:
    """A batch of samples with all states and predictions on the way.

    Attributes:
        x_0: the samples [B, ...], as `sample` returns them.
        states: y_0 .. y_N, each [B, ...]; y_N is x_0 before it is rounded to the dtype of x_T.
        predictions: d_0 .. d_{N-1}, each [B, ...].
    """

    x_0: Tensor
    states: list[Tensor]
    predictions: list[Tensor]


@overload
def sample(
    denoiser: Callable,
    tableau: Tableau,
    x_T: Tensor,
    condition: Any = None,
    record: Literal[False] = False,
    *,
    z: Sequence[Tensor] | Tensor = (),
    check: bool = True,
) -> Tensor: ...


@overload
def sample(
    denoiser: Callable,
    tableau: Tableau,
    x_T: Tensor,
    condition: Any = None,
    *,
    record: Literal[True],
    z: Sequence[Tensor] | Tensor = (),
    check: bool = True,
) -> Recording: ...


def sample(
    denoiser: Callable[[Tensor, Tensor, Any], Tensor],
    tableau: Tableau,
    x_T: Tensor,
    condition: Any = None,
    record: bool = False,
    *,
    z: Sequence[Tensor] | Tensor = (),
    check: bool = True,
) -> Tensor | Recording:
    """Run a solver on a batch of noises: `tableau.nfe` evaluations in `tableau.depth` calls of the denoiser.

    Evaluations that do not depend on one another are joined in one call on a larger batch. States are float64 (float32
    on a device without float64); the denoiser converts its input to its network's precision. Gradients flow to whatever
    requires them in `tableau` and `x_T`.

    Args:
        denoiser: (x [B, ...], t, condition) -> x0 prediction [B, ...]; t is a scalar, or [B] if a call joins several
            evaluations.
        tableau: the solver.
        x_T: the noises [B, ...], of standard deviation sigma_T (not 1).
        condition: passed to the denoiser; a tensor has one row per sample.
        record: also return every state and prediction.
        z: the fresh noises of a solver that adds some, [Z, B, ...] or Z of [B, ...], of standard deviation 1
            (`s4spipe.sampling.batches.fresh` draws them for the samples of a run).
        check: stop at the first number that is not finite. A learner does not: it tries solvers that may diverge.

    Returns:
        The samples [B, ...], in the dtype of `x_T`; with `record`, a Recording.

    Raises:
        UserError: for a denoiser that cannot be called or returns anything but x0 predictions, for what is no tableau
            or no batch of noises, for noises or conditions that a model does not have, for fresh noises that the solver
            does not add or that are missing, and (with `check`) for noises, predictions and samples that are not
            finite.
    """
    if not isinstance(tableau, Tableau):
        raise UserError(f"sample needs a Tableau, such as Tableau.load gives, got {shown(tableau)}")
    check_batch(denoiser, x_T)
    if check:
        check_noises(x_T)
    if isinstance(denoiser, Denoiser):
        condition = denoiser.checked(x_T, condition)
    _warn_of_another_model(denoiser, tableau)
    start = x_T.to(precision(x_T.device))
    basis = tableau.basis
    basis.check(start)
    t_c = tableau.t_c.to(start, copy=True)  # a denoiser may write into what it is given
    states: list[Tensor] = []
    d: list[Tensor] = []
    x_T_there, m = basis.to(start), tableau.constant(start)  # where the weights multiply them
    z_there = [basis.to(fresh.to(start)) for fresh in _checked_fresh(z, tableau, x_T)]
    d_there: list[Tensor] = []
    for stage in tableau.stages:
        new, rows = [basis.back(tableau.state(i, x_T_there, d_there, m, z_there)) for i in stage], len(stage)
        states += [y.clone() for y in new] if record else []
        if rows == 1:
            y, t, given = new[0], t_c[stage.start], condition
        else:
            y, t = torch.cat(new), t_c[stage.start : stage.stop].repeat_interleave(len(start))
            given = condition.repeat(rows, *[1] * (condition.ndim - 1)) if torch.is_tensor(condition) else condition
        out = denoiser(y, t, given)
        check_like("the denoiser", out, y)
        new = list(out.clone().chunk(rows))  # a copy: a captured CUDA graph returns the same memory at every call
        for i, prediction in zip(stage, new, strict=True) if check else ():
            check_finite(prediction, i, tableau)
        d += new if record else []
        d_there += map(basis.to, new)
    end = basis.back(tableau.state(tableau.nfe, x_T_there, d_there, m, z_there))
    x_0 = end.to(x_T.dtype)
    if check:
        _check_samples(x_0, tableau)
    return Recording(x_0, [*states, end], d) if record else x_0


def check_batch(denoiser: object, x_T: object) -> None:
    """Raises UserError for a denoiser that cannot be called, and for what is no batch of noises."""
    if not callable(denoiser):
        raise UserError(f"sample needs a denoiser that can be called, such as models.load gives, got {shown(denoiser)}")
    if not (isinstance(x_T, Tensor) and x_T.is_floating_point() and x_T.ndim and x_T.layout == torch.strided):
        raise UserError(f"sample needs noises as a dense tensor [B, ...] of floating-point numbers, got {shown(x_T)}")


def _checked_fresh(z: Sequence[Tensor] | Tensor, tableau: Tableau, x_T: Tensor) -> list[Tensor]:
    given: list[Any] = list(z) if isinstance(z, Tensor | list | tuple) else [z]
    if len(given) != tableau.draws:
        raise UserError(f"solver {tableau.name} adds {tableau.draws or 'no'} fresh noises on the way: z must hold as "
                        f"many, got {len(given)}")  # fmt: skip
    for fresh in given:
        if not isinstance(fresh, Tensor) or fresh.shape != x_T.shape or fresh.device != x_T.device:
            raise UserError(f"the fresh noises z must be tensors of the shape of x_T, {list(x_T.shape)}, and on its "
                            f"device, got {shown(fresh)}")  # fmt: skip
    return given


def not_finite(x: Tensor) -> str:
    """How many of the samples [B, ...] hold NaN or infinity, in words; nothing if none does."""
    if x.is_meta:
        return ""  # holds no numbers
    bad = ~x.detach()[:, None].isfinite().flatten(1).all(1)  # [:, None]: each may be a single number
    return f"{int(bad.sum())} of {len(bad)} samples" if bad.any() else ""


def check_noises(x_T: Tensor) -> None:
    """Raises UserError for noises [B, ...] that are not finite."""
    if count := not_finite(x_T):
        raise UserError(f"the noises x_T are not finite (NaN or infinite) for {count}: draw them anew")


def _check_samples(x_0: Tensor, tableau: Tableau) -> None:
    if count := not_finite(x_0):
        raise UserError(
            f"the network's outputs are finite, but {count} are not finite in {x_0.dtype}, the dtype of the noises x_T "
            f"({tableau.name}): give the noises in float32"
        )


def check_finite(prediction: Tensor, i: int, tableau: Tableau) -> None:
    """Raises UserError if evaluation i (from 0) gave anything but finite numbers for some of the samples [B, ...]."""
    if count := not_finite(prediction):
        raise UserError(
            f"the network's output is not finite (NaN or infinite) for {count}, in evaluation {i + 1} of {tableau.nfe} "
            f"at time {float(tableau.t_c[i]):.6g} ({tableau.name}); try model.precision bfloat16 or float32, and check "
            "the weights"
        )


def _warn_of_another_model(denoiser: Callable, tableau: Tableau) -> None:
    """Warn if the solver was learned for another model than this one."""
    learned, given = tableau.meta.get("model"), getattr(denoiser, "identity", None)
    if not (isinstance(learned, dict) and "fingerprint" in learned and given):
        return  # a classical solver suits any model
    if learned["fingerprint"] != given["fingerprint"]:
        names = [f"{model.get('source')} ({model['fingerprint']})" for model in (learned, given)]
        warnings.warn(f"solver {tableau.name} was learned for {names[0]}, and runs on {names[1]}", stacklevel=3)
