"""Mean-reverting processes: two forms that agree, and the closed forms of VP noise and of Gaussian data."""

import pytest
import torch
from support.problems import NOISES, noises
from support.tables import banded, drawn

from s4spipe.noise import VE, Flow
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.mean_reverting import around, centered
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import Bands
from s4spipe.solvers import registry

NOISE = NOISES["vp_cosine"]
MU, SIGMA_INF = drawn(3, 4, 4, seed=5), 0.3
SOLVERS = ["ddim", "dpmpp_2m", "heun", "unipc_bh2", "parallel_midpoints", "ipndm_afs", "dpmpp_sde", "sa_solver"]


def net(x, t, condition=None):
    """Smooth, and no function of x - mu."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    return torch.tanh(1.2 * x + torch.sin(t)) + 0.1 * x.roll(1, -1)


def table_of(solver, nfe=4):
    return banded(NOISE, Bands((0.6, 1.1))) if solver == "bands" else registry.make(solver, "logsnr", NOISE, nfe)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [*SOLVERS, "bands"])
def test_the_two_forms_agree(solver):
    table, v = table_of(solver), drawn(2, 3, 4, 4)
    z = drawn(table.draws, 2, 3, 4, 4, seed=1)
    mine = sample(net, around(table, MU, SIGMA_INF), MU + SIGMA_INF * v, z=z)
    close(mine, MU + SIGMA_INF * sample(centered(net, MU, SIGMA_INF), table, v, z=z))
    assert (mine - sample(net, table, v, z=z)).abs().max() > 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_around_0_with_variance_1_it_is_vp(solver):
    table, v = table_of(solver), drawn(2, 3, 4, 4)
    z = drawn(table.draws, 2, 3, 4, 4, seed=1)
    plain, mu = sample(net, table, v, z=z), torch.zeros(1, dtype=torch.float64)
    close(sample(net, around(table, mu, 1.0), v, z=z), plain)
    close(sample(centered(net, mu, 1.0), table, v, z=z), plain)


def test_order_1_is_the_papers_update():
    """The step in the data prediction, written out: the exact solution for a constant prediction."""
    table = table_of("ddim")
    a, sigma = NOISE.alpha(table.t), SIGMA_INF * NOISE.sigma(table.t)
    x_T = x = MU + SIGMA_INF * drawn(2, 3, 4, 4)
    for i in range(table.nfe):
        h = torch.log(a[i + 1] / sigma[i + 1]) - torch.log(a[i] / sigma[i])
        D = net(x, table.t[i])
        x = sigma[i + 1] / sigma[i] * (x - MU) + MU + a[i + 1] * (1 - torch.exp(-h)) * (D - MU)
    close(sample(net, around(table, MU, SIGMA_INF), x_T), x)


def test_it_solves_the_flow_of_gaussian_data():
    """Data N(m, s^2) under x_t = a x_0 + (1 - a) mu + sigma eps: the flow keeps the standardised state."""
    m, s, mu = 0.4, 0.25, torch.tensor([0.8, -0.5, 0.1], dtype=torch.float64)

    def marginal(t):
        a, sigma = NOISE.alpha(t), SIGMA_INF * NOISE.sigma(t)
        return a, a * m + (1 - a) * mu, (a**2 * s**2 + sigma**2).sqrt()

    def denoiser(x, t, condition):
        a, mean, std = marginal(t)
        return m + a * s**2 / std**2 * (x - mean)

    x_T = mu + SIGMA_INF * noises()
    (_, mean, std), (_, mean_0, std_0) = (marginal(torch.tensor(t).double()) for t in (NOISE.T, NOISE.t_min))
    exact = mean_0 + std_0 * (x_T - mean) / std
    coarse, fine = ((sample(denoiser, around(table_of("dpmpp_2m", n), mu, SIGMA_INF), x_T) - exact).norm().item()
                    for n in (40, 160))  # fmt: skip
    assert fine < 1e-3
    assert coarse / fine > 4**1.7  # of order 2


@pytest.mark.parametrize("solver", ["ddim", "parallel_midpoints"])
def test_every_sample_may_have_its_own_mu(solver):
    """Also where a call joins several evaluations."""
    table, v, mu = table_of(solver), drawn(3, 3, 4, 4), drawn(3, 3, 4, 4, seed=2)
    together = sample(centered(net, mu, SIGMA_INF), table, v)
    for i in range(3):
        close(together[i : i + 1], sample(centered(net, mu[i], SIGMA_INF), table, v[i : i + 1]))


def test_the_solver_is_kept_in_a_file(tmp_path):
    table = around(table_of("ddim_eta"), MU, SIGMA_INF)
    table.save(tmp_path / "solver.json")
    assert Tableau.load(tmp_path / "solver.json").agrees(table, 0)


@pytest.mark.parametrize("noise", [VE(), Flow()])
def test_other_noise_is_refused(noise):
    with pytest.raises(UserError, match=f"variance-preserving .* on {type(noise).__name__} noise"):
        around(registry.make("ddim", "logsnr", noise, 3), MU, 1.0)


@pytest.mark.parametrize(
    ("mu", "sigma_inf", "said"),
    [(0.5, 1.0, "mu must be a tensor"), (MU / 0, 1.0, "finite"), (MU, 0.0, "positive"), (MU, "1", "positive"),
     (MU.int(), 1.0, "floating-point")],
)  # fmt: skip
def test_mistakes_are_told(mu, sigma_inf, said):
    for make in (lambda: around(table_of("ddim"), mu, sigma_inf), lambda: centered(net, mu, sigma_inf)):
        with pytest.raises(UserError, match=said):
            make()


def test_what_does_not_go_together_is_told():
    with pytest.raises(UserError, match="adds a constant already"):
        around(around(table_of("ddim"), MU, 1.0), MU, 1.0)
    with pytest.raises(UserError, match="needs a Tableau"):
        around("ddim", MU, 1.0)
    with pytest.raises(UserError, match="a denoiser that can be called"):
        centered(None, MU, 1.0)
    with pytest.raises(UserError, match="the denoiser"):
        sample(centered(lambda x, t, c: None, MU, 1.0), table_of("ddim"), drawn(2, 3, 4, 4))
    for mu in (drawn(3, 5, 5), drawn(3, 3, 4, 4)):  # another size; three rows for two samples
        with pytest.raises(UserError, match=r"mu must go with samples of shape \[2, 3, 4, 4\]"):
            sample(centered(net, mu, 1.0), table_of("ddim"), drawn(2, 3, 4, 4))
