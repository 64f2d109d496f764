"""Solvers that add noise: against diffusers' schedulers with the same noises, and their law on Gaussian data."""

import math
import sys
import types

import diffusers
import pytest
import torch
from support.problems import NOISES, Gaussian, moments, noises, wavy
from support.tables import drawn
from test_convergence import graded

from s4spipe.noise import VE, Flow, VPLinear
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry, stochastic, timesteps
from s4spipe.solvers.symbolic import Trace

NOISY = [name for name, solver in registry.CLASSICAL.items() if solver.noisy]
NFES = [1, 2, 3, 8, 14]
PAIR = {"ve": ("logsnr", 8), "vp_discrete": ("time_uniform", 8), "flow": ("time_uniform", 8)}


def ours(solver, noise, t, z, nfe=None):
    table = registry.build(solver, noise, t, nfe=nfe) if isinstance(solver, str) else solver
    return sample(wavy, table, noises(scale=noise.sigma_T), z=z)


def theirs(scheduler, steps, start, predict, z, monkeypatch):
    """Run a scheduler, whose own sigmas have been replaced, with these noises; `predict(x, i)` is what it is given as
    the network's output of evaluation i."""
    queue = iter(z)
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_args, **_options: next(queue), raising=False)
    scheduler._step_index, x = 0, start
    for i in range(steps):
        x = scheduler.step(predict(x, i), scheduler.timesteps[i], x).prev_sample
    return x


def agree(a, b, rtol=1e-5):
    assert (a - b).abs().max() <= rtol * b.abs().max()


def grid(key, nfe):
    noise = NOISES[key]
    return noise, timesteps.build(PAIR[key][0], noise, nfe)


PLAIN = {"prediction_type": "sample", "final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("key", ["vp_discrete", "flow"])
def test_dpmpp_2m_sde_is_diffusers(key, order, nfe, monkeypatch):
    (noise, t), z = grid(key, nfe), drawn(nfe, 4, 3, seed=1)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, algorithm_type="sde-dpmsolver++", use_flow_sigmas=key == "flow", **PLAIN
    )
    scheduler.set_timesteps(nfe)
    scheduler.sigmas = noise.sigma(t) if key == "flow" else noise.sigma(t) / noise.alpha(t)
    start = noises(scale=noise.sigma_T)
    end = theirs(scheduler, nfe, start, lambda x, i: wavy(x, t[i]), z, monkeypatch)
    agree(ours(f"dpmpp_2m_sde_{order}", noise, t, z), end)


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("key", ["vp_discrete", "flow"])
def test_sa_solver_is_diffusers(key, order, nfe, monkeypatch):
    """With tau = 1 at all times, and as many points in the corrector as in the predictor."""
    (noise, t), z = grid(key, nfe), drawn(nfe, 4, 3, seed=1)
    scheduler = diffusers.SASolverScheduler(
        predictor_order=order, corrector_order=order, tau_func=lambda t: 1, use_flow_sigmas=key == "flow",
        prediction_type="sample",
    )  # fmt: skip
    scheduler.set_timesteps(nfe)
    scheduler.sigmas = noise.sigma(t) if key == "flow" else noise.sigma(t) / noise.alpha(t)
    start = noises(scale=noise.sigma_T)
    end = theirs(scheduler, nfe, start, lambda x, i: wavy(x, t[i]), z, monkeypatch)
    agree(ours(f"sa_solver_{order}", noise, t, z), end)


@pytest.mark.parametrize("tau", [0.4, 1.6])
def test_sa_solver_with_another_tau_is_diffusers(tau, monkeypatch):
    (noise, t), z = grid("vp_discrete", 8), drawn(8, 4, 3, seed=1)
    scheduler = diffusers.SASolverScheduler(
        predictor_order=3, corrector_order=3, tau_func=lambda t: torch.tensor(tau), prediction_type="sample"
    )
    scheduler.set_timesteps(8)
    scheduler.sigmas = noise.sigma(t) / noise.alpha(t)
    end = theirs(scheduler, 8, noises(scale=noise.sigma_T), lambda x, i: wavy(x, t[i]), z, monkeypatch)
    agree(ours(stochastic.sa_solver(noise, t, 3, tau).tableau(noise, t, "sa"), noise, t, z), end)


