"""The start of a learned solver: candidates, and the choice among them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry

TRIAL_PAIRS = 64  # pairs that candidates are compared on


def late(start: Tableau, skip: float) -> Tableau:
    """A classical solver that starts later: the fraction `skip` of lambda's range, at the noisy end, is crossed without
    the network, by a DDIM step with an x0 prediction of 0.

    The steps of `start`, whose name is that of the classical solver, are compressed into the rest, affinely in lambda.
    """
    noise, lam = start.noise, start.noise.lambda_(start.t)
    squeezed = noise.inverse(lam[-1] + (1 - skip) * (lam - lam[-1]))
    t = torch.cat([squeezed[:-1], start.t[-1:]])
    table, kept = registry.build(start.name, noise, t, nfe=start.nfe), float(noise.sigma(t[0])) / noise.sigma_T
    return Tableau(t, table.t_c, table.c * kept, table.W, noise, start.name, start.meta | {"skip": skip},
                   table.c_0 * kept)  # fmt: skip


def with_constant(start: Tableau, m: torch.Tensor) -> Tableau:
    """The same solver with a constant m that none of its states has any of yet, for a learner to give it weights."""
    return replace(start, m=m, beta=torch.zeros(start.nfe + 1, dtype=torch.float64))


def mean(x_0: torch.Tensor, form: str, first: bool = True) -> torch.Tensor:
    """The mean of samples [B, C, ...] as a constant of a tableau, in float64.

    Args:
        x_0: the samples.
        form: image [C, ...], or channels: one number for each, [C, 1, ...], which goes with samples of any size.
        first: whether channels are the first axis of a sample; else, as with tokens [L, C], they are the last.
    """
    m = x_0.cpu().double().mean(0)  # not every device has float64
    others = range(1, m.ndim) if first else range(m.ndim - 1)
    return m if form == "image" or not others else m.mean(tuple(others), keepdim=True)


def early(candidates: Sequence[Tableau], name: str) -> list[Tableau]:
    """The candidates with c_0 = 1, up to rounding, and with a c_0 of exactly that.

    Raises UserError if the learned solver of that name has none.
    """
    one = torch.ones((), dtype=torch.float64)
    found = [replace(table, c_0=one) for table in candidates if torch.allclose(table.c_0, one, rtol=1e-9)]
    if not found:
        raise UserError(f"params.yaml: learners.{name}.late is false, but all its starts are late: put 0.0 into "
                        f"starts.{name}.skip, or make it []")  # fmt: skip
    return found


def choose(candidates: Sequence[Tableau], loss: Callable[[Tableau], float]) -> Tableau:
    """The candidate with the smallest loss; a single candidate is not evaluated. Starting from a single schedule, a fit
    may end in a poor minimum."""
    return candidates[0] if len(candidates) == 1 else min(candidates, key=loss)


def check_noise(candidates: Sequence[Tableau], noise: NoiseSchedule) -> None:
    """Raises UserError if a candidate was made for another noise schedule than `noise`."""
    for table in candidates:
        if table.noise != noise:
            raise UserError(f"the start {table.name} is for another noise schedule than the model's: run `dvc repro`")
