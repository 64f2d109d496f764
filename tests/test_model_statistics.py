"""The statistics of a model, against closed forms and against their definition."""

import pytest
import torch
from support.problems import NOISES, Gaussian, noises, wavy
from support.tables import drawn
from test_edm import network

from s4spipe import models
from s4spipe.models.edm.denoiser import EDMCheckpoint
from s4spipe.noise import VE, VPLinear
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import write_tensors
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau.basis import transformed
from s4spipe.solvers import registry, statistics
from s4spipe.solvers.statistics import Data

MEAN, STD = (torch.tensor(v, dtype=torch.float64) for v in ([0.4, -0.2, 0.1], [0.5, 0.35, 1.0]))


class On:
    """A denoiser on a noise schedule, without a network."""

    device = torch.device("cpu")

    def __init__(self, function, noise):
        self.function, self.noise_schedule, self.calls = function, noise, 0

    def __call__(self, x, t, condition=None):
        self.calls += 1
        return self.function(x, t, condition)


def data(count, *shape, x_0=None):
    return Data(drawn(count, *shape, seed=1) if x_0 is None else x_0, None, drawn(2, count, *shape, seed=2))


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
def test_of_gaussian_data_they_are_the_closed_form(key):
    """l = 1/(1 + r) with r = std^2 exp(2 lambda); N = -l mean for every sample, so that s is 0/0, and made 0. What the
    differences of l on the grid lack meets the samples' own mean."""
    noise, own = NOISES[key], data(50, 3, x_0=MEAN + STD * noises(50))
    found = statistics.estimate(On(Gaussian(noise, MEAN, STD), noise), own, 40, 50)
    l = 1 / (1 + STD**2 * torch.exp(2 * found.lam[:, None]))  # noqa: E741
    torch.testing.assert_close(found.l, l, rtol=1e-9, atol=1e-11)
    assert not found.s.any()
    slope, (differences,) = -2 * l * (1 - l), torch.gradient(l, spacing=(found.lam,), dim=0, edge_order=2)
    y = own.x_0.mean(0) + torch.exp(-found.lam[:, None]) * own.z[0].mean(0)
    torch.testing.assert_close(found.b, -slope * MEAN + (slope - differences) * y, rtol=1e-7, atol=1e-9)


def test_a_step_is_exact_for_gaussian_data_in_the_limit_of_a_fine_grid():
    noise = VPLinear()
    problem, x_T = Gaussian(noise, MEAN, STD), noises(scale=noise.sigma_T)
    own, exact = data(50, 3, x_0=MEAN + STD * noises(50)), problem.solution(x_T, noise.t_min)
    errors = []
    for grid in (20, 80):
        found = statistics.estimate(On(problem, noise), own, grid, 50)
        table = registry.make("dpm_v3", "logsnr", noise, 1, statistics=found)
        errors.append((sample(problem, table, x_T) - exact).abs().max().item())
    assert errors[1] < errors[0] / 10 < 1e-2


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
def test_they_are_what_their_definition_says(key):
    """By the whole Jacobian, by differences along the flow, and by least squares."""
    noise = NOISES[key]
    own = data(40, 3)
    found = statistics.estimate(On(wavy, noise), own, 9, 40)
    point, h = 4, 1e-4
    lam = found.lam[point]

    def prediction(y, at):
        t = noise.inverse(at)
        return wavy(noise.alpha(t) * y, t)

    def flow(y, step):
        """Runge-Kutta along dy/dlambda = -(y - D)."""
        slope = lambda y, at: prediction(y, at) - y  # noqa: E731
        middle = slope(y + step / 2 * slope(y, lam), lam + step / 2)
        return y + step * slope(y + step / 2 * middle, lam + step / 2)

    y = own.x_0 + torch.exp(-lam) * own.z[0]
    v = own.z[1].sign()
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda y: prediction(y[None], lam)[0], one) for one in y]
    )
    l = 1 - (v * (jacobian @ v[..., None])[..., 0]).mean(0)  # noqa: E741
    torch.testing.assert_close(found.l[point], l)
    slope = (found.l[point + 1] - found.l[point - 1]) / (found.lam[point + 1] - found.lam[point - 1])

    def rest(y, step):
        return (1 - l - step * slope) * y - prediction(y, lam + step)

    f, df = rest(y, 0.0), (rest(flow(y, h), h) - rest(flow(y, -h), -h)) / (2 * h)
    for i in range(3):
        s, b = torch.linalg.lstsq(torch.stack([f[:, i], torch.ones(len(f)).double()], 1), df[:, i : i + 1]).solution
        torch.testing.assert_close(found.s[point, i], s[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.b[point, i], b[0], rtol=1e-5, atol=1e-7)


def edm(name):
    return lambda: EDMCheckpoint(network(name)[0].eval().requires_grad_(False))


def test_neither_the_batch_size_nor_the_processes_matter(tmp_path, monkeypatch):
    denoiser = edm("adm")()
    own = Data(0.5 * drawn(5, 3, 8, 8), torch.arange(5) % 4, drawn(2, 5, 3, 8, 8, seed=1))
    whole = statistics.estimate(denoiser, own, 3, 5)
    monkeypatch.setattr("s4spipe.runtime.scratch.SCRATCH", tmp_path)
    scratch = Scratch("divided")
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "barrier", lambda: None)
        patch.setattr(distributed, "rank", lambda: 1)
        assert statistics.estimate(denoiser, own, 3, 3, scratch) is None
        assert len(list(scratch.folder.iterdir())) == 1
        patch.setattr(distributed, "rank", lambda: 0)
        divided = statistics.estimate(denoiser, own, 3, 3, scratch)
    for name in ("lam", "l", "s", "b"):
        a, b = getattr(whole, name), getattr(divided, name)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


