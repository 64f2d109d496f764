"""DPM-Solver-v3: against the solvers that it degenerates to, the exact solution of Gaussian data, and its algorithm."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_trapezoid
from support.problems import NOISES, Gaussian, Known, Mixture, constants, noises, wavy
from support.tables import drawn
from test_convergence import MILD, graded

from s4spipe.noise import VE
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN, Arrays
from s4spipe.solvers import registry, timesteps
from s4spipe.solvers.dpm_v3 import Statistics, dpm_v3
from s4spipe.solvers.symbolic import Trace


def build(noise, t, statistics, order=3, **options):
    net = Trace(noise, len(t), basis=statistics.basis)
    return net.tableau(dpm_v3(net, t, order, statistics, **options), t, "dpm_v3")


PLAINLY = {"corrects": False, "pseudo": False, "lower_order_final": False}


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("numbers", "limit"), [((1.0, 0.0), "adams_bashforth"), ((0.0, -1.0), "deis_log")])
def test_with_trivial_statistics_it_is_the_exponential_integrator(numbers, limit, order, key):
    noise = NOISES[key]
    t = timesteps.build("edm", noise, 7)
    ours = build(noise, t, constants(noise, *numbers), order, **PLAINLY)
    expected = registry.build(f"{limit}_{order}", noise, t)
    assert ours.basis == PLAIN
    assert not ours.extras
    for name in ("c", "W", "c_0", "t_c"):
        a, b = getattr(ours, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * b.abs().max().item())


MEAN, STD = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, -0.2, 0.1], [0.5, 0.35, 1.0]))


def gaussian(noise):
    """The statistics of N(mean, std^2): l = 1/(1 + r) with r = std^2 exp(2 lambda), N = -l mean, so s = 0 is as good as
    any and b = -l' mean."""

    def l(lam):  # noqa: E743
        return 1 / (1 + STD**2 * torch.exp(2 * lam[..., None]))

    return Known(noise, l=l, s=lambda lam: 0 * l(lam), b=lambda lam: 2 * l(lam) * (1 - l(lam)) * MEAN)


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_a_step_of_any_size_is_exact_for_gaussian_data(key, nfe):
    noise = NOISES[key]
    problem, x_T = Gaussian(noise, MEAN, STD), noises(scale=noise.sigma_T)
    table = registry.make("dpm_v3", "logsnr", noise, nfe, statistics=gaussian(noise))
    exact = problem.solution(x_T, noise.t_min)
    torch.testing.assert_close(sample(problem, table, x_T), exact, rtol=1e-10, atol=1e-10)
    assert (sample(problem, registry.make("ddim", "logsnr", noise, nfe), x_T) - exact).abs().max() > 0.05


def smooth(noise, shape=(3,)):
    """Some smooth functions of lambda, others for every number of a sample."""
    p = drawn(4, *shape, seed=3)

    def wide(lam):
        return lam[(..., *[None] * len(shape))]

    return Known(
        noise,
        l=lambda lam: torch.sigmoid(-wide(lam) + p[0]),
        s=lambda lam: 0.4 * torch.tanh(wide(lam) / 2 + p[1]) - 0.3,
        b=lambda lam: 0.3 * torch.cos(wide(lam) / 2 + p[2]) * torch.sigmoid(wide(lam) * 0.3 + p[3]),
    )


def errors(noise, shape, order, ns=(100, 200), **options):
    problem, statistics = Mixture(noise), smooth(noise, shape)
    x_T = problem.draw(4)
    exact = problem.solution(x_T, noise.t_min)
    tables = (build(noise, graded(noise, n), statistics, order, **PLAINLY | options) for n in ns)
    return [(sample(problem, table, x_T) - exact).norm().item() for table in tables]


@pytest.mark.parametrize("shape", [(), (3,)], ids=["numbers", "arrays"])
@pytest.mark.parametrize("key", MILD)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence_whatever_the_statistics(order, key, shape):
    coarse, fine = errors(MILD[key], shape, order)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("key", MILD)
@pytest.mark.parametrize("order", [2, 3])
def test_the_corrector_keeps_the_order_and_lowers_the_error(order, key):
    coarse, fine = errors(MILD[key], (3,), order, corrects=True)
    assert math.log2(coarse / fine) > order - 0.4
    assert fine < 0.5 * errors(MILD[key], (3,), order)[1]


