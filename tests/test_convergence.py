"""Orders of convergence of the classical solvers, on problems with known solutions."""

from functools import partial

import numpy as np
import pytest
import torch
from support.problems import Gaussian, Mixture, march, noises

from s4spipe.noise import VE, Flow, VPLinear
from s4spipe.solvers import registry, timesteps


def graded(noise, n, steep=False):
    """Steps in lambda that start and end small, h ~ 1/n^2, or if steep 1/n^3: what the low orders there cost is then of
    high order too."""
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    share = u**3 * (10 - 15 * u + 6 * u**2) if steep else 0.5 * (1 - torch.cos(torch.pi * u))
    ends = noise.lambda_(torch.tensor([noise.T, noise.t_min], dtype=torch.float64))
    t = noise.inverse(ends[0] + share * (ends[1] - ends[0]))
    t[0], t[-1] = noise.T, noise.t_min
    return t


def rate(solver, problem, grid, ns=(320, 640), points=None):
    """The order that two numbers of steps show, on the root mean square error over the batch."""
    noise = problem.noise_schedule
    x_T = noises(scale=noise.sigma_T) if points is None else points
    exact = problem.solution(x_T, noise.t_min)
    coarse, fine = (
        (march(problem, registry.build(solver, noise, grid(noise, n)), x_T) - exact).norm().item() for n in ns
    )
    return np.log2(coarse / fine) / np.log2(ns[1] / ns[0])


# The order of convergence of every solver whose order does not need equal steps. (3M) is of order 2 as its authors
# publish it: see `classical.dpm_multistep`. A corrector adds an order.
ORDER = {
    "ddim": 1, "euler": 1, "dpm_2m": 2, "dpm_3m": 2, "dpmpp_2m": 2, "dpmpp_3m": 2, "dpm_2s": 2, "dpm_3s": 3,
    "dpmpp_2s": 2, "parallel_midpoints": 2, "heun": 2, "fdpm": 1,
    **{f"{name}_{p}": p for name in ("deis_tab", "deis_rhoab", "deis_log", "adams_bashforth", "unip_bh1", "unip_bh2")
       for p in (1, 2, 3, 4)},
    **{f"unipc_{name}_{p}": p + 1 for name in ("bh1", "bh2", "bh1_eps", "bh2_eps") for p in (1, 2, 3, 4)},
}  # fmt: skip
MILD = {"ve": VE(0.05, 20.0), "vp": VPLinear(t_min=0.05), "flow": Flow(0.02, 0.98)}


@pytest.mark.slow
@pytest.mark.parametrize("key", MILD)
@pytest.mark.parametrize(("solver", "order"), ORDER.items())
def test_order_of_convergence_on_gaussian_data(solver, order, key):
    """In three dimensions of different spread: in one, the error may happen to cross zero."""
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, -0.2, 0.1], [0.5, 0.35, 1.0]))
    ns = (160, 320) if order <= 2 and solver != "dpmpp_3m" else (320, 640)
    if order == 5 and key == "vp" and "eps" in solver:
        ns = (640, 960)  # slow to begin
    grid = partial(graded, steep=order == 5)
    assert rate(solver, Gaussian(MILD[key], mean, std), grid, ns) == pytest.approx(order, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("key", MILD)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpm_3s", "heun", "deis_log_3", "adams_bashforth_3", "unipc_bh2_2"])
def test_order_of_convergence_on_a_mixture(solver, key):
    """Two modes in each of three dimensions, where the exact flow keeps every coordinate's quantile."""
    problem = Mixture(MILD[key])
    x_T = problem.draw(6)
    assert rate(solver, problem, graded, points=x_T) == pytest.approx(ORDER[solver], abs=0.2)


@pytest.mark.parametrize("key", MILD)
def test_the_leading_errors_of_fdpm_and_ddim_cancel(key):
    """One takes the denoiser at the end of a step, the other at its start: their mean is of order 2."""
    noise = MILD[key]
    problem, x_T = Gaussian(noise), noises(scale=noise.sigma_T)
    exact = problem.solution(x_T, noise.t_min)

    def errors(n):
        return [march(problem, registry.build(name, noise, graded(noise, n)), x_T) - exact for name in ("fdpm", "ddim")]

    (fdpm, ddim), (fdpm_2, ddim_2) = errors(160), errors(320)
    assert (fdpm * ddim < 0).all()
    for coarse, fine, order in ((fdpm, fdpm_2, 1), (ddim, ddim_2, 1), (fdpm + ddim, fdpm_2 + ddim_2, 2)):
        assert np.log2(coarse.norm().item() / fine.norm().item()) == pytest.approx(order, abs=0.1)


class FlatStart:
    """On VE noise: a solution whose slope hardly changes at first, so that a start of low order costs nothing."""

    def __init__(self, noise, x_T):
        self.noise_schedule, self.x_T = noise, x_T

    def solution(self, x_T, t):
        return x_T + 0.5 * (t - self.noise_schedule.T) + 0.05 * (self.noise_schedule.T - t) ** 6

    def __call__(self, x, t, condition=None):
        slope = 0.5 - 0.3 * (self.noise_schedule.T - t) ** 5 - (x - self.solution(self.x_T, t))
        return x - t * slope


@pytest.mark.parametrize(
    ("solver", "order"), [("ipndm_1", 1), ("ipndm_2", 2), ("ipndm_3", 3), ("ipndm_4", 4), ("plms", 4), ("pndm", 4)]
)
def test_order_of_convergence_on_equal_steps(solver, order):
    """Those with the weights of equal steps, where their start does not matter: equal in sigma."""
    noise = VE(0.5, 3.0)
    x_T = noises(scale=noise.T)
    problem, grid = FlatStart(noise, x_T), partial(timesteps.build, "time_uniform")
    assert rate(solver, problem, grid, (80, 160), x_T) == pytest.approx(order, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "order"), [("ipndm_1", 1), ("ipndm_2", 2), ("ipndm_3", 2), ("ipndm_4", 2), ("plms", 3), ("pndm", 4)]
)
def test_order_of_convergence_on_equal_steps_with_the_start(solver, order):
    """The same on Gaussian data: the low order of iPNDM's and PLMS's first steps shows, PNDM starts by Runge-Kutta."""
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, -0.2, 0.1], [0.5, 0.35, 1.0]))
    problem, grid = Gaussian(VE(1.0, 3.0), mean, std), partial(timesteps.build, "time_uniform")
    assert rate(solver, problem, grid, (640, 1280)) == pytest.approx(order, abs=0.2)


def test_plms_and_pndm_gain_on_ipndm_by_their_start():
    grid = partial(timesteps.build, "time_uniform")
    problem = Gaussian(VE(0.5, 3.0))
    assert rate("plms", problem, grid, (40, 160)) > 2.6
    assert rate("pndm", problem, grid, (40, 160)) > rate("plms", problem, grid, (40, 160))
