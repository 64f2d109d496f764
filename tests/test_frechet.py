"""The Fréchet distance between features and its slope, against scipy and known values."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from support.problems import noises

from s4spipe.features.base import frechet


def features(n, d, seed):
    return noises(n, d, seed=seed + 1) @ noises(d, d, seed=seed) + 0.3


def by_scipy(own, goal):
    """The trace formula, with scipy's root of the product of the covariances."""
    (m1, c1), (m2, c2) = ([part.numpy() for part in side] for side in (own, goal))
    return ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)


def test_the_root_is_symmetric_and_squares_to_its_matrix():
    for rank in (6, 3):
        half = noises(6, rank, seed=1)
        matrix = half @ half.T
        root = frechet.root(matrix)
        torch.testing.assert_close(root @ root, matrix, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(root, root.T)
        torch.testing.assert_close(root, torch.from_numpy(sqrtm(matrix.numpy()).real), rtol=1e-6, atol=1e-6)
        assert torch.linalg.eigvalsh(root).min() > -1e-9


def test_statistics_are_numpys():
    x = features(30, 4, 1)
    mean, covariance = frechet.statistics(x)
    np.testing.assert_allclose(mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12)


def test_it_is_the_trace_formula_with_scipys_matrix_root():
    own, goal = (frechet.statistics(features(n, 6, seed)) for n, seed in ((500, 1), (400, 5)))
    assert frechet.distance(own, goal) == pytest.approx(by_scipy(own, goal), rel=1e-10)
    assert frechet.distance(goal, own) == pytest.approx(frechet.distance(own, goal), rel=1e-10)


def test_known_distances():
    mean, covariance = torch.zeros(3).double(), torch.tensor([1.0, 4.0, 9.0]).double().diag()
    own = mean, covariance
    assert frechet.distance(own, own) == pytest.approx(0, abs=1e-12)
    assert frechet.distance(own, (mean + 2, covariance)) == pytest.approx(12)
    assert frechet.distance(own, (mean, 4 * covariance)) == pytest.approx(1 + 4 + 9)  # sum of (2 sd - sd)^2


def test_that_of_a_set_from_itself_is_not_below_zero():
    own = frechet.statistics(torch.from_numpy(np.maximum(np.random.default_rng(0).normal(0.2, 0.5, (30, 256)), 0)))
    assert frechet._value(own, own, frechet._spectrum(own, own)[1]) < 0  # by rounding
    assert frechet.distance(own, own) == 0


def test_extrapolated_it_is_that_of_infinitely_many():
    """Of pairs that are alike but for what each side has alone, whose distance is known."""
    n, d, trials = 100, 12, 40
    A, mean = torch.eye(d).double() + 0.1 * noises(d, d, seed=1), noises(1, d, seed=2)[0] / 4
    zero, one = torch.zeros(d).double(), torch.eye(d).double()
    true = frechet.distance((mean, A @ A.T + 0.25 * one), (zero, one))
    finite, infinite = [], []
    for k in range(trials):
        goal = noises(n, d, seed=10 + k)
        own = mean + goal @ A.T + 0.5 * noises(n, d, seed=100 + k)
        finite.append(frechet.between(own, goal))
        infinite.append(frechet.extrapolated(own, goal))
    bias, left = (torch.tensor(found).mean().item() - true for found in (finite, infinite))
    assert bias > 0.05 * true
    assert abs(left) < bias / 5
    assert frechet.extrapolated(goal, goal) == pytest.approx(0, abs=1e-12)
    assert frechet.extrapolated(own[:3], goal[:3]) == frechet.between(own[:3], goal[:3])  # no halves


@pytest.mark.parametrize(("n", "d"), [(50, 4), (300, 20), (10, 15), (50, 1)])
def test_that_of_features_is_that_of_their_statistics(n, d):
    ours, theirs = features(n, d, 1), features(400, d, 5)
    own, goal = frechet.statistics(ours), frechet.statistics(theirs)
    value, _ = frechet.distance_and_slope(ours, goal)
    assert value == pytest.approx(frechet.distance(own, goal), rel=1e-9, abs=1e-9)
    assert value == pytest.approx(by_scipy(own, goal), rel=1e-5)  # scipy's root of a singular product is inexact
    assert frechet.distance_and_slope(theirs, goal)[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("n", [40, 6])
def test_its_slope_is_that_of_finite_differences(n):
    ours, goal = features(n, 5, 1), frechet.statistics(features(60, 5, 5))
    _, slope = frechet.distance_and_slope(ours, goal)
    along, h = noises(n, 5, seed=3), 1e-5
    up, down = (frechet.distance_and_slope(ours + sign * h * along, goal)[0] for sign in (1, -1))
    assert (slope * along).sum().item() / n == pytest.approx((up - down) / (2 * h), rel=1e-5)


def test_at_the_goal_the_slope_is_zero():
    ours = features(40, 5, 1)
    _, slope = frechet.distance_and_slope(ours, frechet.statistics(ours))
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-9)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_infinitely_far(broken):
    ours, goal = features(40, 5, 1), frechet.statistics(features(60, 5, 5))
    ours[3, 2] = broken
    value, slope = frechet.distance_and_slope(ours, goal)
    assert value == float("inf")
    assert not slope.any()