def directly(noise, t, statistics, x, order, corrects, pseudo):
    """The algorithm on states, with integrals from the noisy end by the trapezoidal rule on a fine grid, and the
    derivatives of g, as the authors write it."""
    lam = noise.lambda_(t)
    fine = torch.cat(
        [torch.linspace(a, b, 20_001, dtype=torch.float64)[:-1] for a, b in zip(lam, lam[1:], strict=False)]
    )
    fine = torch.cat([fine, lam[-1:]])
    mark = [20_000 * i for i in range(len(t))]

    def integral(values):
        h = fine.diff().view(-1, *[1] * (values.ndim - 1))
        return torch.cat([torch.zeros_like(values[:1]), (h * (values[1:] + values[:-1]) / 2).cumsum(0)])

    l, s, b = (statistics.at(name, fine) for name in "lsb")  # noqa: E741
    L, S = integral(l), integral(s)
    B = integral(torch.exp(-S) * b)
    I, C = integral(torch.exp(L + S)), integral(torch.exp(L + S) * B)  # noqa: E741

    def step(x, i, j, known, p):
        """From point i to point j, with N known at some points."""
        n, m = mark[i], mark[j]
        points = [i, *(k for k in known if k != i)][:p]
        g = {k: torch.exp(S[n] - S[mark[k]]) * known[k] - torch.exp(S[n]) * (B[mark[k]] - B[n]) for k in points}
        if pseudo:
            table = {(k,): g[k] for k in points}

            def divided(ks):
                if ks not in table:
                    table[ks] = (divided(ks[1:]) - divided(ks[:-1])) / (lam[ks[-1]] - lam[ks[0]])
                return table[ks]

            a = [divided(tuple(points[: q + 1])) for q in range(p)]
        else:
            powers = torch.tensor(np.vander((lam[points] - lam[i]).numpy(), increasing=True))
            a = torch.linalg.solve(powers, torch.stack([g[k] for k in points]).flatten(1)).view(p, *x.shape)
        part = slice(n, m + 1)
        new = (noise.alpha(t[j]) / noise.alpha(t[i])) * torch.exp(L[n] - L[m]) * x
        new = new - noise.alpha(t[j]) * torch.exp(-L[m] - S[n]) * (I[m] - I[n]) * g[i]
        new = new - noise.alpha(t[j]) * torch.exp(-L[m]) * (C[m] - C[n] - B[n] * (I[m] - I[n]))
        for q in range(1, p):
            u = (fine[part] - lam[i]).view(-1, *[1] * (l.ndim - 1))
            f = torch.exp(L[part] + S[part] - L[n] - S[n]) * u**q
            E = ((u[1:] - u[:-1]) * (f[1:] + f[:-1]) / 2).sum(0)
            new = new - noise.alpha(t[j]) * torch.exp(L[n] - L[m]) * E * a[q]
        return new

    steps, known, predicted = len(t) - 1, {}, x
    for i in range(steps):
        alpha, sigma = noise.alpha(t[i]), noise.sigma(t[i])
        eps = (predicted - alpha * wavy(predicted, t[i])) / sigma
        fresh = (sigma * eps - l[mark[i]] * predicted) / alpha
        before = min(order, i, steps + 1 - i)
        x = step(x, i - 1, i, {i: fresh} | known, before) if i and corrects and before > 1 else predicted
        known = {i: fresh} | known
        predicted = step(x, i, i + 1, known, min(order, i + 1, steps - i))
    return predicted


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
@pytest.mark.parametrize(("corrects", "pseudo"), [(False, False), (True, False), (False, True), (True, True)])
def test_it_is_the_papers_algorithm(corrects, pseudo, key):
    noise = NOISES[key]
    t, statistics, x_T = timesteps.build("logsnr", noise, 6), smooth(noise), noises(scale=noise.sigma_T)
    table = build(noise, t, statistics, 3, corrects=corrects, pseudo=pseudo)
    expected = directly(noise, t, statistics, x_T, 3, corrects, pseudo)
    torch.testing.assert_close(sample(wavy, table, x_T), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("nfe", "corrects", "pseudo"), [(5, True, True), (6, True, False), (7, False, False)])
