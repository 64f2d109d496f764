"""Mean-reverting processes, of restoration models: noise around a degraded image."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from s4spipe.runtime.checks import check_like, is_number
from s4spipe.runtime.errors import UserError, shown
from s4spipe.sampling.tableau import Tableau


def centered(
    denoiser: Callable[[Tensor, Tensor, Any], Tensor], mu: Tensor, sigma_inf: float
) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """The denoiser of a mean-reverting process as that of a VP process, for `s4spipe.sample` with any solver.

    The process (IR-SDE; MRS, arXiv 2502.07856) is x_t = a_t x_0 + (1 - a_t) mu + sigma_inf sqrt(1 - a_t^2) eps, with mu
    the degraded image. So v = (x - mu) / sigma_inf is variance preserving, with alpha = a_t and the denoiser

        D'(v, t) = (D(sigma_inf v + mu, t) - mu) / sigma_inf

    Sampling starts from v_T, standard normal noise, and of its result v the sample is x = mu + sigma_inf v. A solver
    for x itself is `around`.

    Args:
        denoiser: (x [B, ...], t, condition) -> x0 prediction [B, ...].
        mu: [B, ...], a row per sample, or [...] for all of them.
        sigma_inf: the standard deviation of x around mu in the limit of much noise.

    Returns:
        (v [B, ...], t, condition) -> x0 prediction of v [B, ...].

    Raises:
        UserError: for a mu that is no tensor or does not go with the samples, a sigma_inf that is not positive, and a
            denoiser that cannot be called or returns anything but x0 predictions.
    """
    _check(mu, sigma_inf)
    if not callable(denoiser):
        raise UserError(f"centered needs a denoiser that can be called, got {shown(denoiser)}")

    def centered_denoiser(v: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        rows = mu.to(v)
        if rows.ndim == v.ndim and len(v) % len(rows) == 0:  # a call may join several evaluations of the batch
            rows = rows.repeat(len(v) // len(rows), *[1] * (v.ndim - 1))
        try:
            x = sigma_inf * v + rows.expand(v.shape)
        except RuntimeError:
            raise UserError(f"mu must go with samples of shape {list(v.shape)}, got {list(mu.shape)}") from None
        D = denoiser(x, t, condition)
        check_like("the denoiser", D, x)
        return (D - rows) / sigma_inf

    return centered_denoiser


def around(tableau: Tableau, mu: Tensor, sigma_inf: float) -> Tableau:
    """A solver on VP noise as one for a mean-reverting process (see `centered`), whose states are x itself.

    With v = (x - mu) / sigma_inf in y_i = c_i x_T + sum_j W_ij d_j + sum_k V_ik z_k, the states of x get the constant
    m = mu with beta_i = 1 - c_i - sum_j W_ij, and V is scaled by sigma_inf. Of DPM-Solver and DPM-Solver++, these are
    the solvers of MRS (arXiv 2502.07856). Sampling starts from x_T = mu + sigma_inf z, with z standard normal.

    Args:
        tableau: a solver on VP noise, without a constant of its own.
        mu: [C, H, W], or what broadcasts over a sample; the same for all samples.
        sigma_inf: the standard deviation of x around mu in the limit of much noise.

    Returns:
        The solver, for the model's own denoiser of x.

    Raises:
        UserError: for what is no tableau on VP noise, for one with a constant, for a mu that is no tensor, and a
            sigma_inf that is not positive.
    """
    _check(mu, sigma_inf)
    if not isinstance(tableau, Tableau):
        raise UserError(f"around needs a Tableau, such as classical.build gives, got {shown(tableau)}")
    ends = torch.tensor([tableau.noise.T, tableau.noise.t_min], dtype=torch.float64, device="cpu")
    if not torch.allclose(tableau.noise.alpha(ends) ** 2 + tableau.noise.sigma(ends) ** 2, torch.ones_like(ends)):
        raise UserError(f"a mean-reverting process has variance-preserving noise, and {tableau.name} is a solver on "
                        f"{type(tableau.noise).__name__} noise: build it on VPLinear or another VP noise")  # fmt: skip
    if tableau.m is not None:
        raise UserError(f"solver {tableau.name} adds a constant already: use one without, such as dpmpp_2m")
    beta = 1 - torch.cat([tableau.c_0[None], tableau.c + tableau.W.sum(1)])
    V = None if tableau.V is None else sigma_inf * tableau.V
    return replace(tableau, beta=beta, m=mu.to(beta), V=V)


def _check(mu: object, sigma_inf: Any) -> None:
    if not isinstance(mu, Tensor) or not mu.is_floating_point() or not mu.isfinite().all():
        raise UserError(f"mu must be a tensor of finite floating-point numbers, got {shown(mu)}")
    if not is_number(sigma_inf) or not 0 < sigma_inf < math.inf:
        raise UserError(f"sigma_inf must be a positive number, got {shown(sigma_inf)}")