def in_ve(noise, t):
    """The sigmas of a k-diffusion scheduler, x of ours as one of theirs, and its network's output."""
    rho, alpha = noise.sigma(t) / noise.alpha(t), noise.alpha(t)
    return rho, lambda y, s: (y - wavy(noise.alpha(s) * y, s)) / (noise.sigma(s) / noise.alpha(s)), alpha


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("key", ["ve", "vp_discrete"])
def test_ddim_with_eta_1_is_euler_ancestral(key, nfe, monkeypatch):
    (noise, t), z = grid(key, nfe), drawn(nfe, 4, 3, seed=1)
    rho, eps, alpha = in_ve(noise, t)
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(nfe)
    scheduler.sigmas, scheduler.is_scale_input_called = rho, True
    start = noises(scale=noise.sigma_T) / alpha[0]
    end = alpha[-1] * theirs(scheduler, nfe, start, lambda y, i: eps(y, t[i]), z, monkeypatch)
    agree(ours("ddim_eta", noise, t, z), end, 2e-5)  # its states are float32
    for other in ("ddim_eta_100", "dpmpp_2m_sde_1"):
        torch.testing.assert_close(ours(other, noise, t, z), ours("ddim_eta", noise, t, z))
    flow, times = grid("flow", nfe)
    assert registry.build("ddim_eta", flow, times).V[-1, -1] == pytest.approx(  # and what the formula says, on flow
        float(times[-1] * (1 - ((1 - times[-2]) * times[-1] / times[-2] / (1 - times[-1])) ** 2) ** 0.5)
    )


@pytest.mark.parametrize("percent", [1, 50, 100])
def test_ddim_with_eta_is_diffusers(percent):
    """On its own steps, each of which it takes to be as long as all others."""
    noise, nfe, z = NOISES["vp_discrete"], 8, drawn(8, 4, 3, seed=1)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        prediction_type="sample",
    )  # fmt: skip
    scheduler.alphas_cumprod = torch.tensor(noise.alphas_cumprod, dtype=torch.float64)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(nfe)
    t = torch.tensor([*scheduler.timesteps.tolist(), 0], dtype=torch.float64)
    t = t[:-1] if t[-2] == 0 else t
    x = start = noises()
    for i, timestep in enumerate(scheduler.timesteps[: len(t) - 1]):
        x = scheduler.step(wavy(x, t[i]), timestep, x, eta=percent / 100, variance_noise=z[i]).prev_sample
    table = registry.build(f"ddim_eta_{percent}", noise, t)
    agree(sample(wavy, table, start, z=z[: len(t) - 1]), x, 1e-9)


