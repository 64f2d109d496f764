"""What a solver may add to its states: a constant of the model's, and fresh noises."""

import json
import math
from dataclasses import replace
from functools import partial

import diffusers
import pytest
import torch
from support.pipes import SCALED, guided, unconditional
from support.problems import NOISES, Gaussian
from support.tables import banded, denoise, drawn
from test_scheduler import LINEAR, SD, build, drive, images

from s4spipe import models
from s4spipe.commands.show import describe
from s4spipe.learning import families
from s4spipe.learning.families import Free
from s4spipe.learning.starts import with_constant
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.batches import Noises, draw, fresh, generate
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN, Arrays, Bands, transformed
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry
from s4spipe.solvers.dpm_v3 import Statistics


def full(noise, basis=PLAIN, nfe=3, draws=2):
    """A table that has everything, with weights that are all different."""
    table, k = banded(noise, basis, nfe), basis.shape
    return Tableau(table.t, table.t_c, table.c, table.W, noise, "full", {}, table.c_0, basis,
                   drawn(nfe + 1, *k, seed=5), drawn(3, 1, 1, seed=6), drawn(nfe + 1, draws, *k, seed=7),
                   torch.linspace(noise.T, noise.t_min, draws + 1, dtype=torch.float64))  # fmt: skip


