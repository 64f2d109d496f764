"""Classical solvers against the papers' updates written out in x, against diffusers, and against known answers."""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NOISES, Gaussian, Mixture, march, noises, wavy

from s4spipe import classical, steps
from s4spipe.errors import UserError
from s4spipe.families import FAMILIES
from s4spipe.noise import VE, Flow, VPLinear
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
@pytest.mark.parametrize("solver", IN_X)
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
    t, x_T = steps.build("edm", noise, 4), noises(scale=noise.sigma_T)
    coefficients = classical.coefficients(solver, noise, t, [order] * 4)
    ours = sample(wavy, coefficients.tableau(noise, t, solver), x_T)
    torch.testing.assert_close(ours, dpm_singlestep_in_x(noise, t, x_T, order, form), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "nfe", "expected"),
    [
        ("ipndm", 5, [1] * 5), ("ipndm_afs", 5, [1] * 6), ("heun", 5, [2, 2, 1]), ("dpm_2s", 4, [2, 2]),
        ("dpm_3s", 6, [3, 2, 1]), ("dpm_3s", 7, [3, 3, 1]), ("dpm_3s", 8, [3, 3, 2]), ("pndm", 8, [4, 4]),
        ("pndm", 14, [4, 4, 4, 1, 1]), ("plms", 4, [2, 1, 1]), ("parallel_midpoints", 5, [3, 2]),
    ],
)  # fmt: skip
def test_nfe_is_spent_as_said(solver, nfe, expected):
    assert classical.costs(solver, nfe) == expected
    table = classical.build(solver, VE(), steps.build("edm", VE(), len(expected)), nfe=nfe)
    assert table.nfe == nfe


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
    t = steps.build("edm", noise, nfe)
    lam = noise.lambda_(t)
    b = classical.coefficients(f"{solver}_{order}", noise, t).b
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
    t = steps.build("edm", noise, nfe)
    unip = classical.unipc(noise, t, order, variant, form, corrects=False, lower_order_final=False).b[2:]
    exact = classical.coefficients(f"{clock}_{order}", noise, t).b[2:]
    assert ((unip - exact).abs().amax(1) <= 1e-12 * exact.abs().amax(1).clamp(min=1)).all()


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@given(size=st.floats(-8, 1.4), sign=st.sampled_from([-1.0, 1.0]))
def test_phi_is_its_integral(k, size, sign):
    """At every size of h, from 1e-8 to 25, where quadrature keeps its digits."""
    h = sign * 10**size
    nodes, weights = np.polynomial.legendre.leggauss(400)
    s = (nodes + 1) / 2
    expected = (weights / 2 * np.exp((1 - s) * h) * s ** (k - 1) / math.factorial(k - 1)).sum()
    assert classical.phi(k, torch.tensor(h, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)


# -- Order of convergence ---------------------------------------------------------------------------


def graded(noise, n, steep=False):
    """Steps in lambda that start and end small, h ~ 1/n^2, or if steep 1/n^3: what the low orders there cost is then of
    high order too."""
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    share = u**3 * (10 - 15 * u + 6 * u**2) if steep else 0.5 * (1 - torch.cos(torch.pi * u))
    ends = noise.lambda_(torch.tensor([noise.T, noise.t_min], dtype=torch.float64))
    t = noise.inverse(ends[0] + share * (ends[1] - ends[0]))
    t[0], t[-1] = noise.T, noise.t_min
    return t


def rate(solver, problem, grid, ns=(320, 640), points=None):
    """The order that two numbers of steps show, on the root mean square error over the batch."""
    noise = problem.noise_schedule
    x_T = noises(scale=noise.sigma_T) if points is None else points
    exact = problem.solution(x_T, noise.t_min)
    coarse, fine = (
        (march(problem, classical.build(solver, noise, grid(noise, n)), x_T) - exact).norm().item() for n in ns
    )
    return np.log2(coarse / fine) / np.log2(ns[1] / ns[0])


# The order of convergence of every solver whose order does not need equal steps. (3M) is of order 2 as its authors
# publish it: see `classical.dpm_multistep`. A corrector adds an order.
ORDER = {
    "ddim": 1, "euler": 1, "dpm_2m": 2, "dpm_3m": 2, "dpmpp_2m": 2, "dpmpp_3m": 2, "dpm_2s": 2, "dpm_3s": 3,
    "dpmpp_2s": 2, "parallel_midpoints": 2, "heun": 2,
    **{f"{name}_{p}": p for name in ("deis_tab", "deis_rhoab", "deis_log", "adams_bashforth", "unip_bh1", "unip_bh2")
       for p in (1, 2, 3, 4)},
    **{f"unipc_{name}_{p}": p + 1 for name in ("bh1", "bh2", "bh1_eps", "bh2_eps") for p in (1, 2, 3, 4)},
}  # fmt: skip
MILD = {"ve": VE(0.05, 20.0), "vp": VPLinear(t_min=0.05), "flow": Flow(0.02, 0.98)}


@pytest.mark.slow
@pytest.mark.parametrize("key", MILD)
@pytest.mark.parametrize(("solver", "order"), ORDER.items())
def test_order_of_convergence_on_gaussian_data(solver, order, key):
    """In three dimensions of different spread: in one, the error may happen to cross zero."""
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, -0.2, 0.1], [0.5, 0.35, 1.0]))
    ns = (160, 320) if order <= 2 and solver != "dpmpp_3m" else (320, 640)
    if order == 5 and key == "vp" and "eps" in solver:
        ns = (640, 960)  # slow to begin
    grid = partial(graded, steep=order == 5)
    assert rate(solver, Gaussian(MILD[key], mean, std), grid, ns) == pytest.approx(order, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("key", MILD)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpm_3s", "heun", "deis_log_3", "adams_bashforth_3", "unipc_bh2_2"])
def test_order_of_convergence_on_a_mixture(solver, key):
    """Two modes in each of three dimensions, where the exact flow keeps every coordinate's quantile."""
    problem = Mixture(MILD[key])
    x_T = problem.draw(6)
    assert rate(solver, problem, graded, points=x_T) == pytest.approx(ORDER[solver], abs=0.2)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_the_weights_of_equal_steps(order):
    """They integrate polynomials of a degree below the order exactly over the next unit step."""
    b = classical.coefficients(f"ipndm_{order}", VE(), steps.build("edm", VE(), 8)).b[-1]
    ages = -torch.arange(order, dtype=torch.float64)
    for degree in range(order):
        assert (b * ages**degree).sum().item() == pytest.approx(1 / (degree + 1))


class FlatStart:
    """On VE noise: a solution whose slope hardly changes at first, so that a start of low order costs nothing."""

    def __init__(self, noise, x_T):
        self.noise_schedule, self.x_T = noise, x_T

    def solution(self, x_T, t):
        return x_T + 0.5 * (t - self.noise_schedule.T) + 0.05 * (self.noise_schedule.T - t) ** 6

    def __call__(self, x, t, condition=None):
        slope = 0.5 - 0.3 * (self.noise_schedule.T - t) ** 5 - (x - self.solution(self.x_T, t))
        return x - t * slope


@pytest.mark.parametrize(
    ("solver", "order"), [("ipndm_1", 1), ("ipndm_2", 2), ("ipndm_3", 3), ("ipndm_4", 4), ("plms", 4), ("pndm", 4)]
)
def test_order_of_convergence_on_equal_steps(solver, order):
    """Those with the weights of equal steps, where their start does not matter: equal in sigma."""
    noise = VE(0.5, 3.0)
    x_T = noises(scale=noise.T)
    problem, grid = FlatStart(noise, x_T), partial(steps.build, "time_uniform")
    assert rate(solver, problem, grid, (80, 160), x_T) == pytest.approx(order, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "order"), [("ipndm_1", 1), ("ipndm_2", 2), ("ipndm_3", 2), ("ipndm_4", 2), ("plms", 3), ("pndm", 4)]
)
def test_order_of_convergence_on_equal_steps_with_the_start(solver, order):
    """The same on Gaussian data: the low order of iPNDM's and PLMS's first steps shows, PNDM starts by Runge-Kutta."""
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, -0.2, 0.1], [0.5, 0.35, 1.0]))
    problem, grid = Gaussian(VE(1.0, 3.0), mean, std), partial(steps.build, "time_uniform")
    assert rate(solver, problem, grid, (640, 1280)) == pytest.approx(order, abs=0.2)


