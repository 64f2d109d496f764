"""Schedules that are searched for: by the shape of the teacher's trajectories (GITS), by a bound on the error (DMN)."""

import warnings
from collections.abc import Callable
from math import inf

import numpy as np
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from s4spipe import classical, steps
from s4spipe.noise import NoiseSchedule
from s4spipe.sampling import sample

# -- GITS: Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling" (arXiv 2405.11326) --------


def jump_costs(denoiser: Callable, x_T: Tensor, condition: Tensor | None, solver: str, t: Tensor) -> Tensor:
    """`deviation_costs` of the trajectories that `solver` runs from x_T [B, ...] on the fine steps t [M+1]."""
    x, d = [], []

    def recorded(y: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
        x.append(y)
        d.append(denoiser(y, s, condition))
        return d[-1]

    x.append(sample(recorded, classical.build(solver, denoiser.noise_schedule, t), x_T, condition))
    states, predictions = torch.stack(x).cpu().double(), torch.stack(d).cpu().double()
    return deviation_costs(denoiser.noise_schedule, t, states, predictions)


def deviation_costs(noise: NoiseSchedule, t: Tensor, x: Tensor, d: Tensor) -> Tensor:
    """[M+1, M+1]: what a DDIM step from point i to j > i of a trajectory adds to its deviation; infinite elsewhere.

    Deviation is the distance from the straight line through the trajectory's two ends, averaged over the batch; how far
    the trajectory itself is from it at point j is taken off (the authors' metric "dev").

    t [M+1], states x [M+1, B, ...], x0 predictions d [M, B, ...], all float64.
    """
    rho = noise.sigma(t) / noise.alpha(t)
    z = x.flatten(2) / noise.alpha(t)[:, None, None]  # where a DDIM step is straight
    eps = (z[:-1] - d.flatten(2)) / rho[:-1, None, None]
    chord = (z[-1] - z[0]) / (z[-1] - z[0]).norm(dim=1, keepdim=True)

    def deviation(points: Tensor) -> Tensor:
        offset = points - z[0]
        return (offset - (offset * chord).sum(-1, keepdim=True) * chord).norm(dim=-1).mean(-1)

    costs = torch.full((len(t), len(t)), inf, dtype=torch.float64)
    own = deviation(z)
    for i in range(len(t) - 1):
        jumps = z[i] + (rho[i + 1 :] - rho[i])[:, None, None] * eps[i]
        costs[i, i + 1 :] = deviation(jumps) - own[i + 1 :]
    return costs


def cheapest_paths(costs: Tensor, coefficient: float) -> dict[int, list[int]]:
    """For every n from 1 to M, the n jumps from the first point to the last that cost least, as n + 1 points.

    costs [M+1, M+1], infinite where there is no jump. The k-th jump counts coefficient^(k-1) times: above 1, the end of
    the trajectory counts more.
    """
    last = len(costs) - 1
    rest = costs[:, last]  # of every point: the cost to the end
    paths, following = {1: [0, last]}, []
    for n in range(2, last + 1):
        rest, best = (costs + coefficient * rest).min(1)
        following.insert(0, best)
        path = [0]
        for then in following:
            path.append(int(then[path[-1]]))
        paths[n] = [*path, last]
    return paths


# -- DMN: Xue et al. 2024, "Accelerating diffusion sampling with optimized time steps" (arXiv 2402.17376) ------------


def dmn(noise: NoiseSchedule, n: int, start: steps.Schedule, order: int = 3) -> Tensor:
    """The steps t [n+1] with the smallest `error_bound`, by the constrained trust region method from `start`."""
    begin = steps.build(start, noise, n)
    if n == 1:
        return begin
    lam = noise.lambda_(begin)

    def bound(inner: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(inner, requires_grad=True)
        value = error_bound(torch.cat([lam[:1], free, lam[-1:]]), order)
        value.backward()
        return value.item(), free.grad.numpy()

    gaps, ends = np.eye(n, n - 1) - np.eye(n, n - 1, -1), np.zeros(n)  # every step's h = gaps @ inner - ends
    ends[0], ends[-1] = lam[0], -lam[-1]
    smallest = 1e-3 * (lam[-1] - lam[0]).item() / n
    rising = LinearConstraint(gaps, ends + smallest, inf, keep_feasible=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "delta_grad == 0.0")  # a step too small to see, at the end of a search
        found = minimize(bound, lam[1:-1].numpy(), jac=True, method="trust-constr", constraints=rising)
    return torch.cat([begin[:1], noise.inverse(torch.tensor(found.x)), begin[-1:]])


def error_bound(lam: Tensor, order: int) -> Tensor:
    """How far the end point can be off, in units of sigma there, for steps at lam [n+1].

    The x0 prediction may be off by eps_j = sigma_j^2 / alpha_j at step j, so the end point by eps_j times the weight
    of that evaluation in it, here of exponential Adams-Bashforth in lambda, at low order at both ends. As in the
    authors' code, alpha and sigma are those of the variance-preserving process whatever the model's, and the first
    three steps and the last are bounded each on its own, the others by the sum of their weights.
    """
    n = len(lam) - 1
    b = classical.lagrange(InLambda(), lam, min(order, n), "lambda", "data", lower_order_final=True).b
    error = torch.sigmoid(-2 * lam) / torch.sigmoid(2 * lam).sqrt()
    gains = lam.exp().diff()
    own, joint = [], torch.zeros(n, dtype=lam.dtype)
    for i in range(n):
        reach = min(i + 1, b.shape[1])
        weights = gains[i] * b[i, :reach].flip(0) * error[i + 1 - reach : i + 1]
        if i < 3 or i == n - 1:
            own.append(weights.norm())
        else:
            joint = joint + torch.nn.functional.pad(weights, (i + 1 - reach, n - 1 - i))
    return torch.stack(own).sum() + joint.abs().sum()


class InLambda(NoiseSchedule):
    """Time is lambda itself."""

    def lambda_(self, t: Tensor) -> Tensor:
        return t

    inverse = lambda_