def test_by_name_it_follows_the_authors_rules(nfe, corrects, pseudo):
    noise = VE()
    t, statistics = timesteps.build("logsnr", noise, nfe), smooth(noise)
    for order in (2, 3):
        named = registry.make(f"dpm_v3_{order}", "logsnr", noise, nfe, statistics=statistics)
        for change in ({}, {"corrects": not corrects}, {"pseudo": not pseudo}):
            other = build(noise, t, statistics, order, **{"corrects": corrects, "pseudo": pseudo} | change)
            same = not change or (order == 2 and "pseudo" in change)  # a line has no cross terms
            assert torch.allclose(named.W, other.W, rtol=1e-12, atol=1e-12) is same
    afs = registry.make("dpm_v3_afs", "logsnr", noise, nfe, statistics=statistics)
    assert (named.nfe, afs.nfe, len(afs.t)) == (nfe, nfe, nfe + 2)


def test_between_the_points_of_a_grid_statistics_are_linear_and_their_integrals_exact():
    lam = torch.tensor([-2.0, -0.5, 1.0], dtype=torch.float64)
    statistics = Statistics(lam, *drawn(3, 3, 2, seed=5).unbind())
    start, end = torch.tensor(-1.7, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    over = statistics.passage(start, end)
    u = torch.cat([torch.linspace(a, b, 20_001, dtype=torch.float64) for a, b in ((-1.7, -0.5), (-0.5, 0.9))])
    at = {name: statistics.at(name, u).numpy() for name in "lsb"}
    torch.testing.assert_close(statistics.at("l", lam), statistics.l)
    torch.testing.assert_close(statistics.at("l", (lam[1:] + lam[:-1]) / 2), (statistics.l[1:] + statistics.l[:-1]) / 2)

    def integral(values):
        return cumulative_trapezoid(values, u.numpy(), axis=0, initial=0)

    L, S = integral(at["l"]), integral(at["s"])
    B = integral(np.exp(-S) * at["b"])
    expected = {"L": L, "S": S, "B": B, "C": integral(np.exp(L + S) * B)}
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(over, name).numpy(), values[-1], rtol=1e-7, atol=1e-8)
    for n, own in enumerate(over.E):
        power = (u.numpy()[:, None] + 1.7) ** n
        np.testing.assert_allclose(own.numpy(), integral(np.exp(L + S) * power)[-1], rtol=1e-7)


@pytest.mark.parametrize("shape", [(), (2, 1, 1), (2, 4, 4)])
def test_its_table_is_saved_and_loaded(shape, tmp_path):
    noise = VE()
    table = registry.make("dpm_v3", "logsnr", noise, 4, statistics=smooth(noise, shape))
    assert table.basis == (Arrays(shape, 0) if shape else PLAIN)
    assert table.beta[0].abs().max() == 0
    assert table.beta[1:].abs().max() > 0.01
    table.save(tmp_path / "solver.json")
    again = Tableau.load(tmp_path / "solver.json")
    x_T = noise.sigma_T * drawn(3, 2, 4, 4)
    assert torch.equal(*(sample(lambda x, t, c: torch.tanh(x), which, x_T) for which in (table, again)))


def test_what_the_statistics_cannot_do_is_told():
    noise, other = VE(), VE(0.01, 200.0)
    with pytest.raises(UserError, match="dpm_v3_2 needs statistics of the model"):
        registry.make("dpm_v3_2", "logsnr", noise, 5)
    with pytest.raises(UserError, match="the statistics are of lambda from"):
        registry.make("dpm_v3", "logsnr", other, 5, statistics=constants(noise))
    with pytest.raises(UserError, match="dpm_v3 has order 1 or 2 or 3"):
        registry.parse("dpm_v3_4")
    lam, values = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    for wrong in ((lam.flip(0), values, values, values), (lam, values, values[:, :2], values),
                  (lam, values, values, values * math.nan), (lam, values.float(), values, values)):  # fmt: skip
        with pytest.raises(UserError, match="statistics need"):
            Statistics(*wrong)
