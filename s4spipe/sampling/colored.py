"""Coloured noise for solvers of the SDE."""

from dataclasses import replace

import torch
from torch import Tensor

from s4spipe.runtime.errors import UserError, shown
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import Basis


def colored(tableau: Tableau, gamma: Tensor, basis: Basis, shape: tuple[int, ...]) -> Tableau:
    """A solver whose fresh noises are weaker in frequencies that are decided already (Colored Noise Sampling, arXiv
    2605.30332, eq. 11).

    The weight V of noise k is scaled, in each frequency f, by sqrt(1 - gamma[k, f]) over the root of the mean of
    1 - gamma[k] over all frequencies. So the variance of a noise, summed over a sample, is kept; the paper divides by
    the standard deviation of each batch's own noise instead, which makes its samples depend on one another. Frequencies
    are those of the DCT. gamma = 0 is white noise.

    Args:
        tableau: a solver that adds noise, with plain weights; its noises are the steps of the paper, but those of
            `dpmpp_sde` are half steps.
        gamma: [Z, *basis.shape] how far each frequency is decided at each noise, at most 1: 1 - |X0(f) - D(f)|^2 /
            |X0(f)|^2, averaged over samples, with the spectra of the x0 prediction D and of the sample X0 in the end.
        basis: what an entry of gamma belongs to: `Bands` or `Arrays`.
        shape: the shape of a sample, [C, H, W], which says how many frequencies a band holds.

    Returns:
        The solver with weights in that basis.

    Raises:
        UserError: for a solver without noise or with weights by frequency, for a basis that does not go with the
            samples, and for another gamma.
    """
    if tableau.V is None:
        raise UserError(f"solver {tableau.name} adds no fresh noises that could be coloured: use one such as ddim_eta")
    if not isinstance(basis, Basis) or not basis.shape:
        raise UserError(f"colours are given by frequency: basis must be Bands or Arrays, got {shown(basis)}")
    wide, example = tableau.over(basis), torch.zeros(1, *shape, dtype=torch.float64)
    basis.check(example)
    expected = (tableau.draws, *basis.shape)
    if not isinstance(gamma, Tensor) or tuple(gamma.shape) != expected:
        raise UserError(f"gamma must be a tensor of shape {list(expected)}, a row for each noise, got {shown(gamma)}")
    power = 1 - gamma.to(tableau.V)
    if not (power.isfinite() & (power >= 0)).all() or not power.flatten(1).any(1).all():
        raise UserError(f"gamma must be numbers of at most 1, and below 1 somewhere in each row, got {shown(gamma)}")
    mean = torch.stack([(basis.spread(row, example) + example).mean() for row in power])
    scale = (power / mean.view(-1, *[1] * len(basis.shape))).sqrt()
    assert wide.V is not None  # for mypy: it was laid over the basis
    return replace(wide, V=wide.V * scale)
