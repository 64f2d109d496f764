"""One Brownian path per sample: its law, and solvers with any steps along it."""

import math

import numpy as np
import pytest
import torch
from support.problems import NOISES, Mixture
from support.tables import drawn

from s4spipe import models
from s4spipe.noise import VE, Flow, VPLinear
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.batches import Noises, fresh, generate
from s4spipe.sampling.brownian import LEVELS, increments
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry, timesteps

MILD = {"ve": VE(0.05, 20.0), "vp": VPLinear(t_min=0.05), "flow": Flow(0.02, 0.98)}


def path(seed, shape):
    return lambda node: np.random.default_rng((seed, node)).standard_normal(shape)


def along(noise, t_z, normal):
    """The Brownian motion itself at the times, from the first, in units of the clock."""
    clock = torch.exp(2 * noise.lambda_(t_z))
    steps = clock.diff().sqrt()[:, None] * torch.tensor(np.stack(increments(noise, t_z, normal)))
    return steps.cumsum(0)


@pytest.mark.parametrize("key", NOISES)
def test_increments_are_independent_standard_normal(key):
    """In 20,000 paths at once; on intervals that share nothing with the tree's own."""
    t_z = timesteps.build("edm", NOISES[key], 7)
    z = np.stack(increments(NOISES[key], t_z, path(1, 20_000)))
    covariance = np.cov(z)
    assert abs(covariance - np.eye(7)).max() < 5 / math.sqrt(20_000)
    assert abs(z.mean(1)).max() < 5 / math.sqrt(20_000)
    assert abs((z**4).mean(1) - 3).max() < 0.4


def test_their_variance_is_1_exactly():
    """As the sum of the squares of the weights that the nodes' draws have, which are found with one unit draw each."""
    noise, t_z = VE(), timesteps.build("logsnr", VE(), 5)
    asked = []
    increments(noise, t_z, lambda node: asked.append(node) or np.zeros(1))
    weights = [
        np.stack(increments(noise, t_z, lambda node, own=own: np.ones(1) * (node == own)))[:, 0] for own in asked
    ]
    np.testing.assert_allclose(np.stack(weights).T @ np.stack(weights), np.eye(5), atol=1e-12)
    assert len(asked) == len(set(asked)) < 4 * LEVELS + 2


@pytest.mark.parametrize("key", MILD)
def test_a_path_is_the_same_whatever_times_it_is_asked_for(key):
    """At times on the tree's grid, to rounding."""
    noise = MILD[key]
    fine = timesteps.build("logsnr", noise, 64)
    whole = along(noise, fine, path(2, 3))
    for every in (2, 8, 64):
        torch.testing.assert_close(along(noise, fine[::every], path(2, 3)), whole[every - 1 :: every])
    part = along(noise, fine[16:33], path(2, 3))
    torch.testing.assert_close(part, whole[16:32] - whole[15])


@pytest.mark.parametrize("solver", ["ddim_eta", "ddim_eta_40", "dpmpp_sde", "dpmpp_2m_sde", "sa_solver_3"])
def test_with_more_steps_it_comes_to_the_same_picture(solver):
    """On a mixture: the distance to the finest falls as the steps do, and with independent noises does not."""
    noise = MILD["ve"]
    problem, x_T = Mixture(noise), noise.sigma_T * drawn(100, 3, seed=4)

    def run(nfe, seed=7):
        table = registry.make(solver, "logsnr", noise, nfe)
        z = np.stack(increments(noise, table.t_z, path(seed, (100, 3))))
        return sample(problem, table, x_T, z=torch.tensor(z))

    finest = run(192)
    far = [(run(nfe) - finest).square().mean().sqrt().item() for nfe in (12, 24, 48)]
    assert far[0] > 1.25 * far[1] > 1.25**2 * far[2]
    assert far[-1] < 0.1
    if solver != "ddim_eta_40":
        assert (run(48, seed=8) - finest).square().mean().sqrt().item() > 0.3


NOISY = ("ddim_eta", "dpmpp_sde", "dpmpp_2m_sde", "sa_solver")


def digits(solver, nfe, count, size):
    denoiser = models.load({"weights": "models/digits.safetensors"})
    table = registry.make(solver, "edm", denoiser.noise_schedule, nfe)
    return torch.cat([shard["x_0"] for shard in generate(denoiser, table, Noises("sample", 3, count), size)])


@pytest.mark.parametrize("solver", NOISY)
def test_a_digit_is_the_same_in_any_batch(solver):
    whole = digits(solver, 4, 64, 64)
    torch.testing.assert_close(digits(solver, 4, 64, 7), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(digits(solver, 4, 5, 1), whole[:5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", NOISY)
def test_more_steps_give_the_same_digit(solver):
    few, many, most = (digits(solver, nfe, 8, 8) for nfe in (50, 100, 200))
    apart, nearer, other = (
        (a - b).square().mean().sqrt() for a, b in ((few, many), (many, most), (many, most.roll(1, 0)))
    )
    assert nearer < apart < 0.4 * other


def test_every_stream_has_fresh_noises_of_its_own():
    denoiser = models.load({"weights": "models/digits.safetensors"})
    table = registry.make("ddim_eta", "edm", denoiser.noise_schedule, 6)
    assert not torch.equal(fresh(denoiser, Noises("train", 3, 2), range(2), table),
                           fresh(denoiser, Noises("sample", 3, 2), range(2), table))  # fmt: skip


def test_steps_that_are_too_short_are_told():
    t_z = torch.tensor([1.0, 1.0 - 1e-9, 0.1], dtype=torch.float64)
    with pytest.raises(UserError, match=r"at least 2\^-20 of lambda's range"):
        increments(VE(), t_z, path(0, 1))