def test_interrupted_work_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("s4spipe.runtime.scratch.SCRATCH", tmp_path)
    denoiser, own = On(wavy, VE()), data(6, 3)
    first = statistics.estimate(denoiser, own, 5, 2, Scratch("x"))
    made = denoiser.calls
    again = statistics.estimate(denoiser, own, 5, 2, Scratch("x"))
    assert denoiser.calls - made == 3  # those of the check
    assert torch.equal(first.b, again.b)


def digits():
    return models.load({"weights": "models/digits.safetensors"})


NETWORKS = {"digits": digits} | {name: edm(name) for name in ("ddpmpp", "ncsnpp", "skip", "adm")}


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_of_networks_are_those_of_their_outputs(name):
    """UNet2DModel of diffusers (the digits'), and those of EDM, with attention in all of them."""
    denoiser = NETWORKS[name]()
    noise, x = denoiser.noise_schedule, drawn(3, *denoiser.sample_shape)
    condition = torch.arange(3) % denoiser.num_classes if denoiser.num_classes else None
    for lam in torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64):
        t = noise.inverse(lam)
        along = drawn(3, *denoiser.sample_shape, seed=1), 0.3 * t
        x_t = noise.alpha(t) * x + noise.sigma(t)
        D, dD = statistics.derivative(denoiser, x_t, t, condition, along)
        h = 1e-3 * noise.sigma(t)
        with torch.no_grad():
            ahead, behind = (denoiser(x_t + s * h * along[0], t + s * h * along[1], condition) for s in (1, -1))
            torch.testing.assert_close(D, denoiser(x_t, t, condition), rtol=1e-4, atol=1e-4)
        difference = (ahead - behind) / (2 * h)
        assert (dD - difference).norm() < 0.02 * difference.norm()


class NoForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.tanh()

    @staticmethod
    def backward(ctx, slope):
        return slope


@pytest.mark.parametrize(
    ("function", "says"),
    [(lambda x, t, c: NoForward.apply(x), "which it does not have"),
     (lambda x, t, c: x / (1 + t) + 2 * torch.tanh(x.detach()), "a part of it is probably"),
     (lambda x, t, c: x / (1 + t) + torch.sin(3 * t.detach()) * x, "a part of it is probably")],
)  # fmt: skip
def test_a_network_without_derivatives_is_refused(function, says):
    with pytest.raises(UserError, match=says):
        statistics.estimate(On(function, VE()), data(4, 3), 5, 4)


def test_other_errors_of_a_network_are_its_own():
    def broken(x, t, c):
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        statistics.estimate(On(broken, VE()), data(4, 3), 5, 4)


def test_mean_and_power_are_those_of_the_samples():
    x = 1.5 + drawn(200, 2, 4, 6) * torch.tensor([1.0, 3.0]).double().view(2, 1, 1)
    mean, power = statistics.mean_and_power(x.float())
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(power.sum((1, 2)), x.var(0, correction=0).sum((1, 2)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(power, transformed(x, 2).var(0, correction=0), rtol=1e-4, atol=1e-5)
    assert statistics.mean_and_power(drawn(9, 5))[1].shape == (5,)


def test_a_file_that_holds_none_is_refused(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"lam": torch.zeros(2)})
    with pytest.raises(UserError, match=r"x.safetensors: holds no tensor 'l'"):
        statistics.read(tmp_path / "x.safetensors")
