"""Learned scales of the states: the family bezier."""

from math import comb

import pytest
import torch
from support.problems import NOISES, noises, wavy

from s4spipe.learning.families import Bezier, Times
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry, timesteps


def bent(noise, nfe, solver="euler"):
    t = timesteps.build("edm", noise, nfe)
    student = Bezier(solver, noise, t, Times(noise, t))
    with torch.no_grad():
        student.curve += 0.5 * noises(30, 1, seed=2)[:, 0]
        student.times.xi += 0.1 * noises(nfe + 1, 1, seed=3)[:, 0]
    return student


def scale(student, t):
    """r(t), by the definition of a Bezier curve."""
    noise, points = student.noise, torch.cat([torch.zeros(1), student.curve.detach(), torch.zeros(1)]).double()
    low, high, lam = (noise.lambda_(torch.as_tensor(at, dtype=torch.float64)) for at in (noise.T, noise.t_min, t))
    w = (lam - low) / (high - low)
    return sum(comb(31, k) * w**k * (1 - w) ** (31 - k) * points[k] for k in range(32)).exp()


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
def test_it_is_euler_on_the_path_with_other_alpha_and_sigma(key):
    """d(r x)/dt = (r alpha)' D + (r sigma)' eps, with the derivatives by autograd."""
    noise, x_T = NOISES[key], noises(scale=NOISES[key].sigma_T)
    student = bent(noise, 5)
    table = student().detached()
    x = x_T
    for s, u in zip(table.t[:-1], table.t[1:], strict=True):
        D = wavy(x, s)
        eps = (x - noise.alpha(s) * D) / noise.sigma(s)
        rates = []
        for of in (noise.alpha, noise.sigma):
            at = s.clone().requires_grad_()
            (rate,) = torch.autograd.grad(scale(student, at) * of(at), at)
            rates.append(rate)
        x = (scale(student, s) * x + (u - s) * (rates[0] * D + rates[1] * eps)) / scale(student, u)
    torch.testing.assert_close(sample(lambda x, t, c: wavy(x, t), table, x_T), x, rtol=1e-9, atol=1e-9)


def test_with_many_steps_every_path_ends_at_the_same_samples():
    noise, x_T = NOISES["flow"], noises(scale=NOISES["flow"].sigma_T)
    straight = sample(lambda x, t, c: wavy(x, t), registry.make("heun", "logsnr", noise, 2000), x_T)
    gaps = []
    for nfe in (200, 400):
        student = Bezier("ipndm_v_2", noise, timesteps.build("logsnr", noise, nfe))
        with torch.no_grad():
            student.curve += 0.3
        gaps.append((sample(lambda x, t, c: wavy(x, t), student().detached(), x_T) - straight).abs().max().item())
    assert gaps[1] < 0.6 * gaps[0]


@pytest.mark.parametrize("solver", ["ddim", "ipndm", "unipc_bh2", "dpmpp_3m"])
def test_solvers_that_do_not_see_a_scale_are_refused(solver):
    with pytest.raises(UserError, match="does not see a scale of the states: use euler or ipndm_v"):
        Bezier(solver, NOISES["ve"], timesteps.build("edm", NOISES["ve"], 4))
