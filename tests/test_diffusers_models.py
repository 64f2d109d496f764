"""The adapters of diffusers' pipelines, against the pipelines' own components and their own sampling."""

import json

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import pipes, standins

from s4spipe import models
from s4spipe.models.base.settings import ORIGIN
from s4spipe.models.diffusers.prompts import embed
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_lines, write_tensors
from s4spipe.sampling.loop import sample
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry, timesteps

PROMPTS = ["a cat", "two dogs on the sea", "x"]
TEXT = {"condition": "prompts", "guidance": 3.0}
MAKE = {
    "DDPMPipeline": (lambda: pipes.unconditional()[0], {"condition": "none"}),
    "LDMPipeline": (pipes.latent_unconditional, {"condition": "none"}),
    "DiTPipeline": (lambda: pipes.classes()[0], {"condition": "labels", "guidance": 2.0}),
    "StableDiffusionPipeline": (pipes.stable_diffusion, TEXT),
    "StableDiffusionPipeline, v": (lambda: pipes.stable_diffusion("v_prediction"), TEXT),
    "StableDiffusionXLPipeline": (pipes.stable_diffusion_xl, TEXT),
    "StableDiffusion3Pipeline": (pipes.stable_diffusion_3, TEXT),
    "FluxPipeline": (pipes.flux_pipeline, {"condition": "prompts", "size": 8}),
    "FluxPipeline, guided": (lambda: pipes.flux_pipeline(True), {**TEXT, "size": 8}),
}


@pytest.fixture(params=MAKE)
def adapter(request, tmp_path):
    """The name, the pipeline, and our denoiser of its folder."""
    torch.manual_seed(0)
    make, options = MAKE[request.param]
    pipe = make()
    settings = {"kind": "diffusers", "weights": str(pipes.saved(pipe, tmp_path / "model")), **options}
    pipe.set_progress_bar_config(disable=True)
    if options["condition"] == "prompts":
        (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
        texts = read_lines(tmp_path / "prompts.txt", "prompts")
        tensors = embed(models.ModelSettings.of(settings), texts, torch.device("cpu"), batch_size=2)
        about = {"guided": len(tensors["embeds"]) == 4, "prompts": ["a", "b", "c"], "model": {}}
        settings["embeddings"] = str(tmp_path / "prompts.safetensors")
        write_tensors(settings["embeddings"], tensors, about)
    return request.param.split(",")[0], pipe, models.load(settings)


def condition(name):
    return {"labels": torch.tensor([5, 900]), "prompts": torch.tensor([2, 0]), "none": None}[name]


def by_components(name, pipe, x, t, chosen, guidance):
    """x0 predictions as the pipeline's components make them, written out for each, one network call at a time."""
    if name in ("DDPMPipeline", "LDMPipeline"):
        out = pipe.unet(x, t).sample
    elif name == "DiTPipeline":
        call = lambda labels: pipe.transformer(x, timestep=t.expand(2), class_labels=labels).sample[:, :4]  # noqa: E731
        with_it, without = call(chosen), call(torch.tensor([1000, 1000]))
        out = without + guidance * (with_it - without)
    else:
        texts = [PROMPTS[i] for i in chosen]
        if name == "FluxPipeline":
            own, pooled, ids = pipe.encode_prompt(texts, prompt_2=None, device="cpu")
            packed = pipe._pack_latents(x, 2, 4, 8, 8)
            dev = torch.full((2,), guidance) if pipe.transformer.config.guidance_embeds else None
            out = pipe.transformer(
                packed, own, pooled, t.expand(2), txt_ids=ids, guidance=dev,
                img_ids=pipe._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32),
            ).sample  # fmt: skip
            return x - t * pipe._unpack_latents(out, 8, 8, 1)
        if name == "StableDiffusionPipeline":
            own, no = pipe.encode_prompt(texts, "cpu", 1, True)
            with_it, without = (pipe.unet(x, t, encoder_hidden_states=e).sample for e in (own, no))
        elif name == "StableDiffusionXLPipeline":
            own, no, pooled, no_pooled = pipe.encode_prompt(texts, device="cpu")
            ids = torch.tensor([[8.0, 8, 0, 0, 8, 8]] * 2)
            with_it, without = (
                pipe.unet(x, t, encoder_hidden_states=e, added_cond_kwargs={"text_embeds": p, "time_ids": ids}).sample
                for e, p in ((own, pooled), (no, no_pooled))
            )
        else:
            own, no, pooled, no_pooled = pipe.encode_prompt(texts, None, None, device="cpu")
            with_it, without = (
                pipe.transformer(x, e, p, 1000 * t.expand(2)).sample for e, p in ((own, pooled), (no, no_pooled))
            )
        out = without + guidance * (with_it - without)
    if name == "StableDiffusion3Pipeline":
        return x - t * out
    alpha_2 = pipe.scheduler.alphas_cumprod[int(t)]
    alpha, sigma = alpha_2.sqrt(), (1 - alpha_2).sqrt()
    if pipe.scheduler.config.prediction_type == "v_prediction":
        return alpha * x - sigma * out
    return (x - sigma * out) / alpha


