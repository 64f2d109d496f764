"""The adapter for all pipelines: against the adapters of their own that some have, and what it refuses."""

import dataclasses
import json

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import pipes

from s4spipe import models
from s4spipe.models.base.loading import embed
from s4spipe.models.diffusers import conditions
from s4spipe.models.diffusers.generic import Generic, arguments
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_tensors, write_tensors

PROMPTS = ["a cat", "two dogs on the sea", "x"]
GUIDED = {"guidance": 3.0}
MAKE = {
    "SD": (pipes.stable_diffusion, GUIDED),
    "SD, v": (lambda: pipes.stable_diffusion("v_prediction"), GUIDED),
    "SDXL": (pipes.stable_diffusion_xl, GUIDED),
    "SD3": (pipes.stable_diffusion_3, GUIDED),
    "Flux": (pipes.flux_pipeline, {}),
    "Flux, guided": (lambda: pipes.flux_pipeline(True), GUIDED),
}
SAME = {"num_images_per_prompt": 1}  # says nothing new, and chooses the adapter for all


def embedded(options, path, prompts=PROMPTS):
    tensors, about = embed(options, prompts, torch.device("cpu"))
    write_tensors(path, tensors, about | {"prompts": prompts, "model": {}})
    return options | {"embeddings": str(path)}


@pytest.fixture(params=MAKE)
def both(request, tmp_path):
    """The denoiser by the pipeline's own adapter, and by the one for all."""
    torch.manual_seed(0)
    make, options = MAKE[request.param]
    options = {"kind": "diffusers", "weights": str(pipes.saved(make(), tmp_path / "model")), "condition": "prompts",
               "size": 8, **options}  # fmt: skip
    own = models.load(embedded(options, tmp_path / "own.safetensors"))
    return own, models.load(embedded(options | {"pipeline": SAME}, tmp_path / "all.safetensors"))


def test_a_denoiser_is_that_of_the_pipelines_own_adapter(both):
    """Rows with times and prompts of their own; its derivatives by the state and by the time too."""
    own, general = both
    assert isinstance(general, Generic)
    assert not isinstance(own, Generic)
    assert own.sample_shape == general.sample_shape
    assert own.network_calls == general.network_calls
    x, probe = torch.randn(2, 3, *own.sample_shape, generator=torch.manual_seed(1)).double()
    t = own.noise_schedule.inverse(torch.tensor([-1.0, 0.5, 1.0]).double())
    found = []
    for denoiser in both:
        inputs = [x.clone().requires_grad_(), t.clone().requires_grad_()]
        x0 = denoiser(*inputs, torch.tensor([2, 0, 1]))
        found.append((x0, *torch.autograd.grad((x0 * probe).sum(), inputs)))
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-5 * one.abs().max()