def ancestral(theirs, noise, nfe, eta):
    """DDIM's update with noise (Song et al. 2010.02502, eq. 12 and 16) as a table, on the times of diffusers' scheduler
    and then 0, step by step in terms of x_T, the predictions and the fresh noises."""
    t = torch.cat([theirs.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    now = torch.zeros(1 + 2 * nfe, dtype=torch.float64)
    now[0] = 1
    rows = [now]
    for i in range(nfe):
        new = (eta * sigma[i + 1] / sigma[i]) ** 2 * (
            1 - alpha[i] ** 2 / alpha[i + 1] ** 2
        )  # the fresh noise's variance
        direction = (sigma[i + 1] ** 2 - new).sqrt()
        now = direction / sigma[i] * now
        now[1 + i] += alpha[i + 1] - direction * alpha[i] / sigma[i]
        now[1 + nfe + i] += new.sqrt()
        rows.append(now)
    c, W, V = (part.contiguous() for part in torch.stack(rows).split([1, nfe, nfe], 1))
    return Tableau(t, t[:-1], c[1:, 0], W[1:], noise, "ddim", V=V)


VP = {"unconditional": (unconditional, LINEAR, {}), "guided": (guided, SD, SCALED)}


@pytest.mark.parametrize("nfe", [3, 6])
@pytest.mark.parametrize("model", ["unconditional", "guided"])
def test_ddim_with_noise_makes_the_images_of_diffusers_own(model, nfe):
    make, schedule, betas = VP[model]
    pipe, call = build(make)
    theirs = diffusers.DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = diffusers.DDIMPipeline(pipe.unet, theirs) if model == "unconditional" else pipe
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = theirs
    expected = images(pipe, call | {"eta": 0.7}, nfe)
    table = ancestral(theirs, schedule, nfe, 0.7)
    torch.testing.assert_close(table.V, registry.build("ddim_eta_70", schedule, table.t).V)
    ours = images(drive(pipe, registry.build("ddim_eta_70", schedule, table.t)), call, nfe)
    assert abs(ours - expected).max() < 1e-3
    deterministic = images(drive(pipe, ancestral(theirs, schedule, nfe, 0.0)), call, nfe)
    assert abs(deterministic - expected).max() > 1e-2


def test_ddim_with_all_its_noise_keeps_the_variance_of_gaussian_data():
    """Along the SDE, in many steps, what starts with the distribution of the noised data ends with that of the data."""
    noise, count, nfe = NOISES["vp_discrete"], 20_000, 500
    problem = Gaussian(noise)
    theirs = diffusers.DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(nfe)
    x_T = drawn(count, 1)
    table = ancestral(theirs, noise, nfe, 1.0)
    end, other = (sample(problem, table, x_T, z=drawn(nfe, count, 1, seed=seed)) for seed in (1, 2))
    assert end.mean().item() == pytest.approx(problem.mean, abs=0.02)
    assert end.std().item() == pytest.approx(problem.std, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([end, other])[..., 0])[0, 1]) < 0.1  # little is left of x_T


@pytest.mark.parametrize("name", ["ve", "vp_linear", "flow"])
def test_with_the_mean_as_constant_one_evaluation_is_exact_for_gaussian_data(name):
    """Stationary data with a mean image: a weight for each frequency, from the power and the noise schedule alone."""
    noise = NOISES[name]
    power, mean = drawn(4, 6, seed=3).square() + 0.05, drawn(3, 4, 6, seed=4)

    def denoiser(x, t, condition=None):
        alpha, sigma = noise.alpha(t), noise.sigma(t)
        gain = alpha * power / (alpha**2 * power + sigma**2)
        return mean + transformed(gain * transformed(x - alpha * mean, 2), 2, back=True)

    t = torch.tensor([noise.T, noise.t_min], dtype=torch.float64)
    (a1, a0), (s1, s0) = noise.alpha(t), noise.sigma(t)
    stretch = ((a0**2 * power + s0**2) / (a1**2 * power + s1**2)).sqrt()
    weight = 0.3 * stretch  # of the one evaluation: what it says of x_T is taken off c again
    gain = a1 * power / (a1**2 * power + s1**2)
    table = Tableau(t, t[:1], (stretch - weight * gain)[None], weight[None, None], noise, "exact", basis=Arrays((4, 6)),
                    c_0=torch.ones(4, 6, dtype=torch.float64), m=mean,
                    beta=torch.stack([0 * weight, a0 - stretch * a1 - weight * (1 - gain * a1)]))  # fmt: skip
    x_T = noise.sigma_T * drawn(5, 3, 4, 6)
    exact = a0 * mean + transformed(stretch * transformed(x_T - a1 * mean, 2), 2, back=True)
    torch.testing.assert_close(sample(denoiser, table, x_T), exact, rtol=0, atol=1e-10 * exact.abs().max().item())
    many = registry.make("dpmpp_3m", "logsnr", noise, 300)
    torch.testing.assert_close(sample(denoiser, many, x_T), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("basis", [PLAIN, Bands((1.0, 2.5)), Arrays((4, 6))], ids=["plain", "bands", "arrays"])
def test_all_of_it_is_saved_and_loaded_and_samples_the_same(basis, tmp_path):
    noise = NOISES["ve"]
    table = full(noise, basis)
    table.save(tmp_path / "solver.json")
    again = Tableau.load(tmp_path / "solver.json")
    assert again.to_dict() == table.to_dict()
    assert again.agrees(table)
    assert Tableau.from_dict(json.loads(json.dumps(table.to_dict()))).agrees(table)
    x_T, z = noise.sigma_T * drawn(2, 3, 4, 6), drawn(2, 2, 3, 4, 6, seed=1)
    assert torch.equal(sample(denoise, again, x_T, z=z), sample(denoise, table, x_T, z=z))
    for key in ("beta", "m", "V"):
        other = table.to_dict() | {key: (2 * getattr(table, key)).tolist()}
        assert not Tableau.from_dict(other).agrees(table)
    assert not Tableau.from_dict(table.to_dict() | {"t_z": [9.0, 2.0, 0.002]}).agrees(table)
    assert not table.agrees(banded(noise, basis))
    assert table.detached().agrees(table)
    assert '"schema": 3' in (tmp_path / "solver.json").read_text()


def test_laid_over_bands_it_is_the_same():
    noise = NOISES["vp_linear"]
    plain = full(noise)
    x_T, z = noise.sigma_T * drawn(2, 3, 4, 6), drawn(2, 2, 3, 4, 6, seed=1)
    torch.testing.assert_close(
        sample(denoise, plain.over(Bands((1.0, 2.0))), x_T, z=z), sample(denoise, plain, x_T, z=z)
    )


def test_states_are_the_sums_that_the_table_says():
    noise = NOISES["ve"]
    table, x_T, z = full(noise), drawn(2, 3, 4, 6), drawn(2, 2, 3, 4, 6, seed=1)
    states, d = [], []
    for i in range(4):
        y = (table.c_0 if i == 0 else table.c[i - 1]) * x_T + table.beta[i] * table.m
        y = y + sum(table.W[i - 1, j] * d[j] for j in range(i)) + sum(table.V[i, k] * z[k] for k in range(2))
        states.append(y)
        if i < 3:
            d.append(denoise(y, table.t_c[i]))
    recording = sample(denoise, table, x_T, record=True, z=z)
    for own, expected in zip(recording.states, states, strict=True):
        torch.testing.assert_close(own, expected)
    shown = describe(table)
    assert "state: weight of the constant m [3, 1, 1] | weights of the fresh noises 0, 1, ..." in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("   3: ") and f"{table.V[3, 1]:.4f}" in line]
    assert line.split() == ["3:", f"{table.beta[3]:.4f}", "|", *(f"{weight:.4f}" for weight in table.V[3].tolist())]
    assert "means over all frequencies" in describe(full(noise, Bands((1.0,))))


def test_a_sample_has_its_own_fresh_noises_whatever_the_batch():
    denoiser = models.load({"weights": "models/digits.safetensors"})
    noises, table = Noises("sample", 3, 7), full(denoiser.noise_schedule, nfe=2)
    table = Tableau.from_dict(table.to_dict() | {"m": [[[0.1]]]})  # the digits have one channel
    table, along = replace(table, t_z=None), table
    by_batch = [torch.cat([shard["x_0"] for shard in generate(denoiser, table, noises, size)]) for size in (2, 7)]
    torch.testing.assert_close(*by_batch)
    all_of_them = fresh(denoiser, noises, range(7), table)
    more = full(denoiser.noise_schedule, nfe=2, draws=3)
    assert torch.equal(fresh(denoiser, noises, range(2, 4), replace(more, t_z=None))[:2], all_of_them[:, 2:4])
    assert not torch.equal(fresh(denoiser, noises, range(7), along), all_of_them)
    assert all_of_them.std().item() == pytest.approx(1, abs=0.1)
    x_T, _ = draw(denoiser, noises.stream, noises.seed, range(7))
    flat = torch.stack([x_T / denoiser.noise_schedule.sigma_T, *all_of_them]).flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.2
    assert fresh(denoiser, noises, range(7), banded(denoiser.noise_schedule, PLAIN)) == ()


def test_in_a_pipelines_loop_it_is_the_projects_own():
    """With the fresh noises of one generator, drawn when a state needs them."""
    noise = NOISES["vp_discrete"]
    table = full(noise, Bands((1.0, 2.5)))
    data = table.to_dict() | {"c_0": [1.0, 1.0, 1.0]}
    for key in ("beta", "V"):
        data[key] = (
            getattr(table, key) * (torch.arange(4) > 0).view(-1, *[1] * (getattr(table, key).ndim - 1))
        ).tolist()
    data["V"][1][1] = [0.0] * 3  # the second noise is for the second state
    scheduler = S4SScheduler(tableau=data, prediction_type="sample")
    x_T = drawn(2, 3, 4, 6).float()
    for _ in range(2):
        scheduler.set_timesteps(3)
        x, generator = x_T, torch.manual_seed(0)
        for t in scheduler.timesteps:
            x = scheduler.step(denoise(x, t), t, x, generator=generator).prev_sample
        torch.manual_seed(0)
        z = torch.stack([torch.randn(x_T.shape), torch.randn(x_T.shape)])
        expected = sample(denoise, scheduler.tableau, x_T, z=z)
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def with_the_mean(name):
    noise = NOISES["vp_discrete"]
    ends = noise.lambda_(torch.tensor([noise.T, noise.t_min], dtype=torch.float64))
    known = Statistics(ends, *(value * torch.ones(2, 3, 4, 6).double() for value in (1.0, 0.1, 0.2)), drawn(3, 4, 6))
    return registry.make(name, "edm", noise, 4, statistics=known)


def with_learned_noise():
    start = registry.make("dpm_2s", "edm", NOISES["vp_discrete"], 6)
    student = families.make("adasde", start)
    with torch.no_grad():
        student.v += 0.3
        return student()


OF_MEAN = [partial(with_the_mean, f"{name}_afs_mean") for name in ("ddim", "ipndm", "dpm_v3")]


@pytest.mark.parametrize("make", [*OF_MEAN, with_learned_noise])
def test_analytic_first_steps_with_the_mean_and_learned_noise_run_there_too(make):
    table, x_T = make(), drawn(2, 3, 4, 6).float()
    scheduler = S4SScheduler(tableau=table.to_dict(), prediction_type="sample")
    scheduler.set_timesteps(table.nfe)
    x, generator = scheduler.run.prepare(x_T), torch.manual_seed(0)
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(x, t), t, x, generator=generator).prev_sample
    torch.manual_seed(0)
    z = [torch.randn(x_T.shape) for _ in range(table.draws)]
    torch.testing.assert_close(x, sample(denoise, table, x_T, z=z), rtol=1e-4, atol=1e-4)


