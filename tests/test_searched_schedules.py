"""Searched schedules, against enumeration, against plain loops, and against the objective as its authors write it."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.problems import NOISES, Gaussian, Mixture, march, noises

from s4spipe.noise import VE, VPLinear
from s4spipe.solvers import registry, searched_schedules, timesteps


@given(seed=st.integers(0, 10**6), points=st.integers(2, 7), coefficient=st.floats(0.5, 2))
def test_the_cheapest_paths_are_those_that_enumeration_finds(seed, points, coefficient):
    costs = torch.rand(points, points, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    costs[~torch.ones(points, points).triu(1).bool()] = math.inf

    def cost(path):
        return sum(coefficient**k * costs[a, b].item() for k, (a, b) in enumerate(zip(path, path[1:], strict=False)))

    paths = searched_schedules.cheapest_paths(costs, coefficient)
    assert list(paths) == list(range(1, points))
    for n, path in paths.items():
        every = [[0, *inner, points - 1] for inner in combinations(range(1, points - 1), n - 1)]
        assert cost(path) == pytest.approx(min(map(cost, every)))


@pytest.mark.parametrize("noise", [VE(), VPLinear()])
def test_jump_costs_are_the_papers(noise):
    """Written out sample by sample: the DDIM step in x, and distances from the line by Pythagoras."""
    problem, t, x_T = Mixture(noise), timesteps.build("edm", noise, 5), noises(3, scale=noise.sigma_T)
    costs = searched_schedules.jump_costs(problem, x_T, None, "ddim", t)
    alpha, sigma = noise.alpha(t).numpy(), noise.sigma(t).numpy()
    expected = np.full((6, 6), np.inf)
    expected[np.triu_indices(6, 1)] = 0
    for sample in x_T:
        x, d = [sample.numpy()], []
        for i in range(5):
            d.append(problem(torch.tensor(x[i]), t[i]).numpy())
            x.append(alpha[i + 1] * d[i] + sigma[i + 1] * (x[i] - alpha[i] * d[i]) / sigma[i])
        start, end = x[0] / alpha[0], x[5] / alpha[5]

        def deviation(point, start=start, end=end):
            along = np.dot(point - start, end - start) / np.linalg.norm(end - start)
            return math.sqrt(max(np.sum((point - start) ** 2) - along**2, 0))

        for i in range(5):
            eps = (x[i] - alpha[i] * d[i]) / sigma[i]
            for j in range(i + 1, 6):
                jump = (alpha[j] * d[i] + sigma[j] * eps) / alpha[j]
                expected[i, j] += (deviation(jump) - deviation(x[j] / alpha[j])) / 3
    np.testing.assert_allclose(costs.numpy(), expected, rtol=1e-6, atol=1e-6)


def dmn_objective(lam):
    """The authors' objective for order 3: J of each step and evaluation in closed form, summed as they sum it."""
    n, e = len(lam) - 1, np.exp(lam)
    h = np.diff(lam)
    off = (1 / (1 + np.exp(2 * lam))) / (1 / np.sqrt(1 + np.exp(-2 * lam)))
    H0 = lambda v: np.exp(v) - 1  # noqa: E731
    H1 = lambda v: np.exp(v) * v - H0(v)  # noqa: E731
    H2 = lambda v: np.exp(v) * v * v - 2 * H1(v)  # noqa: E731
    total, joint = 0.0, np.zeros(n)
    for s in range(n):
        if s in (0, n - 1):
            total += abs((e[s + 1] - e[s]) * off[s])
            continue
        v = h[s]
        if s in (1, n - 2):
            a = h[s - 1]
            J = [-e[s] * H1(v) / a, e[s] * (H1(v) + a * H0(v)) / a]
        else:
            b, a = h[s - 2], h[s - 1]
            J = [e[s] * (H2(v) + a * H1(v)) / (b * (b + a)), -e[s] * (H2(v) + (b + a) * H1(v)) / (b * a),
                 e[s] * (H2(v) + (2 * a + b) * H1(v) + a * (a + b) * H0(v)) / (a * (a + b))]  # fmt: skip
        errors = np.array(J) * off[s - len(J) + 1 : s + 1]
        if s < 3:
            total += np.sqrt((errors**2).sum())
        else:
            joint[s - len(J) + 1 : s + 1] += errors
    return total + np.abs(joint).sum()


@given(h=st.lists(st.floats(0.05, 3), min_size=2, max_size=12), first=st.floats(-5, 0))
def test_the_bound_is_the_authors_objective(h, first):
    lam = first + np.concatenate([[0], np.cumsum(h)])
    assert searched_schedules.error_bound(torch.tensor(lam), 3).item() == pytest.approx(dmn_objective(lam), rel=1e-8)


@pytest.mark.parametrize(
    ("key", "n", "start"),
    [
        *product(["ve", "vp_linear"], [1, 2, 3, 5], ["logsnr", "edm"]),
        pytest.param("ve", 8, "edm", marks=pytest.mark.slow),
    ],
)
def test_dmn_lowers_the_bound_below_that_of_every_fixed_schedule(key, n, start):
    noise = NOISES[key]
    t = searched_schedules.dmn(noise, n, start)
    assert (t[0], t[-1], len(t)) == (noise.T, noise.t_min, n + 1)
    assert (t.diff() < 0).all()
    bound = searched_schedules.error_bound(noise.lambda_(t), 3)
    for name in ("time_uniform", "time_quadratic", "edm", "logsnr"):
        assert bound <= searched_schedules.error_bound(noise.lambda_(timesteps.build(name, noise, n)), 3) * (1 + 1e-9)


def test_dmn_ends_where_the_bound_is_stationary():
    noise = VE()
    lam = noise.lambda_(searched_schedules.dmn(noise, 5, "logsnr")).requires_grad_()
    bound = searched_schedules.error_bound(lam, 3)
    (slope,) = torch.autograd.grad(bound, lam)
    assert slope[1:-1].abs().max() < 1e-3 * bound


@pytest.mark.parametrize("n", [4, 5, 6, 8])
def test_gits_brings_ddim_nearer_to_the_solution_than_the_grid_it_chose_from(n):
    """On Gaussian data of unequal spread, whose trajectories bend."""
    noise, std = VE(), torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    problem, x_T = Gaussian(noise, std=std), noises(64, scale=noise.sigma_T)
    t = timesteps.build("edm", noise, 60)
    found = t[
        searched_schedules.cheapest_paths(searched_schedules.jump_costs(problem, x_T, None, "ipndm_4", t), 1.15)[n]
    ]
    exact = problem.solution(x_T, noise.t_min)
    ours, theirs = (
        (march(problem, registry.build("ddim", noise, s), x_T) - exact).norm()
        for s in (found, timesteps.build("edm", noise, n))
    )
    assert ours < theirs