@torch.no_grad()
def test_the_denoiser_is_what_the_components_compute(adapter):
    name, pipe, denoiser = adapter
    flow = name in ("StableDiffusion3Pipeline", "FluxPipeline")
    assert denoiser.sample_shape == {"DDPMPipeline": (3, 8, 8), "LDMPipeline": (3, 8, 8), "DiTPipeline": (4, 4, 4)}.get(
        name, (4, 8, 8)
    )
    chosen = condition("none" if not denoiser.num_classes else "labels" if name == "DiTPipeline" else "prompts")
    for t in (0.2, 0.7) if flow else (3.0, 400.0):
        x = torch.randn(2, *denoiser.sample_shape)
        expected = by_components(name, pipe, x, torch.tensor(t), chosen, 2.0 if name == "DiTPipeline" else 3.0)
        ours = denoiser(x, torch.tensor(t, dtype=torch.float64), chosen)
        assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
        double = denoiser(x.double(), torch.tensor(t, dtype=torch.float64), chosen)  # as the sampling loop calls it
        assert (double - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_sampling_and_decoding_are_the_pipelines_own(adapter):
    """Images by the pipeline, S4SScheduler in it, against our loop from the same noise."""
    name, pipe, denoiser = adapter
    noise = denoiser.noise_schedule
    table = registry.build("dpmpp_2m", noise, timesteps.build("logsnr", noise, 4))
    pipe.scheduler = S4SScheduler.from_tableau(table, pipe.scheduler.config)
    call = {"num_inference_steps": 4, "output_type": "np", "generator": torch.Generator().manual_seed(1)}
    x = torch.randn(2, *denoiser.sample_shape, generator=torch.Generator().manual_seed(1))
    chosen = condition("none" if not denoiser.num_classes else "labels" if name == "DiTPipeline" else "prompts")
    if name == "DiTPipeline":
        call |= {"class_labels": chosen.tolist(), "guidance_scale": 2.0}
    elif chosen is None:
        call |= {"batch_size": 2}
    else:
        call |= {"prompt": [PROMPTS[i] for i in chosen], "guidance_scale": 3.0, "height": 8, "width": 8}
    expected = pipe(**call).images
    ours = denoiser.decode(sample(denoiser, table, x, chosen))
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert expected.shape == ours.shape
    assert np.abs(ours - expected).max() < 1e-3
    assert expected.std() > 0.01


def test_guidance_is_one_call_and_counted(adapter):
    name, _, denoiser = adapter
    calls = []
    denoiser.net.register_forward_hook(lambda *_: calls.append(1))
    chosen = condition("none" if not denoiser.num_classes else "labels" if name == "DiTPipeline" else "prompts")
    denoiser(torch.randn(2, *denoiser.sample_shape), torch.tensor(0.5), chosen)
    assert len(calls) == 1
    assert denoiser.network_calls == (2 if name not in ("DDPMPipeline", "LDMPipeline", "FluxPipeline") else 1)


def test_gradients_reach_the_noise_and_not_the_network(adapter):
    name, _, denoiser = adapter
    x = torch.randn(2, *denoiser.sample_shape, requires_grad=True)
    chosen = condition("none" if not denoiser.num_classes else "labels" if name == "DiTPipeline" else "prompts")
    denoiser.decode(denoiser(x, torch.tensor(0.5), chosen)).sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in denoiser.parameters())


