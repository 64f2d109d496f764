"""Pipelines' folders that are not whole, or whose files do not go together: refused in one sentence, never made up."""

import shutil
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import pipes
from support.hostile import said_of

from s4spipe import models
from s4spipe.runtime.files import read_json, write_json, write_tensors
from s4spipe.sampling.images import to_uint8

pytestmark = pytest.mark.usefixtures("place")
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(place):
    pipes.unconditional()[0].save_pretrained("model")
    return place / "model"


def loaded(**more):
    return models.load({"kind": "diffusers", "weights": "model", "condition": "none"} | more)


def change(path, **keys):
    write_json(path, read_json(path) | keys)


def rewritten(path, change):
    """A file of weights, in which `change` has left out, renamed or changed some."""
    save_file(change(load_file(path)), path, {"format": "pt"})


@pytest.mark.parametrize("key", ["conv_out.bias", "mid_block.attentions.0.to_q.weight"])
def test_a_network_whose_file_lacks_weights_is_refused(key, folder):
    """diffusers fills them with whatever the memory holds."""
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    rewritten(path, lambda tensors: {name: value for name, value in tensors.items() if name != key})
    assert f"its files lack 1 of the weights of UNet2DModel, such as '{key}'" in said_of(loaded)
    rewritten(path, lambda tensors: {f"_orig_mod.{name}": value for name, value in tensors.items()})
    assert "of the weights of UNet2DModel, such as" in said_of(loaded)


def test_weights_in_half_precision_alone_are_found(folder):
    x, t = torch.randn(1, 3, 8, 8), torch.tensor(300.0)
    before = loaded()(x, t)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert torch.equal(loaded()(x, t), before)


def all_as(variant, folder):
    for path in folder.glob("*/*.safetensors"):
        shutil.copy(path, path.with_name(f"{path.name.split('.')[0]}.{variant}.safetensors"))


@pytest.mark.parametrize("more", [{}, {"pipeline": {"num_images_per_prompt": 1}}], ids=["own adapter", "for all"])
def test_a_pipeline_of_variants_alone_is_loaded_if_it_is_one(more, text):
    def x0():
        denoiser = text.loaded(**more)
        return denoiser(torch.ones(1, *denoiser.sample_shape), torch.tensor(300.0), torch.tensor([0]))

    before, plain = x0(), list(text.folder.glob("*/*.safetensors"))
    all_as("bf16", text.folder)
    for path in plain:
        path.unlink()
    assert torch.equal(x0(), before)
    all_as("fp16", text.folder)
    said = said_of(x0)
    assert "has weights only as the variants bf16, fp16: keep the files of one of them" in said


@pytest.fixture
def text(place):
    """A text-to-image pipeline, and what the stage `prompts` and loading make of it."""
    pipes.saved(pipes.stable_diffusion(), place / "text")

    def embedded(**more):
        settings = {"kind": "diffusers", "weights": "text", "condition": "prompts"} | more
        tensors, about = models.base.loading.embed(settings, ["a cat"], torch.device("cpu"))
        write_tensors("prompts.safetensors", tensors, about | {"prompts": ["a cat"], "model": {}})
        return tensors

    def loaded(**more):
        embedded(**{key: value for key, value in more.items() if key == "pipeline"})
        settings = {"kind": "diffusers", "weights": "text", "condition": "prompts", "embeddings": "prompts.safetensors"}
        return models.load(settings | more)

    return SimpleNamespace(folder=place / "text", embedded=embedded, loaded=loaded)


def without(part):
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


def broken(tensors):
    return {name: torch.full_like(value, torch.nan) for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: rewritten(f / "text_encoder/model.safetensors", without("layers.1")), "its files lack"),
        (lambda f: rewritten(f / "text_encoder/model.safetensors", broken), "text encoder gives numbers that are not"),
        (lambda f: shorten(f / "text_encoder/model.safetensors"), "not a complete"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "its tokenizer is missing"),
    ],
)
def test_a_text_encoder_that_is_not_whole_is_refused(change, says, text):
    change(text.folder)
    assert says in said_of(text.embedded)


def shorten(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: rewritten(f / VAE, without("decoder")), "its files lack"),
        (lambda f: rewritten(f / VAE, broken), "its vae gives numbers that are not finite"),
        (lambda f: pipes.autoencoder(16).save_pretrained(f / "vae"), "not a complete"),
    ],
)
def test_an_autoencoder_that_is_not_whole_or_another_is_refused(change, says, text):
    change(text.folder)
    assert says in said_of(text.loaded)


def test_a_size_that_cannot_be_had_is_refused(text, folder):
    vae = diffusers.AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                                    num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    pipe = pipes.stable_diffusion()
    pipe.register_modules(vae=vae)
    shutil.rmtree(text.folder)
    pipes.saved(pipe, text.folder)
    assert text.loaded(size=16).sample_shape == (4, 8, 8)
    assert "must be a multiple of 2" in said_of(lambda: text.loaded(size=15))
    assert "makes images of its network's own size" in said_of(lambda: loaded(size=16))


def test_an_autoencoder_without_a_shift_is_refused_where_one_is_added(place):
    pipes.saved(pipes.stable_diffusion_3(), place / "sd3")
    change(place / "sd3/vae/config.json", shift_factor=None)
    settings = {"kind": "diffusers", "weights": "sd3", "condition": "none"}
    assert "its vae has no shift_factor" in said_of(lambda: models.load(settings))


def test_the_schedulers_class_is_the_one_that_the_index_names(folder):
    change(folder / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    config = {"beta_schedule": "scaled_linear", "prediction_type": "epsilon", "num_train_timesteps": 1000}
    write_json(folder / "scheduler/scheduler_config.json", config)
    theirs = diffusers.DDPMPipeline.from_pretrained(folder).scheduler.alphas_cumprod
    ours = loaded().noise_schedule.alphas_cumprod
    assert torch.allclose(torch.tensor(ours).float(), theirs, rtol=1e-4)
    change(folder / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    assert "EDMEulerScheduler" in said_of(loaded)


@pytest.mark.parametrize("content", [None, 3, [1], "abc", {"tableau": None}, {"tableau": {}}, {"tableau": [1]}])
def test_a_schedulers_config_that_is_none_is_refused(content, folder):
    write_json(folder / "scheduler/scheduler_config.json", content)
    assert "scheduler" in said_of(loaded)


@pytest.mark.parametrize("size", [None, [8], 8.0, "64", True, 0])
def test_a_networks_size_is_one_or_two_whole_numbers(size, folder):
    change(folder / "unet/config.json", sample_size=size)
    assert "sample_size, got" in said_of(loaded)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 4, 8, 8), (2, 2, 8), (2, 3, 4, 8, 8)])
def test_what_is_no_image_is_not_made_one(shape):
    assert "need 1 or 3 channels" in said_of(lambda: to_uint8(torch.zeros(shape)))


def test_images_that_are_not_finite_are_not_made_black():
    x = torch.zeros(3, 1, 4, 4)
    x[1, 0, 2, 2] = torch.nan
    assert "not finite (NaN or infinite) for 1 of 3 samples" in said_of(lambda: to_uint8(x))


def test_prompts_are_for_models_of_text(folder):
    assert "prompts, but this is no text-to-image model" in said_of(lambda: loaded(condition="prompts"))
