"""Classical solvers against the papers' updates written out in x, and their coefficients against exact integrals."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.problems import NOISES, constants, noises, wavy

from s4spipe.sampling.loop import sample
from s4spipe.solvers import classical, registry, timesteps
from s4spipe.solvers.singlestep import ADAMS_BASHFORTH

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
@pytest.mark.parametrize("solver", IN_X)
def test_the_tableau_is_the_papers_update(solver, key, nfe):
    noise = NOISES[key]
    if solver == "ipndm" and key != "ve":
        pytest.skip("written out above for VE only")
    t = timesteps.build("logsnr", noise, nfe)
    x_T = noises(scale=noise.sigma_T)
    scale = noise.T if key == "vp_discrete" else 1.0  # keep the test function smooth in the table's index

    def denoiser(x, s, condition):
        return wavy(x, s / scale)

    expected = IN_X[solver](Scaled(noise, scale), t / scale, x_T)
    torch.testing.assert_close(sample(denoiser, registry.build(solver, noise, t), x_T), expected, rtol=1e-9, atol=1e-9)


class Scaled:
    """A noise schedule read in units of its table's length."""

    def __init__(self, noise, scale):
        self.noise, self.scale = noise, scale

    def __getattr__(self, name):
        return lambda t: getattr(self.noise, name)(t * self.scale)


def dpm_singlestep_in_x(noise, t, x, order, form):
    """As the papers write them, for steps of one order; x0 prediction or eps."""

    def predict(x, s):
        return wavy(x, s) if form == "data" else (x - noise.alpha(s) * wavy(x, s)) / noise.sigma(s)

    for s, u in zip(t[:-1], t[1:], strict=True):
        h = noise.lambda_(u) - noise.lambda_(s)

        def to(v, inner, s=s):
            """(x coefficient, weight of a constant prediction) of the exact solution from s to v."""
            a, b = (noise.sigma, noise.alpha) if form == "data" else (noise.alpha, noise.sigma)
            return a(v) / a(s), b(v) * (1 - torch.exp(-inner if form == "data" else inner))

        e0 = predict(x, s)
        if order == 2:
            v = noise.inverse(noise.lambda_(s) + h / 2)
            keep, weight = to(v, h / 2)
            e1 = predict(keep * x + weight * e0, v)
            keep, weight = to(u, h)
            x = keep * x + weight * e1  # r1 = 1/2: e0 + (e1 - e0)
        else:
            v, w = (noise.inverse(noise.lambda_(s) + share * h) for share in (1 / 3, 2 / 3))
            keep, weight = to(v, h / 3)
            e1 = predict(keep * x + weight * e0, v)
            keep, weight = to(w, 2 * h / 3)
            y = keep * x + weight * e0 - noise.sigma(w) * 2 * (torch.expm1(2 * h / 3) / (2 * h / 3) - 1) * (e1 - e0)
            e2 = predict(y, w)
            keep, weight = to(u, h)
            x = keep * x + weight * e0 - noise.sigma(u) * 1.5 * (torch.expm1(h) / h - 1) * (e2 - e0)
    return x


@pytest.mark.parametrize("key", ["ve", "vp_linear", "vp_cosine", "flow"])
@pytest.mark.parametrize(("solver", "order", "form"), [("dpm_2s", 2, "noise"), ("dpmpp_2s", 2, "data"),
                                                       ("dpm_3s", 3, "noise")])  # fmt: skip
def test_dpm_singlestep_is_the_papers_update(solver, order, form, key):
    noise = NOISES[key]
    t, x_T = timesteps.build("edm", noise, 4), noises(scale=noise.sigma_T)
    coefficients = registry.coefficients(solver, noise, t, [order] * 4)
    ours = sample(wavy, coefficients.tableau(noise, t, solver), x_T)
    torch.testing.assert_close(ours, dpm_singlestep_in_x(noise, t, x_T, order, form), rtol=1e-9, atol=1e-9)


# -- Exact quadrature -------------------------------------------------------------------------------

CLOCKS = {
    "deis_tab": lambda noise, lam: noise.inverse(lam),
    "deis_rhoab": lambda noise, lam: torch.exp(-lam),
    "deis_log": lambda noise, lam: lam,
    "adams_bashforth": lambda noise, lam: lam,
}


@pytest.mark.parametrize("nfe", [3, 8, 20])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("key", ["ve", "vp_linear", "vp_cosine", "flow"])
@pytest.mark.parametrize("solver", CLOCKS)
def test_deis_and_adams_bashforth_are_their_integrals(solver, key, order, nfe):
    """b_j = int l_j(u) dm / int dm over the step, m = rho (DEIS) or 1/rho; by numpy's polynomial arithmetic where u is
    the variable of integration (exact), by tanh-sinh quadrature in another variable elsewhere."""
    noise = NOISES[key]
    t = timesteps.build("edm", noise, nfe)
    lam = noise.lambda_(t)
    b = registry.coefficients(f"{solver}_{order}", noise, t).b
    clock = partial(CLOCKS[solver], noise)
    # Double exponential quadrature over rho^(+-1): h halved until it no longer matters is h = 1/32 here.
    s = torch.arange(-128, 129, dtype=torch.float64) / 32
    inner = torch.tanh(torch.pi / 2 * torch.sinh(s))
    mass = torch.pi / 2 * torch.cosh(s) / torch.cosh(torch.pi / 2 * torch.sinh(s)) ** 2
    sign = 1.0 if solver == "adams_bashforth" else -1.0
    for i in range(nfe):
        p = min(order, i + 1)
        known = clock(lam[i - p + 1 : i + 1]).flip(0)
        ends = torch.exp(sign * (lam[i : i + 2] - lam[i]))
        m = (ends.sum() + inner * (ends[1] - ends[0])) / 2
        at = clock(lam[i] + m.log() / sign)
        for j in range(p):
            others = [known[k] for k in range(p) if k != j]
            value = torch.ones_like(at)
            for other in others:
                value = value * (at - other) / (known[j] - other)
            expected = (mass * value).sum() / mass.sum()
            assert (b[i, j] - expected).abs() <= 1e-12 * b[i].abs().max().clamp(min=1)


