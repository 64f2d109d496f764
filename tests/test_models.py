"""The embedded model, as it lies in git."""

import pytest
import torch
from support import pipes

from s4spipe import models
from s4spipe.features.base import loading
from s4spipe.features.digits import to_255
from s4spipe.learning.pairs import Pairs
from s4spipe.runtime import files
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises, draw, generate
from s4spipe.solvers import registry, timesteps
from s4spipe.training import digits, unet
from s4spipe.training.denoiser import DigitsTraining, train

WEIGHTS = "models/digits.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def denoiser():
    return models.load({"weights": WEIGHTS})


def x_at(sigma, n=6):
    return digits.images()[0][:n] + sigma * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_denoises(denoiser):
    clean, labels = digits.images()
    sigma = torch.tensor(0.5)
    error = (denoiser(x_at(0.5, 200), sigma, labels[:200]) - clean[:200]).square().mean()
    assert error < 0.2 * 0.5**2  # a fifth of the noise's variance is left


def test_preconditioning_is_edms(denoiser):
    """Karras et al. 2022, Table 1, written out for one sigma."""
    x, sigma, s = x_at(1.7), torch.tensor(1.7), unet.SIGMA_DATA
    labels = torch.arange(6)
    F = denoiser.net(x / (1.7**2 + s**2) ** 0.5, sigma.log().expand(6), labels).sample
    expected = s**2 / (1.7**2 + s**2) * x + 1.7 * s / (1.7**2 + s**2) ** 0.5 * F
    torch.testing.assert_close(denoiser(x, sigma, labels), expected, rtol=1e-5, atol=1e-5)


def test_guidance_is_the_combination_of_two_calls(denoiser):
    guided = models.load({"weights": WEIGHTS, "guidance": 2.5})
    x, t, labels = x_at(2.0), torch.tensor(2.0), torch.arange(6)
    with_label, without = denoiser(x, t, labels), denoiser(x, t, None)
    assert (with_label - without).abs().max() > 0.1
    torch.testing.assert_close(guided(x, t, labels), without + 2.5 * (with_label - without), rtol=1e-4, atol=1e-4)


def test_samples_do_not_depend_on_the_batch(denoiser, tmp_path):
    noise = denoiser.noise_schedule
    tableau = registry.build("unipc_bh2", noise, timesteps.build("edm", noise, 5))
    made = {}
    for size in (1, 7, 64):
        shards = generate(denoiser, tableau, Noises("sample", 3, 64), size, Scratch(tmp_path / str(size)))
        made[size] = Pairs.of(shards)
    for size in (1, 7):
        assert torch.equal(made[size].x_T, made[64].x_T)
        assert torch.equal(made[size].condition, made[64].condition)
        torch.testing.assert_close(made[size].x_0, made[64].x_0, rtol=1e-4, atol=1e-4)


def test_draws_are_functions_of_seed_stream_and_index(denoiser):
    x, labels = draw(denoiser, "train", 0, range(5, 9))
    again, _ = draw(denoiser, "train", 0, range(7, 8))
    assert torch.equal(x[2:3], again)
    others = [draw(denoiser, *other, range(5, 9))[0] for other in (("train", 1), ("validation", 0), ("sample", 0))]
    assert not any(torch.equal(x, other) for other in others)
    unconditional = models.load({"weights": WEIGHTS, "condition": "none"})
    alone, none = draw(unconditional, "train", 0, range(5, 9))
    assert none is None
    assert torch.equal(alone, x)
    many, labels = draw(denoiser, "train", 0, range(2000))
    assert many.std().item() == pytest.approx(80.0, rel=0.01)
    assert set(labels.tolist()) == set(range(10))


def test_solving_resumes_from_its_shards(denoiser, tmp_path):
    noise = denoiser.noise_schedule
    tableau = registry.build("ddim", noise, timesteps.build("edm", noise, 2))
    arguments = (denoiser, tableau, Noises("sample", 0, 30), 10)
    whole = Pairs.of(generate(*arguments, Scratch(tmp_path / "a")))
    stopped = generate(*arguments, Scratch(tmp_path / "b"))
    next(stopped)
    stopped.close()
    assert len(list((tmp_path / "b").iterdir())) == 1
    resumed = Pairs.of(generate(*arguments, Scratch(tmp_path / "b")))
    assert torch.equal(whole.x_0, resumed.x_0)


def test_pairs_round_trip_and_ask_for_no_more_than_there_are(tmp_path):
    pairs = Pairs(torch.randn(4, 3), torch.randn(4, 3), torch.arange(4))
    pairs.save(tmp_path / "p.safetensors")
    two = Pairs.load(tmp_path / "p.safetensors", CPU, 2)
    assert torch.equal(two.x_0, pairs.x_0[:2])
    with pytest.raises(UserError, match="holds 4 pairs, 5 were asked for"):
        Pairs.load(tmp_path / "p.safetensors", CPU, 5)