def test_plms_and_pndm_gain_on_ipndm_by_their_start():
    grid = partial(steps.build, "time_uniform")
    problem = Gaussian(VE(0.5, 3.0))
    assert rate("plms", problem, grid, (40, 160)) > 2.6
    assert rate("pndm", problem, grid, (40, 160)) > rate("plms", problem, grid, (40, 160))


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_exact_where_the_denoiser_is_constant(solver, key):
    """D = m: the solution is alpha m + sigma (x_T - alpha_T m)/sigma_T, whatever the steps."""
    noise = NOISES[key]
    if solver in ("euler", "heun") and key.startswith("vp"):
        pytest.skip("exact only where alpha and sigma are linear in t")
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
        ("ipndm_5", [80.0, 1.0, 0.002], "ipndm has order 1 or 2 or 3 or 4, got 5 in 'ipndm_5'"),
        ("ddim_afs", [80.0, 0.002], "would never ask the network"),
        ("ddim", [80.0, 0.1, 0.2], "falling strictly"),
        ("ddim", [80.0], "at least two times"),
        ("ddim", [90.0, 1.0, 0.002], r"within the noise schedule's times \[0.002, 80\]"),
    ],
)
def test_mistakes_are_told(name, t, says):
    with pytest.raises(UserError, match=says):
        classical.build(name, VE(), torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "nfe", "says"),
    [
        ("pndm", 5, "NFE must be 4, 8, 12 or more, got 5"),
        ("plms", 1, "NFE must be at least 2, got 1"),
        ("ddim", 0, "nfe must be at least 1, got 0"),
        ("heun", 6, "heun with 6 evaluations takes 3 steps, got 4"),
    ],
)
def test_an_nfe_that_a_solver_cannot_spend_is_told(name, nfe, says):
    with pytest.raises(UserError, match=says):
        classical.build(name, VE(), steps.build("edm", VE(), 4), nfe=nfe)


def test_the_page_of_solvers_names_them_all_and_tests_that_exist():
    page = (Path(__file__).parent.parent / "docs/solvers.md").read_text()
    names = set(re.findall(r"`([a-z0-9_]+)`", page))
    assert set(classical.CLASSICAL) | set(FAMILIES) <= names
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f"def {name}(" in tests for name in names if name.startswith("test_"))
