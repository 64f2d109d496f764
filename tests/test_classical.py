"""Classical solvers against the papers' updates written out in x, against diffusers, and against known answers."""

from functools import partial

import numpy as np
import pytest
import torch
from problems import BETAS, NOISES, Gaussian, noises, wavy

from s4spipe import classical, steps
from s4spipe.errors import UserError
from s4spipe.noise import VE
from s4spipe.sampling import sample

SOLVERS = list(classical.CLASSICAL)


# -- The same solvers, in x -------------------------------------------------------------------------


def ddim_in_x(noise, t, x):
    for s, u in zip(t[:-1], t[1:], strict=True):
        d = wavy(x, s)
        eps = (x - noise.alpha(s) * d) / noise.sigma(s)
        x = noise.alpha(u) * d + noise.sigma(u) * eps
    return x


def dpmpp_in_x(noise, t, x, order):
    lam, n, history = noise.lambda_(t), len(t) - 1, []
    for i in range(n):
        history.append(wavy(x, t[i]))
        p, h = min(order, i + 1, n - i), lam[i + 1] - lam[i]
        ratio, alpha, D0 = noise.sigma(t[i + 1]) / noise.sigma(t[i]), noise.alpha(t[i + 1]), history[-1]
        p1 = torch.expm1(-h)
        x = ratio * x - alpha * p1 * D0
        if p >= 2:
            r0 = (lam[i] - lam[i - 1]) / h
            a = (D0 - history[-2]) / r0
            if p == 2:
                x = x - alpha * p1 / 2 * a
            else:
                r1 = (lam[i - 1] - lam[i - 2]) / h
                b = (history[-2] - history[-3]) / r1
                E2 = (a - b) / (r0 + r1)
                E1 = a + r0 * E2
                p2 = p1 / h + 1
                p3 = p2 / h - 0.5
                x = x + alpha * (p2 * E1 - p3 * E2)
    return x


def ipndm_in_x(noise, t, x, order):
    """On VE noise, as Adams-Bashforth over sigma on dx/dsigma = (x - D)/sigma."""
    rows = ([1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12])
    history = []
    for s, u in zip(t[:-1], t[1:], strict=True):
        history.insert(0, (x - wavy(x, s)) / s)
        x = x + (u - s) * sum(w * d for w, d in zip(rows[min(order, len(history)) - 1], history, strict=False))
    return x


def unipc_in_x(noise, t, x, order, variant):
    """UniPC as its authors publish it, predictor and corrector, with numpy's solver."""
    lam, n = noise.lambda_(t), len(t) - 1

    def weights(i, p, corrector):
        h = float(lam[i + 1] - lam[i])
        hh = -h
        B = {"bh1": hh, "bh2": np.expm1(hh)}[variant]
        r = [float(lam[i - k] - lam[i]) / h for k in range(1, p)] + [1.0]
        R = np.array([[rk**j for rk in r] for j in range(p)])
        b, q, factorial = [], np.expm1(hh) / hh - 1, 1
        for j in range(1, p + 1):
            b.append(q * factorial / B)
            factorial *= j + 1
            q = q / hh - 1 / factorial
        if corrector:
            return r, B, [0.5] if p == 1 else np.linalg.solve(R, np.array(b))
        return r, B, [0.5] if p == 2 else np.linalg.solve(R[:-1, :-1], np.array(b)[:-1])

    history = [wavy(x, t[0])]
    for i in range(n):
        p, h, alpha = min(order, i + 1, n - i), lam[i + 1] - lam[i], noise.alpha(t[i + 1])
        D0 = history[-1]
        base = noise.sigma(t[i + 1]) / noise.sigma(t[i]) * x - alpha * torch.expm1(-h) * D0
        r, B, rho = weights(i, p, corrector=False)
        differences = [(history[-1 - k] - D0) / r[k - 1] for k in range(1, p)]
        predicted = base - alpha * B * sum(w * d for w, d in zip(rho, differences, strict=True))
        if i == n - 1:
            return predicted
        new = wavy(predicted, t[i + 1])
        _, B, rho = weights(i, p, corrector=True)
        x = base - alpha * B * sum(w * d for w, d in zip(rho, [*differences, new - D0], strict=True))
        history.append(new)