WRONG = {
    "a constant without weights": (lambda data: data.pop("beta"), "beta and m go together"),
    "weights without a constant": (lambda data: data.pop("m"), "beta and m go together"),
    "too few weights": (lambda data: data["beta"].pop(), r"entry beta must be float64 of shape \[4\]"),
    "too few rows": (lambda data: data["V"].pop(), r"entry V must be float64 of shape \[4, 2\]"),
    "rows of their own": (lambda data: data["V"][1].pop(), "entry V must have rows of as many numbers"),
    "no rows": (lambda data: data.update(V=[]), "entry V must have rows"),
    "no noises": (lambda data: data.update(V=[[], [], [], []]), "entry V must be float64 of shape"),
    "times without noises": (lambda data: data.pop("V"), "entry t_z needs V"),
    "too few times": (lambda data: data["t_z"].pop(), r"entry t_z must be float64 of shape \[3\]"),
    "times that rise": (lambda data: data["t_z"].reverse(), "entry t_z must fall strictly"),
    "times elsewhere": (lambda data: data.update(t_z=[81.0, 1.0, 0.1]), "entry t_z must stay within"),
    "no times": (lambda data: data.update(t_z="t"), "entry t_z must be a list of numbers"),
    "one number": (lambda data: data.update(m=0.5), "entry m must be lists of numbers, 1 to 6 deep, got 0.5"),
    "no numbers": (lambda data: data.update(m=[]), "entry m must be lists of numbers"),
    "a word": (lambda data: data.update(m=["a"]), "entry m must be a list"),
    "not finite": (lambda data: data.update(m=[[[math.inf]]]), "entry m must be"),
    "ragged": (lambda data: data.update(m=[[1.0], [1.0, 2.0]]), "entry m must be a list of lists of the shape"),
    "deep": (lambda data: data.update(m=[[[[[[[1.0]]]]]]]), "entry m must be lists of numbers, 1 to 6 deep"),
    "an older schema": (lambda data: [data.update(schema=2), data.pop("basis")], "unknown entry 't_z'"),
}


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG)
def test_a_file_that_does_not_say_what_is_added_is_refused(change, says, tmp_path):
    data = full(NOISES["ve"]).to_dict()
    change(data)
    (tmp_path / "solver.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=rf"solver.json: .*{says}"):
        Tableau.load(tmp_path / "solver.json")


def test_what_is_missing_or_too_much_is_told():
    noise = NOISES["vp_discrete"]
    table, x_T = full(noise), drawn(2, 3, 4, 6)
    z = drawn(2, 2, 3, 4, 6)
    for wrong, says in (((), "adds 2 fresh noises on the way: z must hold as many, got 0"), (z[:1], "got 1"),
                        (z[:, :1], r"of the shape of x_T, \[2, 3, 4, 6\]"), (3, "got 1"),
                        ([1, 2], "of the shape of x_T")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            sample(denoise, table, x_T, z=wrong)
    with pytest.raises(UserError, match="adds no fresh noises on the way"):
        sample(denoise, banded(noise, PLAIN), x_T, z=z)
    with pytest.raises(UserError, match=r"constant of shape \[3, 1, 1\], which does not go with samples of shape \[2,"):
        sample(denoise, table, drawn(2, 2, 4, 6), z=z[:, :, :2])
    for make in (Free, lambda start: families.make("gs", start)):
        with pytest.raises(UserError, match="full adds fresh noise to its states, which no family learns"):
            make(table)
    with pytest.raises(UserError, match="adds to the noise before the first evaluation"):
        S4SScheduler.from_tableau(Tableau.from_dict(table.to_dict() | {"c_0": 1.0}))


SIZES = {"channels": ((3, 1, 1), 1), "image": ((4, 16, 16), 1), "large image": ((4, 16, 17), 2)}


@pytest.mark.parametrize(("shape", "files"), SIZES.values(), ids=SIZES)
def test_a_constant_of_few_numbers_stands_in_the_solvers_own_file(shape, files, tmp_path):
    start = with_constant(registry.make("ddim", "edm", NOISES["ve"], 3), torch.rand(shape).double())
    table = replace(start, beta=torch.arange(4.0).double())
    table.save(tmp_path / "solver.json")
    assert len(list(tmp_path.iterdir())) == files
    assert Tableau.load(tmp_path / "solver.json").agrees(table, 0.0)