@torch.no_grad()
def test_images_are_those_of_the_pipelines_own_adapter(both):
    x = torch.randn(2, *both[0].sample_shape, generator=torch.manual_seed(1))
    one, other = (denoiser.decode(x) for denoiser in both)
    torch.testing.assert_close(other, one.clamp(-1, 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_latents_are_decoded_few_at_a_time(both, monkeypatch):
    """Whatever run.batch_size is: so many latents of SDXL's size would not fit into memory."""
    x = torch.randn(5, *both[0].sample_shape, generator=torch.manual_seed(1))
    for denoiser in both:
        seen = []
        vae = denoiser.vae if hasattr(denoiser, "vae") else denoiser.through.pipe.vae
        vae.decoder.register_forward_pre_hook(lambda _net, args, seen=seen: seen.append(len(args[0])))
        whole = denoiser.decode(x)
        monkeypatch.setattr("s4spipe.models.base.denoiser.DECODED", 2 * x[0].numel() + 1)
        torch.testing.assert_close(denoiser.decode(x), whole, rtol=1e-5, atol=1e-6)
        assert seen == [5, 2, 2, 1]
        monkeypatch.undo()


def test_text_encoders_run_once_for_each_prompt_and_not_for_a_denoiser(tmp_path, monkeypatch):
    pipes.saved(pipes.stable_diffusion_xl(), tmp_path / "model")
    calls = []
    own = diffusers.StableDiffusionXLPipeline.encode_prompt
    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "encode_prompt",
                        lambda pipe, *args, **kwargs: (calls.append(args), own(pipe, *args, **kwargs))[1])  # fmt: skip
    options = {"kind": "diffusers", "weights": str(tmp_path / "model"), "condition": "prompts", "pipeline": SAME}
    options = embedded(options, tmp_path / "prompts.safetensors")
    assert len(calls) == len(PROMPTS) + 1  # the first one twice over, to see which tensors have rows
    denoiser = models.load(options)
    denoiser(torch.randn(2, *denoiser.sample_shape), torch.tensor(0.5), torch.tensor([0, 1]))
    assert len(calls) == len(PROMPTS) + 1
    assert denoiser.through.pipe.text_encoder is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"pipeline": {"guidence_scale": 3.0}},
            r"model.pipeline: StableDiffusionPipeline does not know 'guidence_scale'",
        ),
        ({"pipeline": 3}, "model.pipeline: must be a mapping"),
        ({"pipeline": SAME, "condition": "none"}, "model.condition: must be prompts for this pipeline"),
        ({"pipeline": SAME, "embeddings": "own.safetensors"}, "made by another adapter"),
        ({"pipeline": SAME, "embeddings": "short.safetensors"}, "does not hold 3 embeddings of each kind"),
        ({"pipeline": {**SAME, "width": 12}}, "have to be divisible by 8"),
    ],
)
def test_what_a_pipeline_does_not_take_is_told(change, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipes.saved(pipes.stable_diffusion(), tmp_path / "model")
    options = {"kind": "diffusers", "weights": "model", "condition": "prompts", "size": 8}
    embedded(options, tmp_path / "own.safetensors")
    options = embedded(options | {"pipeline": SAME}, tmp_path / "all.safetensors")
    tensors, about = read_tensors("all.safetensors")
    write_tensors("short.safetensors", tensors | {"0": tensors["0"][:2]}, about)
    with pytest.raises(UserError, match=says):
        models.load(options | change)


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        ("DDPMPipeline2", "unknown pipeline 'DDPMPipeline2': did you mean DDPMPipeline"),
        ("UNet2DModel", "unknown pipeline 'UNet2DModel'.* must name a class of diffusers"),
        (["StableDiffusionPipeline"], "unknown pipeline"),
        ("MarigoldDepthPipeline", "no such file|has no encode_prompt"),
    ],
)
def test_a_class_that_is_no_pipeline_is_refused(cls, says, tmp_path):
    pipes.saved(pipes.stable_diffusion(), tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": cls}))
    options = {"kind": "diffusers", "weights": str(tmp_path), "condition": "prompts", "embeddings": "x"}
    for act in (lambda: models.load(options), lambda: embed(options, ["a"], torch.device("cpu"))):
        with pytest.raises(UserError, match=says):
            act()


LEAVES = st.sampled_from(["rows", "blocks", "constant", "list", "none", "number"])


def made(shape, prompts, count):
    """Something that an encode_prompt may return for these prompts, each `count` long."""
    if isinstance(shape, tuple):
        return tuple(made(inner, prompts, count) for inner in shape)
    if isinstance(shape, dict):
        return {key: made(inner, prompts, count) for key, inner in shape.items()}
    rows = torch.stack([torch.full((count, 2), float(ord(prompt))) for prompt in prompts])
    return {"rows": rows, "blocks": torch.cat([-rows, rows]), "constant": torch.arange(5.0), "list": list(rows),
            "none": None, "number": 3}[shape]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    shape=st.recursive(LEAVES, lambda inner: st.lists(inner, min_size=1, max_size=3).map(tuple)
                       | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3), max_leaves=6),
    prompts=st.text("xyz", min_size=1, max_size=4),
)  # fmt: skip
def test_what_was_encoded_prompt_by_prompt_is_put_together_for_any_batch(shape, prompts):
    how = conditions.rule(made(shape, "q", 3), made(shape, "qq", 3))
    how = json.loads(json.dumps(how))  # as it is in the file
    parts = [conditions.tensors(made(shape, prompt, 3), how) for prompt in prompts]
    (found,) = conditions.together(parts, [how])
    assert same(found, made(shape, prompts, 3))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_what_has_no_rows_is_refused():
    for one, two in ((object(), object()), ((1, 2), (1, 2, 3)), ("a", "b"), (1, True)):
        with pytest.raises(UserError, match="neither tensors nor a constant"):
            conditions.rule(one, two)
    how = conditions.rule((torch.ones(2, 3), 1), (torch.ones(3, 3), 1))
    assert conditions.alone(how)  # evaluated prompt by prompt
    (found,) = conditions.together([[torch.ones(2, 3)]], [how])
    assert same(found, (torch.ones(2, 3), 1))


def test_what_has_no_rows_but_differs_from_prompt_to_prompt_is_found():
    shape = ("rows", {"a": "constant", "b": "list"}, "number")
    how = [conditions.rule(made(shape, "q", 3), made(shape, "qq", 3)), {"is": "constant"}]
    rows = [[*conditions.tensors(made(shape, prompt, 3), how[0]), torch.ones(2)] for prompt in "xyz"]
    assert conditions.agree(rows, how)
    rows[2][-1] = torch.zeros(2)
    assert not conditions.agree(rows, how)
    rows[2][-1] = torch.zeros(3)  # of another shape, it is not evaluated together with the others
    assert conditions.agree(rows, how)
    assert not conditions.alone(how[0])
    assert conditions.alone(how[0] | {"alone": True})


@pytest.mark.parametrize(
    ("key", "value", "says"), [("guidance", 3.0, "guidance_scale"), ("size", 8, "height and width")]
)
def test_a_pipeline_without_guidance_or_size_refuses_them(key, value, says):
    class Plain:
        def __call__(self, prompt):
            pass

    options = models.ModelSettings.of({"weights": "x", "kind": "diffusers"})
    assert arguments(Plain, options) == {}
    with pytest.raises(UserError, match=f"model.{key}: the call of Plain does not take {says}"):
        arguments(Plain, dataclasses.replace(options, **{key: value}))


def test_embeddings_of_different_lengths_are_kept_one_by_one(tmp_path):
    prompts = [[torch.ones(1, n, 2), torch.full((1, 4), n)] for n in (3, 3, 5)]
    tensors = conditions.stacked(prompts)
    assert {key: list(value.shape) for key, value in tensors.items()} == {
        "0/0": [1, 3, 2], "0/1": [1, 3, 2], "0/2": [1, 5, 2], "1": [3, 1, 4]}  # fmt: skip
    about = {"guided": False, "rules": [], "prompts": ["a", "b", "c"], "model": {}}
    write_tensors(tmp_path / "a.safetensors", tensors, about)
    encoded = conditions.Encoded(tmp_path / "a.safetensors")
    for i, prompt in enumerate(prompts):
        for ours, theirs in zip(encoded.tensors(i, torch.empty(0, dtype=torch.float64)), prompt, strict=True):
            assert torch.equal(ours, theirs.to(ours))
            assert ours.dtype == (torch.float64 if theirs.is_floating_point() else theirs.dtype)
    assert encoded.shapes(0) == encoded.shapes(1) != encoded.shapes(2)