def test_a_class_conditional_latent_model_attends_to_a_table(tmp_path):
    torch.manual_seed(0)
    folder = standins.class_conditional_ldm(tmp_path / "m")
    pipe = diffusers.LDMPipeline.from_pretrained(folder)
    table = load_file(folder / "class_embedding.safetensors")["weight"]
    denoiser = models.load({"kind": "diffusers", "weights": str(folder), "guidance": 2.0})
    assert denoiser.num_classes == 4
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(300.0)
    with torch.no_grad():
        own, no = (pipe.unet(x, t, encoder_hidden_states=table[rows][:, None]).sample for rows in ([1, 3], [4, 4]))
        alpha_2 = pipe.scheduler.alphas_cumprod[300]
        expected = (x - (1 - alpha_2).sqrt() * (no + 2 * (own - no))) / alpha_2.sqrt()
        assert (denoiser(x, t, torch.tensor([1, 3])) - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_a_class_conditional_flow_model(tmp_path):
    """As SiT is, in DiT's pipeline: velocities, and times from 0 to 1000."""
    torch.manual_seed(0)
    pipe, _ = pipes.classes()
    pipe.register_modules(scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    folder = pipes.saved(pipe, tmp_path / "m")
    denoiser = models.load({"kind": "diffusers", "weights": str(folder), "condition": "labels"})
    x, t, labels = torch.randn(2, 4, 4, 4), torch.tensor(0.3), torch.tensor([7, 8])
    velocity = pipe.transformer(x, timestep=torch.full((2,), 300.0), class_labels=labels).sample[:, :4]
    torch.testing.assert_close(denoiser(x, t, labels), x - 0.3 * velocity, rtol=1e-4, atol=1e-5)


def test_an_old_flat_upload_is_read(tmp_path):
    torch.manual_seed(0)
    pipe, _ = pipes.unconditional()
    folder = pipes.saved(pipe, tmp_path / "m")
    for name in ("unet", "scheduler"):
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()
    denoiser = models.load({"kind": "diffusers", "weights": str(folder)})
    x = torch.randn(2, 3, 8, 8)
    out = pipe.unet(x, 10.0).sample
    alpha_2 = pipe.scheduler.alphas_cumprod[10]
    expected = (x - (1 - alpha_2).sqrt() * out) / alpha_2.sqrt()
    torch.testing.assert_close(denoiser(x, torch.tensor(10.0)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "model_index.json").unlink(), "not a diffusers pipeline"),
        (
            lambda f: rewrite(f / "model_index.json", _class_name="DDPMPipelin"),
            "unknown pipeline 'DDPMPipelin': did you",
        ),
        (lambda f: rewrite(f / "model_index.json", _class_name=["pipeline", "Mine"]), "unknown pipeline"),
        (
            lambda f: rewrite(f / "model_index.json", unet=["my_code", "Net"]),
            "its unet comes from my_code, but only networks",
        ),
        (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "holds no scheduler_config.json"),
        (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"PK"), "not a complete DDPMPipeline"),
        (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "not a complete DDPMPipeline"),
        (lambda f: rewrite(f / "scheduler/scheduler_config.json", prediction_type="eps"), "did you mean 'epsilon'"),
    ],
)
def test_a_broken_folder_is_told_in_a_sentence(change, says, tmp_path):
    folder = pipes.saved(pipes.unconditional()[0], tmp_path / "m")
    change(folder)
    with pytest.raises(UserError, match=says) as error:
        models.load({"kind": "diffusers", "weights": str(folder)})
    assert "\n" not in str(error.value)


def rewrite(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_missing_folder_and_unmade_embeddings_are_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        models.load({"kind": "diffusers", "weights": str(tmp_path / "nowhere")})
    folder = pipes.saved(pipes.stable_diffusion(), tmp_path / "m")
    prompted = {"kind": "diffusers", "weights": str(folder), "condition": "prompts"}
    with pytest.raises(UserError, match="prompts.safetensors: no such file; name your file of prompts"):
        models.load(prompted | {"embeddings": str(tmp_path / "prompts.safetensors")})
    with pytest.raises(UserError, match="`embeddings`"):
        models.load(prompted)
    write_tensors(tmp_path / "prompts.safetensors", {}, {"count": 0})  # of a run without prompts
    with pytest.raises(UserError, match="prompts.safetensors: not a file of the stage prompts"):
        models.load(prompted | {"embeddings": str(tmp_path / "prompts.safetensors")})


def test_which_model_it_is(tmp_path):
    """The identity follows the files' content, wherever they lie, and the hub's commit if there is one."""
    folder = pipes.saved(pipes.unconditional()[0], tmp_path / "m")
    settings = {"kind": "diffusers", "weights": str(folder)}
    first = models.identity(settings)
    assert first["source"] == "m"
    folder.rename(tmp_path / "n")
    moved = models.identity(settings | {"weights": str(tmp_path / "n")})
    assert moved["fingerprint"] == first["fingerprint"]
    (tmp_path / "n" / ORIGIN).write_text('{"source": "google/x", "commit": "abc"}')
    again = models.identity(settings | {"weights": str(tmp_path / "n")})
    assert (again["source"], again["commit"]) == ("google/x", "abc")
