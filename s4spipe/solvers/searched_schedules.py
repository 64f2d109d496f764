"""Searching for schedules: by the shape of sampling trajectories (GITS), or by a bound on the error (DMN)."""

import warnings
from math import inf

import numpy as np
import torch
from torch import Tensor

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.noise import NoiseSchedule
from s4spipe.sampling.loop import sample
from s4spipe.solvers import classical, registry, timesteps

# -- GITS: Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling" (arXiv 2405.11326) --------


def jump_costs(denoiser: Denoiser, x_T: Tensor, condition: Tensor | None, solver: str, t: Tensor) -> Tensor:
    """`deviation_costs` of the trajectories of `solver` from the noises x_T [B, ...] on the fine steps t [M+1]."""
    way = sample(denoiser, registry.build(solver, denoiser.noise_schedule, t), x_T, condition, record=True)
    points = [*way.states[:-1], way.x_0]
    states, predictions = torch.stack(points).cpu().double(), torch.stack(way.predictions).cpu().double()
    return deviation_costs(denoiser.noise_schedule, t, states, predictions)


def deviation_costs(noise: NoiseSchedule, t: Tensor, x: Tensor, d: Tensor) -> Tensor:
    """[M+1, M+1]: what a DDIM step from point i to point j > i of a trajectory adds to its deviation; infinite
    elsewhere.

    The deviation is the distance from the straight line through both ends of the trajectory, averaged over the batch.
    The deviation of the trajectory itself at point j is subtracted (the authors' metric "dev").

    Args:
        noise: the noise schedule.
        t: [M+1] times, float64.
        x: states [M+1, B, ...], float64.
        d: x0 predictions [M, B, ...], float64.
    """
    rho = noise.sigma(t) / noise.alpha(t)
    z = x.flatten(2) / noise.alpha(t)[:, None, None]  # in which a DDIM step is straight
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
    """For every n from 1 to M, the n cheapest jumps from the first point to the last, as n + 1 points.

    Args:
        costs: [M+1, M+1], infinite if there is no jump.
        coefficient: the k-th jump is weighted by coefficient^(k-1); above 1, the end of the trajectory counts more.
    """
    last = len(costs) - 1
    rest = costs[:, last]  # the cost from every point to the end
    paths = {1: [0, last]}
    following: list[Tensor] = []
    for n in range(2, last + 1):
        rest, best = (costs + coefficient * rest).min(1)
        following.insert(0, best)
        path = [0]
        for then in following:
            path.append(int(then[path[-1]]))
        paths[n] = [*path, last]
    return paths


# -- DMN: Xue et al. 2024, "Accelerating diffusion sampling with optimized time steps" (arXiv 2402.17376) ------------


def dmn(noise: NoiseSchedule, n: int, schedule: timesteps.Schedule, order: int = 3) -> Tensor:
    """The steps t [n+1] with the smallest `error_bound`, found from `schedule` by a constrained trust-region method."""
    from scipy.optimize import LinearConstraint, minimize  # needs the extra `pipeline`

    begin = timesteps.build(schedule, noise, n)
    if n == 1:
        return begin
    lam = noise.lambda_(begin)

    def bound(inner: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(inner, requires_grad=True)
        value = error_bound(torch.cat([lam[:1], free, lam[-1:]]), order)
        value.backward()
        assert free.grad is not None
        return value.item(), free.grad.numpy()

    gaps, ends = np.eye(n, n - 1) - np.eye(n, n - 1, -1), np.zeros(n)  # every step's h = gaps @ inner - ends
    ends[0], ends[-1] = lam[0], -lam[-1]
    smallest = 1e-3 * (lam[-1] - lam[0]).item() / n
    rising = LinearConstraint(gaps, ends + smallest, inf, keep_feasible=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "delta_grad == 0.0")  # a negligible step at the end of a search
        found = minimize(bound, lam[1:-1].numpy(), jac=True, method="trust-constr", constraints=rising)
    return torch.cat([begin[:1], noise.inverse(torch.tensor(found.x)), begin[-1:]])


def error_bound(lam: Tensor, order: int) -> Tensor:
    """A bound on the error of the end point, in units of its sigma, for steps at lam [n+1].

    If the x0 prediction at step j has an error of eps_j = sigma_j^2 / alpha_j, the end point has one of eps_j times the
    weight of that evaluation. The weights are those of exponential Adams-Bashforth in lambda, of low order at both
    ends. As in the authors' code, alpha and sigma are those of the variance-preserving process, whatever the model. The
    first three steps and the last one are bounded individually, the others by the sum of their weights.
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
    """A noise schedule whose time is lambda itself."""

    def lambda_(self, t: Tensor) -> Tensor:
        return t

    def inverse(self, lam: Tensor) -> Tensor:
        return lam
