"""The predictor-corrector sampler: its moments on Gaussian data, which have formulas."""

import math

import pytest
import torch
from support.problems import NOISES, Gaussian, noises

from s4spipe.models.noise import VE
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.predictor_corrector import predictor_corrector
from s4spipe.solvers import timesteps


def made(problem, n, count=60, dim=300, **given):
    noise = problem.noise_schedule
    t = timesteps.build("logsnr", noise, n)
    return predictor_corrector(problem, (noise, t), noises(count, dim, noise.sigma_T, seed=1), **given), t


@pytest.mark.parametrize("name", NOISES)
def test_the_predictors_moments_are_those_of_its_recursion(name):
    """Each step is affine: u' = keep u + (1 - keep) mean, plus noise, with keep = 1 - step / (std^2 + rho^2)."""
    problem, noise = Gaussian(NOISES[name]), NOISES[name]
    x, t = made(problem, 30, count=30, corrections=0)
    rho, alpha = noise.sigma(t) / noise.alpha(t), noise.alpha(t)
    mean, variance = 0.0, float(rho[0]) ** 2
    for here, there in zip(rho.tolist(), rho.tolist()[1:], strict=False):
        step = here**2 - there**2
        keep = 1 - step / (problem.std**2 + here**2)
        mean, variance = keep * mean + (1 - keep) * problem.mean, keep**2 * variance + step
    mean, variance = mean * float(alpha[-1]), variance * float(alpha[-1]) ** 2
    error = math.sqrt(variance / x.numel())
    assert float(x.mean()) == pytest.approx(mean, abs=4 * error)
    assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / x.numel()))


@pytest.mark.parametrize("name", ["ve", "vp_linear", "flow"])
def test_with_the_corrector_they_are_those_of_the_data(name):
    problem = Gaussian(NOISES[name])
    plain, _ = made(problem, 60, corrections=0)
    x, _ = made(problem, 60, corrections=4, snr=0.1)
    assert float(x.mean()) == pytest.approx(problem.mean, abs=0.02)
    assert float(x.std()) == pytest.approx(problem.std, rel=0.02)
    assert abs(x.std() - problem.std) < abs(plain.std() - problem.std)


def test_langevin_steps_end_at_the_variance_that_their_size_gives():
    """A step is eps = 2 snr^2 v^2 / V for states of variance V and a density of variance v, since |score| is |u| / v;
    so V = (1 - eps / v)^2 V + 2 eps has the solution V = (1 + snr^2) v. It starts with states that are too narrow,
    in so many dimensions that the norms hardly vary."""
    problem, snr = Gaussian(VE()), 0.5
    steps = VE(), torch.tensor([0.01, 0.002], dtype=torch.float64)
    x = predictor_corrector(problem, steps, noises(6, 5000, 0.2), corrections=30, snr=snr)
    assert float(x.var()) == pytest.approx(problem.std**2 * (1 + snr**2), rel=0.03)


def test_a_sample_does_not_depend_on_its_batch():
    problem, noise = Gaussian(VE()), VE()
    steps, x_T = (noise, timesteps.build("logsnr", noise, 5)), noises(5, 6, 80).view(5, 1, 2, 3)

    def flat(x, t, condition):
        return problem(x.flatten(1), t).view(x.shape)

    whole = predictor_corrector(flat, steps, x_T)
    part = predictor_corrector(flat, steps, x_T[3:].float(), first=3)
    torch.testing.assert_close(part, whole[3:].float())
    assert not torch.allclose(predictor_corrector(flat, steps, x_T, seed=1), whole)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"snr": 0}, "snr must be"), ({"corrections": -1}, "corrections must be"), ({"seed": -1}, "seed must be")],
)
def test_what_cannot_be_is_refused(given, says):
    steps = (VE(), timesteps.build("logsnr", VE(), 2))
    with pytest.raises(UserError, match=says):
        predictor_corrector(Gaussian(VE()), steps, noises(2, 3, 80), **given)
    with pytest.raises(UserError, match="not finite"):
        predictor_corrector(lambda x, t, c: x * torch.nan, steps, noises(2, 3, 80))
