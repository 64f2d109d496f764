"""Solvers that scale their noises (c_0 != 1, as `free` does) in diffusers' pipelines of small random networks."""

from dataclasses import replace

import diffusers
import pytest
import torch
from support.pipes import (
    SCALED,
    classes,
    flow,
    flux,
    guided,
    latent_unconditional,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
    wan,
)
from support.tables import banded

import s4spipe
from s4spipe.models.base.prediction import X0
from s4spipe.models.base.tokens import Grid
from s4spipe.noise import Flow, VPDiscrete, alphas_cumprod
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau.basis import Bands
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry

SD = VPDiscrete(alphas_cumprod("scaled_linear", 0.00085, 0.012, 1000))
LINEAR = VPDiscrete(alphas_cumprod("linear", 1e-4, 0.02, 1000))
FLOW = Flow(t_min=1e-3, T=1 - 1e-3)
WIDE = {"height": 8, "width": 16}


def xl():
    pipe = stable_diffusion_xl()
    pipe.scheduler = diffusers.DDIMScheduler(**SCALED)
    return pipe, {"prompt": ["a", "b"], **WIDE}


def ddim():
    pipe, call = unconditional()
    return diffusers.DDIMPipeline(pipe.unet, diffusers.DDIMScheduler(clip_sample=False)), call


def ldm():
    pipe = latent_unconditional()
    pipe.register_modules(scheduler=diffusers.DDIMScheduler(**SCALED, clip_sample=False))
    return pipe, {"batch_size": 2}


# The pipeline, its noise, what its network predicts, and whether it asks its scheduler to scale what that is shown.
PIPES = {
    "DDPM": (unconditional, LINEAR, "epsilon", False),
    "DDIM": (ddim, LINEAR, "epsilon", False),
    "LDM": (ldm, SD, "epsilon", True),
    "DiT": (classes, LINEAR, "epsilon", True),
    "SD": (guided, SD, "epsilon", True),
    "SDXL": (xl, SD, "epsilon", True),
    "SD3": (flow, FLOW, "flow_prediction", False),
    "Flux": (flux, FLOW, "flow_prediction", False),
    "Wan": (wan, FLOW, "flow_prediction", False),
}


def solver(noise, bands, axes=2):
    table = banded(noise, Bands((0.6, 1.1), axes)) if bands else registry.make("dpmpp_2m", "logsnr", noise, 3)
    c_0 = torch.tensor([0.8, 1.1, 0.9]) if bands else torch.tensor(0.9)
    return replace(table, c_0=c_0.double())


class Recording:
    """What a pipeline shows its network, and what it and its network give the scheduler."""

    def __init__(self, pipe):
        self.shown, self.steps, own = [], [], pipe.scheduler.step
        net = getattr(pipe, "unet", None) or pipe.transformer
        net.register_forward_pre_hook(self.see, with_kwargs=True)

        def step(output, t, sample, **rest):
            self.steps.append((sample.clone(), output[:, : sample.shape[1]].clone()))
            return own(output, t, sample, **rest)

        pipe.scheduler.step = step

    def see(self, _net, args, kwargs):
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        self.shown.append(x.clone())


def run(name, table, put):
    """The end of a pipeline's run with a solver, its noises, what was recorded, and how its tokens lie."""
    make, *_ = PIPES[name]
    torch.manual_seed(0)
    pipe, call = make()
    pipe.set_progress_bar_config(disable=True)
    decoded = {}
    if name in ("LDM", "DiT"):  # which have no output_type "latent"
        vae = pipe.vqvae if name == "LDM" else pipe.vae
        vae.decode = lambda x, *rest, own=vae.decode: (decoded.update(x=x.clone()), own(x, *rest))[1]
    call |= WIDE if name in ("SD", "SD3", "Flux") else {}
    call |= {"output_type": "latent"} if name not in ("LDM", "DiT", "DDPM", "DDIM") else {"output_type": "np"}
    put(pipe, table)
    recording = Recording(pipe)
    end = pipe(**call, num_inference_steps=3, generator=torch.manual_seed(1))[0]
    if name in ("LDM", "DiT"):
        end = decoded["x"] * (pipe.vqvae if name == "LDM" else pipe.vae).config.scaling_factor
    return end, recording