IN_X = {
    "ddim": ddim_in_x,
    "dpmpp_2m": lambda *a: dpmpp_in_x(*a, order=2),
    "dpmpp_3m": lambda *a: dpmpp_in_x(*a, order=3),
    "ipndm": lambda *a: ipndm_in_x(*a, order=3),
    "unipc_bh1": lambda *a: unipc_in_x(*a, order=3, variant="bh1"),
    "unipc_bh2": lambda *a: unipc_in_x(*a, order=3, variant="bh2"),
}


@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 10, 20])
@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_tableau_is_the_papers_update(solver, key, nfe):
    noise = NOISES[key]
    if solver == "ipndm" and key != "ve":
        pytest.skip("written out above for VE only")
    t = steps.build("logsnr", noise, nfe)
    x_T = noises(scale=noise.sigma_T)
    scale = noise.T if key == "vp_discrete" else 1.0  # keep the test function smooth in the table's index

    def denoiser(x, s, condition):
        return wavy(x, s / scale)

    expected = IN_X[solver](Scaled(noise, scale), t / scale, x_T)
    torch.testing.assert_close(sample(denoiser, classical.build(solver, noise, t), x_T), expected, rtol=1e-9, atol=1e-9)


class Scaled:
    """A noise schedule read in units of its table's length."""

    def __init__(self, noise, scale):
        self.noise, self.scale = noise, scale

    def __getattr__(self, name):
        return lambda t: getattr(self.noise, name)(t * self.scale)


# -- diffusers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", [3, 5, 8, 14])
@pytest.mark.parametrize(("solver", "order"), [("dpmpp_2m", 2), ("dpmpp_3m", 3)])
def test_dpmpp_is_that_of_diffusers_on_edm(solver, order, nfe):
    """Convention: diffusers' last step goes to sigma = 0; ours, of order 1 too, to a sigma too small to differ.

    Below 15 steps diffusers lowers the order at the end, as ours does. Its table of sigmas is widened to float64.
    """
    from diffusers import EDMDPMSolverMultistepScheduler

    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=0.5, solver_order=order, final_sigmas_type="zero")
    scheduler.set_timesteps(nfe)
    scheduler.sigmas = scheduler.sigmas.double()
    sigmas = scheduler.sigmas.clone()
    sigmas[-1] = 1e-7
    x_T = noises(scale=80.0)
    x = x_T.clone()
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        # The scheduler applies EDM's preconditioning to the network's output: hand it what gives our D.
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        x = scheduler.step((wavy(x, sigma) - c_skip * x) / c_out, timestep, x).prev_sample
    ours = sample(lambda x, t, c: wavy(x, t), classical.build(solver, VE(1e-7, 80.0), sigmas), x_T)
    torch.testing.assert_close(ours, x.double(), rtol=0, atol=80e-6)  # its float32 x_T


@pytest.mark.parametrize("nfe", [3, 5, 8, 20])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_is_that_of_diffusers_on_vp(variant, nfe):
    """Convention: its `lower_order_final`, no thresholding, and its float32 timesteps, which are taken over here."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        trained_betas=BETAS.numpy(), solver_order=3, solver_type=variant, prediction_type="sample",
        lower_order_final=True, final_sigmas_type="sigma_min", timestep_spacing="linspace",
    )  # fmt: skip
    scheduler.set_timesteps(nfe)
    noise = NOISES["vp_discrete"]
    t = torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    x_T = noises()
    x = x_T.clone()
    for timestep in scheduler.timesteps:
        x = scheduler.step(wavy(x, timestep.double() / 1000), timestep, x).prev_sample
    tableau = classical.build(f"unipc_{variant}", noise, t)
    ours = sample(lambda x, s, c: wavy(x, s / 1000), tableau, x_T)
    torch.testing.assert_close(ours, x.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nfe", [3, 5, 10])
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 3)])
def test_dpmpp_is_that_of_diffusers_on_vp(solver, order, nfe):
    """Convention: as above; below 15 steps diffusers lowers the order at the end too."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        trained_betas=BETAS.numpy(), solver_order=order, prediction_type="sample", algorithm_type="dpmsolver++",
        solver_type="midpoint", lower_order_final=True, final_sigmas_type="sigma_min", timestep_spacing="linspace",
    )  # fmt: skip
    scheduler.set_timesteps(nfe)
    t = torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    x_T = noises()
    x = x_T.clone()
    for timestep in scheduler.timesteps:
        x = scheduler.step(wavy(x, timestep.double() / 1000), timestep, x).prev_sample
    ours = sample(lambda x, s, c: wavy(x, s / 1000), classical.build(solver, NOISES["vp_discrete"], t), x_T)
    torch.testing.assert_close(ours, x.double(), rtol=1e-5, atol=1e-5)