@pytest.mark.slow
def test_training_resumes_where_it_was_killed(tmp_path, monkeypatch):
    """The same weights to the bit, killed after its first tenth or not."""
    training = DigitsTraining(steps=100, batch_size=2, learning_rate=1e-3, ema=0.99, label_dropout=0.1, seed=0)
    monkeypatch.setitem(unet.UNET, "block_out_channels", [8, 8])
    monkeypatch.setitem(unet.UNET, "attention_head_dim", 8)
    train(tmp_path / "whole.safetensors", training, CPU, Scratch(tmp_path / "a"))
    scratch = Scratch(tmp_path / "b")

    def save_and_die(name, state):
        Scratch.save(scratch, name, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(scratch, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed.safetensors", training, CPU, scratch)
    assert not (tmp_path / "killed.safetensors").exists()
    train(tmp_path / "killed.safetensors", training, CPU, Scratch(tmp_path / "b"))
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "killed.safetensors").read_bytes()


def described_as(path, changed):
    """Change what a model's file says of its network."""
    tensors, metadata = files.read_tensors(path)
    unet = metadata["unet"] | changed.get("unet", {})
    files.write_tensors(path, tensors, metadata | changed | {"unet": unet})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "not a complete safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not a complete safetensors file"),
        (lambda path: path.write_bytes(b"PK"), "not a complete safetensors file"),
        (lambda path: path.write_bytes(open("models/features.safetensors", "rb").read()), "does not hold a U-Net"),
        (lambda path: files.write_tensors(path, {}, {"unet": {"sample_size": "x"}}), "does not hold a U-Net"),
        (lambda path: files.write_tensors(path, {}, None), "does not hold a U-Net"),
        *(
            (lambda path, changed=changed: described_as(path, changed), f"does not hold a U-Net .*{says}")
            for changed, says in (
                ({"sigma_data": 0}, "sigma_data must be a positive number, got 0"),
                ({"sigma_data": -0.5}, "sigma_data must be a positive number, got -0.5"),
                ({"sigma_data": float("nan")}, "sigma_data must be a positive number, got nan"),
                ({"sigma_data": "0.5"}, "sigma_data must be a positive number, got '0.5'"),
                ({"shuffle": 3}, "shuffle 3 needs a multiple of 9 channels, got 1"),
                ({"shuffle": "2"}, "shuffle must be a whole number, got '2'"),
                ({"shuffle": -1}, "shuffle must be at least 1, got -1"),
                ({"shuffle": 0}, "shuffle must be at least 1, got 0"),
                ({"unet": {"block_out_channels": [2**16, 2**16]}}, r"is \[32, 1, 3, 3\], not \[65536, 1, 3, 3\]"),
                ({"unet": {"layers_per_block": 10**9}}, "1000000000 layers of .* tensors"),
                ({"unet": {"num_class_embeds": 10**12}}, r"class_embedding.weight is .*, not \[1000000000000, "),
            )
        ),
    ],
)
def test_a_broken_model_file_is_told(change, says, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(open(WEIGHTS, "rb").read())
    change(path)
    with pytest.raises(UserError, match=says) as error:
        models.load({"weights": str(path)})
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_features_tell_digits_apart():
    net = loading.load("digits", "models/features.safetensors", CPU)
    images, labels = digits.images()
    logits = net.head(net(to_255(images)))
    assert (logits.argmax(1) == labels).float().mean() > 0.97


def test_features_of_another_network_are_refused():
    with pytest.raises(UserError, match="not the weights of the digits' features network"):
        loading.load("digits", WEIGHTS, CPU)


def test_features_of_a_gigantic_network_take_no_memory(tmp_path):
    path = tmp_path / "features.safetensors"
    tensors, about = files.read_tensors("models/features.safetensors")
    files.write_tensors(path, tensors, (about or {}) | {"shape": {"channels": [10**9, 10**9, 64]}})
    with pytest.raises(UserError, match="not the weights of the digits' features network"):
        loading.load("digits", str(path), CPU)


def test_labels_of_a_model_without_classes_are_told(tmp_path):
    folder = pipes.saved(pipes.unconditional()[0], tmp_path / "m")
    with pytest.raises(UserError, match="model.condition: labels, but this model has no classes; use none"):
        models.load({"kind": "diffusers", "weights": str(folder), "condition": "labels"})


def test_settings_are_data_or_a_mapping_whose_keys_are_known():
    settings = models.ModelSettings(WEIGHTS, guidance=2.0)
    by_mapping = {"weights": WEIGHTS, "guidance": 2.0, "source": None}  # null is as if the key were not there
    assert models.ModelSettings.of(by_mapping) == settings
    assert models.ModelSettings.of(settings) is settings
    x, t, labels = x_at(2.0), torch.tensor(2.0), torch.arange(6)
    assert torch.equal(models.load(settings)(x, t, labels), models.load(by_mapping)(x, t, labels))
    for use in (models.load, models.noise_schedule, models.identity):
        with pytest.raises(UserError, match="unknown key of the model's settings 'wieghts': did you mean 'weights'"):
            use({"wieghts": WEIGHTS})
    with pytest.raises(UserError, match="model.weights: missing"):
        models.load({"kind": "digits"})


def test_a_loaded_model_says_what_it_is(denoiser):
    assert denoiser.device == CPU
    assert (denoiser.num_classes, denoiser.null_condition, denoiser.conditional) == (10, 10, True)
    assert denoiser.identity == models.identity({"weights": WEIGHTS})
    assert not denoiser.training
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())
    assert denoiser.noise_schedule == models.noise_schedule({"weights": "no/such/file"})  # without its network
    assert models.load({"weights": WEIGHTS, "condition": "none"}).conditional is False


def test_channels_last_changes_no_more_than_the_last_digits(denoiser):
    other = models.load({"weights": WEIGHTS}, channels_last=True)
    x, t, labels = x_at(2.0), torch.tensor(2.0), torch.arange(6)
    assert other.net.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(other(x, t, labels), denoiser(x, t, labels), rtol=1e-5, atol=1e-5)