def assign(pipe, table):
    pipe.scheduler = S4SScheduler.from_tableau(table, pipe.scheduler.config)


@pytest.mark.parametrize("bands", [False, True], ids=["plain", "bands"])
@pytest.mark.parametrize("name", PIPES)
def test_a_pipelines_latents_are_our_loops(name, bands):
    _, noise, prediction, asks = PIPES[name]
    table = solver(noise, bands, 3 if name == "Wan" else 2)
    plain = replace(solver(noise, False), c_0=torch.ones((), dtype=torch.float64))
    _, before = run(name, plain, assign)
    noises = before.steps[0][0]
    lie = Grid(4, 8) if name == "Flux" else Grid()
    for put in [s4spipe.apply, assign] if asks else [s4spipe.apply]:
        end, recorded = run(name, table, put)
        met = iter(recorded.steps)
        states = []

        def denoiser(x, t, condition, met=met, states=states):
            states.append(x)
            _, output = next(met)
            return X0[prediction](x, lie.image(output).to(x), noise.alpha(t), noise.sigma(t))

        ours = sample(denoiser, table, lie.image(noises[: len(recorded.steps[0][1])]))
        shown = lie.tokens(states[0])
        torch.testing.assert_close(recorded.shown[0][: len(shown)].to(shown), shown, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(shown.float(), noises[: len(shown)], rtol=1e-2)
        for (state, _), expected in list(zip(recorded.steps, states, strict=True))[1:]:
            torch.testing.assert_close(lie.image(state).to(expected), expected, rtol=1e-4, atol=1e-4)
        if name in ("DDPM", "DDIM"):
            end, ours = torch.as_tensor(end).permute(0, 3, 1, 2), (ours / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(lie.image(end).to(ours), ours[: len(end)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, (*_, asks) in PIPES.items() if not asks])
def test_a_pipeline_that_does_not_ask_for_the_scaling_is_told_of_apply(name):
    _, noise, *_ = PIPES[name]
    with pytest.raises(UserError, match=r"put the solver into it with s4spipe.apply\(pipe, solver\)"):
        run(name, solver(noise, False), assign)


@pytest.mark.parametrize("name", ["SD3", "DDPM"])
def test_undoing_gives_the_pipeline_back_as_it_was(name):
    make, noise, *_ = PIPES[name]
    torch.manual_seed(0)
    pipe, call = make()
    pipe.set_progress_bar_config(disable=True)

    def images():
        call.update(generator=torch.manual_seed(1))
        return torch.as_tensor(pipe(**call, num_inference_steps=3, output_type="np")[0])

    own, before = pipe.scheduler, images()
    first = solver(noise, False)
    with s4spipe.apply(pipe, first) as applied:
        assert (applied.nfe, applied.scheduler, pipe.scheduler) == (3, pipe.scheduler, applied.scheduler)
        scaled = images()
        again = s4spipe.apply(pipe)  # takes the first out
        assert again.scheduler.tableau.agrees(first)
        assert torch.equal(images(), scaled)
        other = s4spipe.apply(pipe, replace(first, c_0=torch.tensor(0.5).double()))
        assert not torch.equal(images(), scaled)
        other.undo()
        other.undo()
        assert pipe.scheduler is own
        assert torch.equal(images(), before)
        s4spipe.apply(pipe, first)
        assert torch.equal(images(), scaled)
        pipe.scheduler = own  # the user's own choice
        assert torch.equal(images(), before)
        with pytest.raises(UserError, match="needs a solver"):
            s4spipe.apply(pipe)
        s4spipe.apply(pipe, first).undo()
        assert pipe.scheduler is own
        assert torch.equal(images(), before)
    assert pipe.scheduler is own


def test_what_is_no_pipeline_with_one_scheduler_is_refused():
    class Both(diffusers.DiffusionPipeline):
        def __init__(self, scheduler):
            super().__init__()
            self.scheduler, self.prior_pipe, self.decoder_pipe = scheduler, object(), object()

    with pytest.raises(UserError, match=r"pipeline of diffusers that has a scheduler, got <class 'int'>"):
        s4spipe.apply(3, solver(SD, False))
    with pytest.raises(UserError, match="Both runs other pipelines.* its prior_pipe or its decoder_pipe"):
        s4spipe.apply(Both(diffusers.DDIMScheduler(**SCALED)), solver(SD, False))
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        s4spipe.aply  # noqa: B018


def test_latents_that_change_before_the_first_step_are_refused():
    pipe, call = flow()
    s4spipe.apply(pipe, solver(FLOW, False))
    inner = pipe.prepare_latents
    pipe.prepare_latents = lambda *args, **kwargs: 2 * inner(*args, **kwargs)
    with pytest.raises(UserError, match="changes its latents before the first step"):
        pipe(**call, num_inference_steps=3)


def test_latents_of_ones_own_are_the_noises():
    pipe, call = flow()
    pipe.set_progress_bar_config(disable=True)
    s4spipe.apply(pipe, solver(FLOW, False))
    x_T = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(3))
    recording = Recording(pipe)
    kept = x_T.clone()
    ends = [pipe(**call, num_inference_steps=3, output_type="latent", latents=x_T).images for _ in range(2)]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(x_T, kept)
    torch.testing.assert_close(recording.shown[0][:2], 0.9 * x_T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_first_state_is_that_of_the_noises(dtype):
    table, x_T = solver(FLOW, True), torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0)).to(dtype)
    ends = []
    for precision in (dtype, torch.float32):
        scheduler = S4SScheduler.from_tableau(table)
        state = x_T.to(precision)
        for t in scheduler.timesteps:
            assert scheduler.scale_model_input(state, t).dtype == precision
            state = scheduler.step(torch.full_like(state, 0.5), t, state).prev_sample
        ends.append(state.float())
    assert (ends[0] - ends[1]).abs().max() <= 0.501 * torch.finfo(dtype).eps * ends[1].abs().max()


