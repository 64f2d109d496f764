"""Likelihoods against densities that are formulas."""

import math

import pytest
import torch
from support.problems import NOISES, Gaussian, Mixture, noises

from s4spipe.models.noise import VE, NoiseSchedule
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.likelihood import Likelihood, log_likelihood
from s4spipe.sampling.tableau.adaptive import Adaptive


def fine(noise: NoiseSchedule, tolerance=1e-8):
    return Adaptive(noise, tolerance, 5000)


class Correlated:
    """Gaussian data with a covariance, whose Jacobian is not diagonal."""

    def __init__(self, noise, dim=6):
        self.noise_schedule = noise
        factor = noises(dim, dim, 0.4, seed=1)
        self.mean, self.covariance = noises(1, dim, 0.3, seed=2)[0], factor @ factor.T + 0.05 * torch.eye(dim).double()

    def noised(self, t):
        """Mean and covariance at t."""
        alpha, sigma = self.noise_schedule.alpha(t), self.noise_schedule.sigma(t)
        return alpha * self.mean, alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean)).double()

    def __call__(self, x, t, condition=None):
        t = t[:, None, None]
        mean, covariance = self.noised(t)
        gain = self.noise_schedule.alpha(t) * self.covariance
        return self.mean + (gain @ torch.linalg.solve(covariance, x[..., None] - mean.mT))[..., 0]

    def draw(self, n):
        """Data at t_min, and their log densities."""
        there = torch.distributions.MultivariateNormal(*self.noised(torch.tensor(self.noise_schedule.t_min).double()))
        x = there.mean + noises(n, len(self.mean), seed=3) @ there.scale_tril.T
        return x, there.log_prob(x)


@pytest.mark.parametrize("name", NOISES)
def test_on_gaussian_data_it_is_the_density_of_what_the_ode_makes_of_the_noises(name):
    """The ODE is affine: x_T = m_T + (x - m_0) s_T / s_0, in each dimension."""
    problem, noise = Gaussian(NOISES[name]), NOISES[name]
    (m_0, s_0), (m_T, s_T) = (moments(problem, t) for t in (noise.t_min, noise.T))
    x = m_0 + s_0 * noises(5)
    x_T = m_T + (x - m_0) * s_T / s_0
    exact = torch.distributions.Normal(0, noise.sigma_T).log_prob(x_T).sum(1) + 3 * torch.log(s_T / s_0)
    ours = log_likelihood(problem, fine(noise), x)
    torch.testing.assert_close(ours.log_p, exact, rtol=0, atol=1e-5)
    assert not ours.error.any()


def moments(problem, t):
    t = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = problem.noise_schedule.alpha(t), problem.noise_schedule.sigma(t)
    return alpha * problem.mean, (alpha**2 * problem.std**2 + sigma**2).sqrt()


@pytest.mark.parametrize("name", ["ve", "vp_linear", "flow"])
def test_bits_per_dimension_of_gaussian_data_are_the_exact_ones(name):
    """With the exact trace, to 1e-3. What is left is that noise at T is not quite N(0, sigma_T^2)."""
    problem = Correlated(NOISES[name])
    x, log_p = problem.draw(24)
    ours = log_likelihood(problem, fine(NOISES[name], 1e-6), x)
    exact = -log_p / (6 * math.log(2)) + 7
    assert (ours.bits_per_dim(1 / 128) - exact).mean().abs() < 1e-3


def test_probes_are_right_on_average_and_say_how_wrong_they_are():
    problem = Correlated(VE())
    x, _ = problem.draw(8)
    exact = log_likelihood(problem, fine(VE(), 1e-5), x).log_p
    ours = log_likelihood(problem, fine(VE(), 1e-5), x, probes=100)
    off = (ours.log_p - exact) / ours.error
    assert (ours.error > 0).all()
    assert off.abs().max() < 4
    assert off.square().mean() < 2.5
    mean, error = (ours.log_p - exact).mean(), ours.error.square().sum().sqrt() / 8
    assert mean.abs() < 4 * error
    assert error / (6 * math.log(2)) < 0.02  # bits per dimension


def test_for_a_diagonal_jacobian_one_probe_is_exact():
    problem, x = Gaussian(VE()), 0.5 * noises(4)
    one, exact = (log_likelihood(problem, fine(VE()), x, probes=probes) for probes in (1, None))
    torch.testing.assert_close(one.log_p, exact.log_p)
    assert one.error.isnan().all()


def test_on_a_mixture_it_is_the_density_and_integrates_to_one():
    problem = Mixture(VE())
    x = torch.linspace(-2.5, 2, 181, dtype=torch.float64)[:, None]
    density = log_likelihood(problem, fine(VE(), 1e-6), x).log_p.exp()
    assert density.sum() * (x[1] - x[0]) == pytest.approx(1, abs=1e-3)
    h = 1e-4
    exact = (problem.cdf(x + h, VE().t_min) - problem.cdf(x - h, VE().t_min))[:, 0] / (2 * h)
    torch.testing.assert_close(density, exact, rtol=0.01, atol=1e-3)  # noise at T is not quite N(0, 80^2)


def test_a_sample_does_not_depend_on_its_batch():
    problem = Correlated(VE())
    x, _ = problem.draw(5)
    whole = log_likelihood(problem, fine(VE(), 1e-4), x, probes=2, seed=7)
    part = log_likelihood(problem, fine(VE(), 1e-4), x[3:], probes=2, seed=7, first=3)
    torch.testing.assert_close(part.log_p, whole.log_p[3:], rtol=1e-10, atol=1e-10)
    other = log_likelihood(problem, fine(VE(), 1e-4), x[3:], probes=2, seed=8, first=3)
    assert (other.log_p - part.log_p).abs().min() > 1e-4


def test_the_offset_is_that_of_the_scaling_of_the_data():
    """A density that is uniform over 256 levels takes 8 bits, however the levels are scaled."""
    for low, high in ((-1, 1), (0, 1), (0, 256)):
        uniform = Likelihood(torch.tensor([-5 * math.log(high - low)]), torch.zeros(1), torch.ones(1), 5)
        assert uniform.bits_per_dim((high - low) / 256).item() == pytest.approx(8)
    for width in (0, -1.0, math.nan, math.inf, "8"):
        with pytest.raises(UserError, match="width"):
            uniform.bits_per_dim(width)


def test_it_works_in_inference_mode_and_in_other_shapes():
    problem = Gaussian(VE())

    def flat(x, t, condition):
        return problem(x.flatten(1), t).view(x.shape)

    with torch.inference_mode():
        x = 0.5 * noises(2, 6)
        ours = log_likelihood(flat, fine(VE(), 1e-5), x.view(2, 1, 2, 3))
    torch.testing.assert_close(ours.log_p, log_likelihood(problem, fine(VE(), 1e-5), x).log_p)
    assert ours.evaluations.min() > 12


@pytest.mark.parametrize(
    ("denoiser", "x", "given", "says"),
    [
        (lambda x, t, c: x.detach(), noises(2), {}, "no derivative by x"),
        (lambda x, t, c: x / 2, noises(2) * torch.nan, {}, "data x are not finite"),
        (lambda x, t, c: x / 2, noises(2), {"probes": 0}, "probes must be at least 1"),
        (lambda x, t, c: x / 2, "x", {}, "dense tensor"),
    ],
)
def test_what_cannot_be_is_refused(denoiser, x, given, says):
    with pytest.raises(UserError, match=says):
        log_likelihood(denoiser, fine(VE()), x, **given)