# -- Order of convergence ---------------------------------------------------------------------------


def graded(noise, n):
    """Steps in lambda that start and end small, h ~ 1/n^2: what the low orders there cost is then of high order too."""
    share = 0.5 * (1 - torch.cos(torch.linspace(0, torch.pi, n + 1, dtype=torch.float64)))
    ends = noise.lambda_(torch.tensor([noise.T, noise.t_min], dtype=torch.float64))
    t = noise.inverse(ends[0] + share * (ends[1] - ends[0]))
    t[0], t[-1] = noise.T, noise.t_min
    return t


def errors(solver, noise, grid, ns):
    problem, x_T = Gaussian(noise), noises(scale=noise.sigma_T)
    exact = problem.solution(x_T, noise.t_min)
    return [(sample(problem, classical.build(solver, noise, grid(noise, n)), x_T) - exact).norm().item() for n in ns]


@pytest.mark.parametrize("key", ["ve", "vp_linear"])
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 2)])
def test_order_of_convergence_on_gaussian_data(solver, order, key):
    """(3M) is of order 2 as its authors publish it: see `classical.dpmpp`."""
    coarse, fine = errors(solver, VE(0.05, 20.0) if key == "ve" else NOISES[key], graded, (320, 640))
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("solver", ["unipc_bh1", "unipc_bh2"])
def test_unipc_gains_an_order_by_its_corrector(solver):
    coarse, fine = errors(solver, VE(0.05, 20.0), graded, (320, 640))
    assert np.log2(coarse / fine) == pytest.approx(4, abs=0.2)


def test_order_of_ipndm_on_equal_steps():
    """Its weights are exact for equal steps of sigma: order 3, until the first step's order 1 (2 globally) shows."""
    grid = partial(steps.build, "time_uniform")
    coarse, fine = errors("ipndm", VE(0.5, 3.0), grid, (40, 160))
    assert np.log2(coarse / fine) / 2 == pytest.approx(2.8, abs=0.2)


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_exact_where_the_denoiser_is_constant(solver, key):
    """D = m: the solution is alpha m + sigma (x_T - alpha_T m)/sigma_T, whatever the steps."""
    noise = NOISES[key]
    t = steps.build("edm", noise, 6)
    x_T, m = noises(scale=noise.sigma_T), 0.7
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    exact = alpha[-1] * m + sigma[-1] * (x_T - alpha[0] * m) / sigma[0]
    y = sample(lambda x, t, c: torch.full_like(x, m), classical.build(solver, noise, t), x_T)
    torch.testing.assert_close(y, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "t", "says"),
    [
        ("dpmpp_4m", [80.0, 1.0, 0.002], r"unknown classical solver 'dpmpp_4m': did you mean 'dpmpp_3m'\?"),
        ("ddim", [80.0, 0.1, 0.2], "falling strictly"),
        ("ddim", [80.0], "at least two times"),
        ("ddim", [90.0, 1.0, 0.002], r"within the noise schedule's times \[0.002, 80\]"),
    ],
)
def test_mistakes_are_told(name, t, says):
    with pytest.raises(UserError, match=says):
        classical.build(name, VE(), torch.tensor(t, dtype=torch.float64))