def test_under_autocast_the_state_keeps_its_precision():
    table, x_T = solver(FLOW, True), torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
    ends = []
    for enabled in (False, True):
        scheduler, state = S4SScheduler.from_tableau(table), x_T
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for t in scheduler.timesteps:
                scheduler.scale_model_input(state, t)
                state = scheduler.step(torch.full_like(state, 0.5), t, state).prev_sample
        ends.append(state)
    assert torch.equal(*ends)


def test_a_pipeline_saved_with_a_solver_loads_whole_and_makes_the_same(tmp_path):
    """With variance-preserving noise the scheduler alone does it; otherwise the solver is put in again."""
    torch.manual_seed(0)
    pipe = stable_diffusion_xl()
    s4spipe.apply(pipe, solver(SD, True))
    pipe.save_pretrained(tmp_path / "xl")
    again = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "xl", add_watermarker=False)
    assert type(again.scheduler) is S4SScheduler
    call = {"num_inference_steps": 3, "output_type": "np", **WIDE}
    images = [one("a", **call, generator=torch.manual_seed(1)).images for one in (pipe, again)]
    assert (images[0] == images[1]).all()

    pipe = stable_diffusion_3()
    s4spipe.apply(pipe, solver(FLOW, True))
    pipe.save_pretrained(tmp_path / "sd3")
    again = diffusers.StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "sd3", text_encoder_3=None, tokenizer_3=None, image_encoder=None, feature_extractor=None
    )
    with pytest.raises(UserError, match=r"put the solver into it with s4spipe.apply"):
        again("a", **call)
    s4spipe.apply(again)
    images = [one("a", **call, generator=torch.manual_seed(1)).images for one in (pipe, again)]
    assert (images[0] == images[1]).all()
