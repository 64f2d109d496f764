"""Learned amounts of fresh noise: the family adasde."""

import pytest
import torch
from support import fits
from support.parameters import changed, mistake
from support.problems import NOISES, noises, wavy

from s4spipe.learning import distance, objective, reward
from s4spipe.learning.families import AdaSDE, Banded, Times
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau.basis import Bands
from s4spipe.solvers import registry, timesteps


def student(noise, nfe, learn_times=False, v=0.3):
    t = timesteps.build("edm", noise, (nfe + 1) // 2)
    made = AdaSDE("dpm_2s", noise, t, nfe, Times(noise, t) if learn_times else None)
    with torch.no_grad():
        made.v += v
        made.midpoints += 0.3 * noises(len(made.midpoints), 1, seed=4)
    return made


@pytest.mark.parametrize("nfe", [4, 5, 6])
@pytest.mark.parametrize("key", NOISES)
def test_it_is_the_papers_algorithm(key, nfe):
    """Written out in y = x / alpha, with rho = sigma / alpha."""
    noise, of = NOISES[key], student(NOISES[key], nfe)
    table, x_T = of().detached(), noises(scale=NOISES[key].sigma_T)
    z = [noises(seed=30 + k) for k in range(table.draws)]
    assert (table.nfe, table.draws, table.t_z) == (nfe, (nfe + 1) // 2 - 1, None)

    def eps(y, rho):
        at = noise.inverse(-torch.log(rho)).clamp(noise.t_min, noise.T)
        return (y - wavy(noise.alpha(at) * y, at)) / rho

    rho, y = torch.exp(-noise.lambda_(table.t)), x_T / noise.alpha(table.t[0])
    for i in range(len(rho) - 1):
        s, u = rho[i], rho[i + 1]
        if i > 0:
            g = of.v[i - 1].detach() ** 2
            y = y + ((1 + g) ** 2 * s**2 - s**2).sqrt() * z[i - 1]
            s = (1 + g) * s
        if 2 * i + 1 == nfe:
            y = y + (u - s) * eps(y, s)
            continue
        shift, a, b = of.midpoints[i].detach()
        r = torch.sigmoid(shift)
        middle = u**r * s ** (1 - r)
        inner = eps(y + (middle - s) * eps(y, s), (1 + 0.2 * torch.tanh(b)) * middle)
        y = y + (u - s) * (1 + 0.05 * torch.tanh(a)) * inner
    y = noise.alpha(table.t[-1]) * y
    torch.testing.assert_close(sample(lambda x, t, c: wavy(x, t), table, x_T, z=z), y, rtol=1e-9, atol=1e-9)


def test_noise_that_leaves_the_data_as_they_are_keeps_their_variance():
    """For data at 0, D = 0, and the state is pure noise: each step ends at its own level whatever it adds."""
    noise = NOISES["ve"]
    table = student(noise, 6).forward().detached()
    zero = AdaSDE("dpm_2s", noise, table.t, 6)
    with torch.no_grad():
        zero.v += 0.4
    table = zero().detached()
    end = torch.cat([table.c[-1:] * table.noise.sigma_T, table.V[-1]])
    assert end.square().sum().sqrt().item() == pytest.approx(noise.t_min, rel=1e-9)


def test_without_noise_it_draws_none():
    with torch.no_grad():
        assert student(NOISES["ve"], 5, v=0.0)().V is None
    with torch.no_grad():
        assert student(NOISES["ve"], 5)().draws == 2


def test_an_evolution_learns_it(tmp_path):
    t = timesteps.build("logsnr", fits.NOISE, 3)
    of = AdaSDE("dpm_2s", fits.NOISE, t, 5, Times(fits.NOISE, t))
    net = fits.Net()
    goals = [objective.Imitation(objective.Samples(net, fits.pairs(60, seed, net), 25), distance.l2) for seed in (1, 2)]
    settings = reward.Settings(12, 8, 0.05, seed=0)
    history = reward.evolve_parameters(of, *goals, settings, Scratch(tmp_path))
    assert history[-1]["validation"] < history[0]["validation"]
    with torch.no_grad():
        assert goals[1](of()) == pytest.approx(min(row["validation"] for row in history))


def test_fresh_noises_are_those_of_a_pair_in_any_batch():
    like = torch.zeros(5, 2, 3)
    whole = objective.fresh(torch.arange(5), like, 3)
    assert whole.shape == (3, 5, 2, 3)
    assert torch.equal(objective.fresh(torch.tensor([3, 1]), like[:2], 2), whole[:2, [3, 1]])
    assert objective.fresh(torch.arange(5), like, 0) == ()
    assert whole.std().item() == pytest.approx(1, abs=0.3)


def test_it_starts_from_dpm_2s_alone():
    with pytest.raises(UserError, match="adasde starts from dpm_2s, not 'dpmpp_2s'"):
        AdaSDE("dpmpp_2s", NOISES["ve"], timesteps.build("edm", NOISES["ve"], 3), 6)
    with pytest.raises(UserError, match="dpm_2s with 4 evaluations takes 2 steps, got 3"):
        AdaSDE("dpm_2s", NOISES["ve"], timesteps.build("edm", NOISES["ve"], 3), 4)


def test_it_starts_exactly_there():
    start = registry.make("dpm_2s", "edm", NOISES["flow"], 5)
    assert torch.allclose(AdaSDE("dpm_2s", start.noise, start.t, 5)().W, start.W, rtol=1e-12, atol=1e-12)


def test_it_cannot_be_refined():
    block = {"family": "adasde", "learns": "joint", "optimizer": "evolution", "distance": "frechet", "radius": 0.0}
    said = mistake(changed(("learners.gn", block), ("refined", ["gn"])))
    assert said == "refined: gn adds fresh noise, which no refinement learns; list it in `learned`"


def test_it_has_no_weights_by_frequency():
    start = registry.make("dpm_2s", "edm", NOISES["ve"], 4)
    with pytest.raises(UserError, match="adds fresh noise has no weights by frequency"):
        Banded.of("adasde", start, None, Bands((1.0,)))