@pytest.mark.parametrize("nfe", [4, 8, 20])
@pytest.mark.parametrize("order", [3, 4])
@pytest.mark.parametrize("key", ["ve", "vp_linear", "vp_cosine", "flow"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(("form", "clock"), [("data", "adams_bashforth"), ("noise", "deis_log")])
def test_the_predictor_of_unipc_is_the_exact_integral(form, clock, variant, key, order, nfe):
    """From order 3 on, where no weight is set to its limit, UniP interpolates in lambda and B(h) cancels."""
    noise = NOISES[key]
    t = timesteps.build("edm", noise, nfe)
    unip = classical.unipc(noise, t, order, variant, form, corrects=False, lower_order_final=False).b[2:]
    exact = registry.coefficients(f"{clock}_{order}", noise, t).b[2:]
    assert ((unip - exact).abs().amax(1) <= 1e-12 * exact.abs().amax(1).clamp(min=1)).all()


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_fdpm_is_ddim_with_the_prediction_at_the_end(steps, key):
    """Written out with DDIM's eq. 12 of Song et al. 2010.02502, its noise prediction made of a data prediction."""
    noise = NOISES[key]
    t = timesteps.build("edm", noise, steps)
    alpha, sigma = noise.alpha(t), noise.sigma(t)

    def ddim(x, data, i):
        return alpha[i + 1] * data + sigma[i + 1] * (x - alpha[i] * data) / sigma[i]

    x = noises(scale=noise.sigma_T)
    data = wavy(x, t[0])
    for i in range(steps):
        data = wavy(ddim(x, data, i), t[i + 1])
        x = ddim(x, data, i)
    table = registry.build("fdpm", noise, t)
    assert table.nfe == steps + 1
    torch.testing.assert_close(sample(wavy, table, noises(scale=noise.sigma_T)), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_of_the_velocity_is_ipndm_on_ve_and_adams_bashforth_elsewhere(order):
    same = [registry.make(f"{name}_{order}", "edm", NOISES["ve"], 6) for name in ("ipndm", "ipndm_v")]
    torch.testing.assert_close(same[0].W, same[1].W, rtol=1e-12, atol=1e-12)
    noise, x_T = NOISES["flow"], noises()
    t, past, x = timesteps.build("edm", noise, 6), [], x_T
    for i, h in enumerate(t.diff()):
        past.insert(0, (x - wavy(x, t[i])) / t[i])  # eps - D on the straight path
        x = x + h * sum(w * v for w, v in zip(ADAMS_BASHFORTH[min(order, i + 1) - 1], past, strict=False))
    torch.testing.assert_close(sample(wavy, registry.build(f"ipndm_v_{order}", noise, t), x_T), x)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_the_weights_of_equal_steps(order):
    """They integrate polynomials of a degree below the order exactly over the next unit step."""
    b = registry.coefficients(f"ipndm_{order}", NOISES["ve"], timesteps.build("edm", NOISES["ve"], 8)).b[-1]
    ages = -torch.arange(order, dtype=torch.float64)
    for degree in range(order):
        assert (b * ages**degree).sum().item() == pytest.approx(1 / (degree + 1))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@given(size=st.floats(-8, 1.4), sign=st.sampled_from([-1.0, 1.0]))
def test_phi_is_its_integral(k, size, sign):
    """At every size of h, from 1e-8 to 25, where quadrature keeps its digits."""
    h = sign * 10**size
    nodes, weights = np.polynomial.legendre.leggauss(400)
    s = (nodes + 1) / 2
    expected = (weights / 2 * np.exp((1 - s) * h) * s ** (k - 1) / math.factorial(k - 1)).sum()
    assert classical.phi(k, torch.tensor(h, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("solver", [name for name, solver in registry.CLASSICAL.items() if not solver.noisy])
def test_every_solver_is_exact_where_the_denoiser_is_constant(solver, key):
    """D = m: the solution is alpha m + sigma (x_T - alpha_T m)/sigma_T, whatever the steps."""
    noise = NOISES[key]
    if solver in ("euler", "heun", "ipndm_v") and key.startswith("vp"):
        pytest.skip("exact only where alpha and sigma are linear in t")
    t = timesteps.build("edm", noise, 6)
    x_T, m = noises(scale=noise.sigma_T), 0.7
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    exact = alpha[-1] * m + sigma[-1] * (x_T - alpha[0] * m) / sigma[0]
    y = sample(
        lambda x, t, c: torch.full_like(x, m), registry.build(solver, noise, t, statistics=constants(noise)), x_T
    )
    torch.testing.assert_close(y, exact, rtol=1e-10, atol=1e-10)
