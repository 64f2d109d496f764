"""The confirmation models of benchmarks/rivals are what the page says of them."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torch import nn

from benchmarks.rivals import training
from benchmarks.rivals.problems import confirmation, pictures
from benchmarks.rivals.problems.looks import Classifier, Restorer
from benchmarks.rivals.problems.problem import Problem
from s4spipe import models
from s4spipe.models.noise import Flow, VPCosine, VPDiscrete
from s4spipe.runtime.files import read_tensors
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises, generate
from s4spipe.solvers import registry
from s4spipe.training.unet import UNetTraining

HERE = Path("benchmarks/rivals").absolute()
SETTINGS, STAGES = (YAML(typ="safe").load(HERE / name) for name in ("params.yaml", "dvc.yaml"))
NAMES = tuple(confirmation.MODELS)
NOISE = {"flow": Flow, "guided": VPDiscrete, "latent": VPDiscrete, "photos32": VPCosine}
by_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.chdir(HERE)
    return lambda name: Problem(name, torch.device("cpu"))


def clean(denoiser, name, n):
    """Clean states of n patches."""
    images, _ = confirmation.MODELS[name].PATCHES.draw(np.random.default_rng(7), n)
    encode = getattr(denoiser.net, "encode", getattr(denoiser, "encode", lambda x: x))
    return encode(images)


def noisy(denoiser, x0, lam):
    noise = denoiser.noise_schedule
    t = noise.inverse(torch.tensor(lam, dtype=torch.float64))
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x, t = noise.alpha(t) * x0 + noise.sigma(t) * eps, t.float().expand(len(x0))
    null = denoiser.null_condition
    return denoiser.predict(x.float(), t, None if null is None else torch.full((len(x0),), null))


@by_name
def test_at_high_noise_it_predicts_the_datas_mean_and_at_low_noise_its_input(problem, name):
    denoiser = problem(name).denoiser
    x0 = clean(denoiser, name, 300)
    mean, spread = clean(denoiser, name, 2000).mean(0), x0.std()
    assert (noisy(denoiser, x0, -2.5).mean(0) - mean).square().mean().sqrt() < 0.25 * spread
    least = denoiser.noise_schedule
    lam = float(least.lambda_(torch.tensor(least.t_min, dtype=torch.float64)))
    assert (noisy(denoiser, x0, lam) - x0).square().mean().sqrt() < 1.2 * np.exp(-lam) < 0.1 * spread


@by_name
def test_its_noise_is_of_its_kind_and_no_development_model_has_it(problem, name):
    assert type(problem(name).denoiser.noise_schedule) is NOISE[name]
    assert type(problem("photos").denoiser.noise_schedule) not in NOISE.values()


def test_what_their_networks_predict_differs(problem):
    told = {name: getattr(problem(name).denoiser, "training_of", None) for name in ("flow", "guided", "latent")}
    assert told["flow"].prediction == "flow_prediction"
    assert told["guided"].prediction == told["latent"].prediction == "epsilon"
    assert told["guided"].noise != told["latent"].noise


@by_name
def test_the_judge_has_another_task_and_another_architecture_than_what_the_fits_see_by(problem, name):
    this, images = problem(name), torch.zeros(2, *problem(name).denoiser.sample_shape)
    seen, judge = (confirmation.look(name, which, confirmation.path(name, which)) for which in ("seen", "judge"))
    assert isinstance(seen, Classifier)
    assert isinstance(judge, Restorer)
    assert this.seen(images).shape == (2, 64)
    assert this.judge(images).shape == (2, 96)


@by_name
def test_networks_that_look_have_learned_their_task(problem, name):
    patches = confirmation.MODELS[name].PATCHES
    accuracy, error = (read_tensors(confirmation.path(name, which))[1] for which in ("seen", "judge"))
    assert accuracy["accuracy"] > 2 / (training.TURNS * len(patches.shrink))
    assert error["error"] < 0.75 * training.NOISE / 3**0.5


def test_one_is_guided(problem):
    this = problem("guided").denoiser
    x = torch.randn(4, *this.sample_shape, generator=torch.Generator().manual_seed(0))
    t, labels = torch.tensor(500.0), torch.arange(4)
    null = torch.full((4,), this.null_condition)
    with_label, without = (this.predict(x, t.expand(4), index) for index in (labels, null))
    assert this.guidance == 3
    assert this.network_calls == 2
    assert this.num_classes == len(confirmation.MODELS["guided"].NAMES)
    torch.testing.assert_close(this(x, t, labels), without + 3 * (with_label - without), rtol=1e-4, atol=1e-4)
    assert [problem(name).denoiser.guidance for name in NAMES if name != "guided"] == [1, 1, 1]
    table = registry.make("dpmpp_3m", "logsnr", this.noise_schedule, 3)
    ends = next(iter(generate(this, table, Noises("sample", 0, 40), 40)))
    assert len(ends["condition"].unique()) > 4  # samples are of all classes


def test_one_is_of_latents(problem):
    this = problem("latent").denoiser
    images = this.decode(3 * torch.randn(8, *this.sample_shape, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (8, 3, 32, 32)
    assert images.abs().max() <= 1
    patches, _ = confirmation.MODELS["latent"].PATCHES.draw(np.random.default_rng(3), 100)
    latents = this.net.encode(patches)
    assert (this.decode(latents) - patches).square().mean().sqrt() < 0.3 * patches.std()
    torch.testing.assert_close(latents.std(), torch.tensor(1.0), rtol=0.2, atol=0)


@by_name
def test_its_pictures_are_in_installed_packages(name):
    """Nothing is downloaded."""
    installed = [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    for picture in confirmation.MODELS[name].PATCHES.shrink:
        file = Path(str(pictures.source(picture)))
        assert file.is_file()
        assert file.parent.parent.name in ("datasets", "skimage"), installed


@by_name
def test_patches_are_cut_from_the_picture_that_they_say(name):
    patches = confirmation.MODELS[name].PATCHES
    images, which = patches.draw(np.random.default_rng(0), 40)
    assert images.shape == (40, patches.channels, patches.side, patches.side)
    assert images.abs().max() <= 1
    assert set(which.tolist()) == set(range(len(patches.shrink)))
    for k, (file, shrink) in enumerate(patches.shrink.items()):
        rows = pictures.picture(file, patches.channels, shrink)[:, 0].unfold(2, patches.side, 1)
        patch = max(images[which == k][:, 0], key=torch.std)  # black ones are everywhere
        found = []
        for one in (patch, patch.flip(1)):  # half of them are mirrored
            for i, y, x in (rows == one[0]).all(3).nonzero().tolist():
                block = rows[i, y : y + patches.side, x]
                found.append(block.shape == one.shape and (block == one).all().item())
        assert any(found)


@pytest.mark.parametrize("name", ["flow", "guided", "latent"])
def test_the_projects_own_loader_reads_it(problem, name):
    module, mine = confirmation.MODELS[name], problem(name).denoiser
    settings = {"kind": "callable", "source": f"{module.__name__}:network", "weights": confirmation.path(name)}
    loaded = models.load(settings | module.SETTINGS, channels_last=True)
    x = torch.randn(3, *mine.sample_shape, generator=torch.Generator().manual_seed(0))
    t, labels = torch.tensor(0.5 * mine.noise_schedule.T), torch.arange(3) if mine.num_classes else None
    torch.testing.assert_close(loaded(x, t, labels), mine(x, t, labels), rtol=1e-4, atol=1e-4)
    assert loaded.guidance == mine.guidance


@by_name
def test_its_weights_are_small(name):
    for which in ("", *confirmation.NETWORKS):
        assert (HERE / confirmation.path(name, which)).stat().st_size < 3e6


def test_learning_on_them_is_a_stage_of_its_own():
    assert SETTINGS["models"] == ["digits", "photos", "mixture"]
    assert SETTINGS["confirmation"] == list(NAMES)
    over = {stage: str(block["matrix"]["model"]) for stage, block in STAGES["stages"].items() if "matrix" in block}
    assert {stage for stage, models in over.items() if "confirmation" in models} == {
        "train_confirmation", "reference_confirmation", "pairs_confirmation", "learn_confirmation"}  # fmt: skip


@pytest.fixture
def regression():
    """What minimises a loss with its minimum at 3, in so many steps; and a scratch that keeps the first half."""

    def run(steps, scratch, fail_at=None):
        torch.manual_seed(0)
        net, made = nn.Linear(1, 1), []

        def loss(rng):
            made.append(1)
            if len(made) == fail_at:
                raise KeyboardInterrupt
            return (net(torch.tensor(rng.standard_normal((8, 1)), dtype=torch.float32)) - 3).square().mean()

        training.minimise(net, loss, UNetTraining(steps, 8, 0.05, 0.9, 0), scratch, "test")
        return net

    return run


def test_an_interrupted_training_resumes_to_the_same_weights(regression, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = regression(200, Scratch("whole"))
    with pytest.raises(KeyboardInterrupt):
        regression(200, Scratch("cut"), fail_at=150)
    resumed = regression(200, Scratch("cut"))
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)
    assert abs(whole.bias.item() - 3) < 0.1