@pytest.mark.parametrize("nfe", [2, 4, 10, 16])
@pytest.mark.parametrize("key", ["ve", "vp_discrete"])
def test_dpmpp_sde_is_diffusers(key, nfe, monkeypatch):
    """Its noises, of which it takes one for each half of a step and one for the whole, along one path in the clock of
    the signal-to-noise ratio. torchsde, which its own noises need, is not installed here."""
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    noise, t = grid(key, nfe // 2)
    rho, eps, alpha = in_ve(noise, t)
    z = drawn(nfe, 4, 3, seed=1)
    table = registry.build("dpmpp_sde", noise, t, nfe=nfe)
    clock = torch.exp(2 * noise.lambda_(table.t_z))
    path = torch.cumsum(torch.cat([0 * z[:1], clock.diff().sqrt()[:, None, None] * z]), 0)

    def increment(sigma, sigma_next):
        i, j = ((sigma_**-2 - clock).abs().argmin() for sigma_ in (sigma, sigma_next))
        return (path[j] - path[i]) / (clock[j] - clock[i]).sqrt()

    scheduler = DPMSolverSDEScheduler()
    scheduler.set_timesteps(nfe)
    scheduler.sigmas, scheduler.noise_sampler = torch.cat([rho[:1], rho[1:].repeat_interleave(2)]), increment
    start = noises(scale=noise.sigma_T) / alpha[0]
    scheduler.timesteps = torch.arange(nfe)
    end = alpha[-1] * theirs(scheduler, nfe, start, lambda y, i: eps(y, table.t_c[i]), [], monkeypatch)
    agree(ours("dpmpp_sde", noise, t, z, nfe), end)


@pytest.mark.parametrize("key", NOISES)
def test_without_noise_they_are_the_odes_to_the_bit(key):
    noise = NOISES[key]
    t = timesteps.build("edm", noise, 9)
    table, plain = stochastic.ddim_eta(noise, t, 0).tableau(noise, t, "x"), registry.build("ddim", noise, t)
    assert torch.equal(table.W, plain.W)
    assert torch.equal(table.c, plain.c)
    assert not table.V.any()
    quiet = stochastic.sa_solver(noise, t, 3, tau=0.0)  # from three points on, their exact integrals
    assert not quiet.tableau(noise, t, "x").V.any()
    torch.testing.assert_close(quiet.b[2:-2], registry.coefficients("adams_bashforth_3", noise, t).b[2:-2])


# Of the variance; the mean is exact, as the denoiser is constant along the mean's path.
WEAK = {"ddim_eta": 1, "ddim_eta_50": 1, "dpmpp_2m_sde_1": 1, "dpmpp_sde": 2, "dpmpp_2m_sde": 2, "sa_solver": 2,
        "sa_solver_3": 2}  # fmt: skip


@pytest.mark.parametrize("noise", [VE(0.05, 20.0), VPLinear(t_min=0.05), Flow(0.02, 0.98)], ids=["ve", "vp", "flow"])
@pytest.mark.parametrize(("solver", "order"), WEAK.items())
def test_the_law_of_samples_of_gaussian_data_converges(solver, order, noise):
    problem, errors = Gaussian(noise), []
    mean, variance = problem.marginal(noise.t_min)
    for nfe in (100, 200):
        found, spread = moments(problem, registry.build(solver, noise, graded(noise, nfe)))
        assert found.item() == pytest.approx(mean.item(), abs=1e-12)
        errors.append(abs(spread - variance).item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_these_moments_are_those_of_many_samples():
    """Of a few steps, whose law is far from the data's."""
    noise, count = VE(0.05, 20.0), 40_000
    problem, table = Gaussian(noise), registry.make("sa_solver", "edm", VE(0.05, 20.0), 3)
    start, spread = problem.marginal(noise.T)
    x_T = start + spread.sqrt() * drawn(count, 1)
    end = sample(problem, table, x_T, z=drawn(3, count, 1, seed=1))
    mean, variance = moments(problem, table)
    assert end.mean().item() == pytest.approx(mean.item(), abs=5 * (variance / count).sqrt().item())
    assert end.var().item() == pytest.approx(variance.item(), rel=0.03)
    assert abs(variance / problem.marginal(noise.t_min)[1] - 1) > 0.1


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("solver", NOISY)
def test_where_the_denoiser_is_constant_it_adds_up_the_path(solver, key):
    """D = m: alpha x / sigma^2 grows by m and by Brownian motion in the signal-to-noise ratio, whatever the steps."""
    noise = NOISES[key]
    table, x_T, m = registry.make(solver, "edm", noise, 6), noises(scale=noise.sigma_T), 0.7
    z = drawn(table.draws, 4, 3, seed=1)
    alpha, sigma, clock = noise.alpha(table.t), noise.sigma(table.t), torch.exp(2 * noise.lambda_(table.t_z))
    path = (clock.diff().sqrt()[:, None, None] * z).sum(0)
    start = alpha[0] / sigma[0] ** 2 * x_T
    exact = sigma[-1] ** 2 / alpha[-1] * (start + (clock[-1] - clock[0]) * m + path)
    torch.testing.assert_close(sample(lambda x, t, c: torch.full_like(x, m), table, x_T, z=z), exact)


def test_in_a_pipelines_loop_it_is_the_projects_own():
    """As `S4SScheduler` runs it, with the noises of the pipeline's generator."""
    noise = NOISES["vp_discrete"]
    for solver in NOISY:
        table = registry.make(solver, "time_uniform", noise, 4)
        scheduler = S4SScheduler.from_tableau(table)
        scheduler.set_timesteps(4)
        x_T = noises().float()
        x, generator = x_T, torch.manual_seed(0)
        for i, t in enumerate(scheduler.timesteps):
            d = wavy(x.double(), table.t_c[i])
            eps = (x - noise.alpha(table.t_c[i]) * d) / noise.sigma(table.t_c[i])
            x = scheduler.step(eps.float(), t, x, generator=generator).prev_sample
        torch.manual_seed(0)
        z = torch.stack([torch.randn(x_T.shape) for _ in range(table.draws)])
        torch.testing.assert_close(x, sample(wavy, table, x_T, z=z), rtol=1e-3, atol=1e-3)


def test_what_noise_the_table_says_it_is():
    noise, t = VE(), timesteps.build("edm", VE(), 4)
    assert torch.equal(registry.build("sa_solver", noise, t).t_z, t)
    halves = registry.build("dpmpp_sde", noise, t, nfe=7).t_z
    assert torch.equal(halves[[0, 2, 4, 6, 7]], t)
    torch.testing.assert_close(halves[1], (t[0] * t[1]).sqrt())


@pytest.mark.parametrize(("name", "says"), [("ddim_eta_101", "eta in percent 1 to 100, got 101"),
                                            ("dpmpp_2m_sde_3", "order 1 or 2, got 3")])  # fmt: skip
def test_a_number_that_it_does_not_have_is_told(name, says):
    with pytest.raises(UserError, match=says):
        registry.parse(name)


def test_a_noise_begins_where_the_last_one_ended():
    net, t = Trace(VE(), 2), torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    net.fresh(t[0], t[1])
    with pytest.raises(ValueError, match="ended at 2, and this one begins at 3"):
        net.fresh(t[0], t[2])
