"""What pipelines ask of their scheduler besides steps in turn: starting in the middle, times of their own, options."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pipes import SCALED, autoencoder, flow, guided, stable_diffusion
from support.problems import NOISES
from support.tables import banded

import s4spipe
from s4spipe.models.base import times
from s4spipe.noise import Flow, VPDiscrete, alphas_cumprod
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau.basis import Bands
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry

SD = NOISES["vp_discrete"]
LINEAR = VPDiscrete(alphas_cumprod("linear", 1e-4, 0.02, 1000))
FLOW = Flow(t_min=1e-6, T=1 - 1e-6)
VELOCITY = {"use_flow_sigmas": True, "num_train_timesteps": 1000}
NFE = 4


def from_images(make):
    torch.manual_seed(0)
    pipe, call = make()
    kind = diffusers.StableDiffusionImg2ImgPipeline if make is guided else diffusers.StableDiffusion3Img2ImgPipeline
    parts = dict(pipe.components) | ({"requires_safety_checker": False} if make is guided else {})
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    sizes = () if make is flow else ("height", "width")
    call = {key: value for key, value in call.items() if key not in sizes}
    return pipe, call | {"image": torch.rand(2, 3, 8, 8, generator=torch.manual_seed(5)), "num_inference_steps": NFE}


def latents(pipe, call, strength):
    return pipe(**call, strength=strength, output_type="latent", generator=torch.manual_seed(3)).images


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_image_to_image_is_that_of_diffusers_own(solver, strength):
    """A single-step and a multistep method, which diffusers too begins with first order."""
    pipe, call = from_images(guided)
    if solver == "ddim":
        theirs = diffusers.DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    else:
        theirs = diffusers.DPMSolverMultistepScheduler(**SCALED, final_sigmas_type="sigma_min", lower_order_final=True)
    pipe.scheduler = theirs
    expected = latents(pipe, call, strength)
    t = torch.cat([theirs.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    pipe.scheduler = S4SScheduler.from_tableau(registry.build(solver, SD, t), SCALED)
    assert pipe.scheduler.timesteps.dtype == torch.int64  # as theirs: some pipelines take them for indices
    for _ in range(2):
        torch.testing.assert_close(latents(pipe, call, strength), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(latents(pipe, call, 1.25 - strength), expected, rtol=1e-2)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_on_flow_is_eulers(strength):
    pipe, call = from_images(flow)
    expected = latents(pipe, call, strength)
    t = pipe.scheduler.sigmas.double()
    t[0], t[-1] = FLOW.T, FLOW.t_min
    pipe.scheduler = S4SScheduler.from_tableau(registry.build("ddim", FLOW, t), pipe.scheduler.config)
    torch.testing.assert_close(latents(pipe, call, strength), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bands", [False, True])
@settings(deadline=None, max_examples=20)
@given(begin=st.integers(1, 3), order=st.integers(1, 3))
def test_a_network_that_knows_the_image_ends_at_it_from_anywhere(bands, begin, order):
    """Predictions that were not made are taken to be the first that is: here, rightly. So the end is that of a run from
    the beginning that comes to the same state."""
    table = registry.make(f"adams_bashforth_{order}", "logsnr", FLOW, NFE)
    table = banded(FLOW, Bands((0.6, 1.1)), NFE) if bands else table
    scheduler = S4SScheduler.from_tableau(table)
    x_T, x0 = torch.randn(2, 2, 3, 8, 8, generator=torch.manual_seed(begin)).double()
    states = [scheduler.scale_model_input(x_T)]
    y = x_T
    for i, t in enumerate(scheduler.timesteps):
        y = scheduler.step((states[-1] - x0) / table.t_c[i], t, y).prev_sample
        states.append(y)
    scheduler.set_timesteps(NFE)
    scheduler.set_begin_index(begin)
    y = states[begin]
    for i, t in list(enumerate(scheduler.timesteps))[begin:]:
        assert scheduler.scale_model_input(y, t) is y
        y = scheduler.step((y - x0) / table.t_c[i], t, y).prev_sample
    torch.testing.assert_close(y, states[-1], rtol=1e-9, atol=1e-9)


def test_what_cannot_start_in_the_middle_is_told():
    table = registry.make("dpmpp_2m", "logsnr", SD, NFE)
    learned = S4SScheduler.from_tableau(replace(table, meta={"family": "lms"}))
    learned.set_begin_index(0)
    x = torch.randn(1, 4, 8, 8)
    for begin in (lambda: learned.set_begin_index(1), lambda: learned.add_noise(x, x, learned.timesteps[1:2])):
        with pytest.raises(UserError, match="learned for whole runs: it cannot start in the middle, as image-to-image"):
            begin()
    pipe, call = from_images(guided)
    pipe.scheduler = learned
    with pytest.raises(UserError, match="image-to-image"):
        latents(pipe, call, 0.5)
    c = table.c.clone()
    c[1] = 0
    with pytest.raises(UserError, match="cannot start in the middle"):
        S4SScheduler.from_tableau(replace(table, c=c)).set_begin_index(2)
    noisy = replace(table, V=torch.ones(NFE + 1, 1, dtype=torch.float64).tril(-1))
    with pytest.raises(UserError, match="cannot start in the middle"):
        S4SScheduler.from_tableau(noisy).set_begin_index(2)


def test_pipelines_for_other_schedulers_only_are_told_so():
    table = registry.make("dpmpp_2m", "logsnr", SD, NFE)
    parts = stable_diffusion().components
    del parts["image_encoder"]
    pipe = diffusers.LEditsPPPipelineStableDiffusion(**parts)
    with pytest.raises(UserError, match=r"LEditsPPPipelineStableDiffusion inverts images .* not the solver dpmpp_2m"):
        s4spipe.apply(pipe, table)
    pipe.scheduler = S4SScheduler.from_tableau(table, pipe.scheduler.config)
    with pytest.raises(UserError, match="LEditsPPPipelineStableDiffusion inverts images by formulas of DDIMScheduler"):
        pipe.invert(np.zeros((1, 32, 32, 3), np.float32), num_inversion_steps=NFE, skip=0.0)
    indexing = diffusers.KandinskyImg2ImgPipeline(text_encoder=None, tokenizer=None, unet=None, movq=autoencoder(),
                                                  scheduler=diffusers.DDIMScheduler(**SCALED))  # fmt: skip
    with pytest.raises(UserError, match="KandinskyImg2ImgPipeline takes its scheduler's times for indices"):
        s4spipe.apply(indexing, table)
    whole = registry.build("ddim", SD, torch.tensor([801.0, 601, 401, 201, 0], dtype=torch.float64))
    assert s4spipe.apply(indexing, whole).scheduler is indexing.scheduler


def test_noised_images_are_those_of_diffusers():
    x, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.manual_seed(0))
    ddim = diffusers.DDIMScheduler(**SCALED, steps_offset=1)
    ddim.set_timesteps(NFE)
    t = torch.cat([ddim.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    ours = S4SScheduler.from_tableau(registry.build("ddim", SD, t), SCALED)
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler.set_timesteps(NFE)
    t = euler.sigmas.double()
    t[0], t[-1] = FLOW.T, FLOW.t_min
    on_flow = S4SScheduler.from_tableau(registry.build("ddim", FLOW, t), euler.config)
    for i in range(NFE):
        now = ddim.timesteps[i : i + 1]
        torch.testing.assert_close(ours.add_noise(x, noise, now), ddim.add_noise(x, noise, now))
        now = euler.timesteps[i : i + 1]
        expected = euler.scale_noise(x, now, noise)
        torch.testing.assert_close(on_flow.scale_noise(x, on_flow.timesteps[i : i + 1], noise), expected)
        torch.testing.assert_close(on_flow.add_noise(x, noise, on_flow.timesteps[i]), expected)


def test_a_pipeline_may_write_into_its_samples():
    table = registry.make("dpmpp_3m", "logsnr", SD, NFE)
    ends = []
    for writes in (False, True):
        scheduler, x = S4SScheduler.from_tableau(table), torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
        for t in scheduler.timesteps:
            output = torch.tanh(x)
            made = scheduler.step(output, t, x)
            if writes:
                x.copy_(made.prev_sample)
                for written in (output, made.prev_sample, made.pred_original_sample):
                    written.zero_()
            else:
                x = made.prev_sample
        ends.append(x)
    assert torch.equal(*ends)


def test_latents_may_change_their_precision_between_steps():
    table = registry.make("dpmpp_2m", "logsnr", SD, NFE)
    ends = []
    for dtype in (torch.float16, torch.float32):  # after the first step
        scheduler, x = S4SScheduler.from_tableau(table), torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0)).half()
        for t in scheduler.timesteps:
            x = scheduler.step(torch.full_like(x, 0.5), t, x)[0].to(dtype)
        ends.append(x.float())
    torch.testing.assert_close(ends[0], ends[1], rtol=2e-3, atol=2e-3)


def test_the_x0_prediction_is_given():
    x, output = torch.randn(2, 2, 4, 8, 8, generator=torch.manual_seed(0))
    ddim = diffusers.DDIMScheduler(**SCALED, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    ddim.set_timesteps(NFE)
    t = torch.cat([ddim.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    ours = S4SScheduler.from_tableau(registry.build("ddim", SD, t), SCALED)
    expected = ddim.step(output, ddim.timesteps[0], x)
    both = ours.step(output, ours.timesteps[0], x, return_dict=False)
    torch.testing.assert_close(both, (expected.prev_sample, expected.pred_original_sample), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variance", [None, "fixed_small", "learned_range"])
def test_a_learned_variance_is_left_out(variance):
    config = SCALED | ({"variance_type": variance} if variance else {})
    scheduler = S4SScheduler.from_tableau(registry.make("ddim", "logsnr", SD, NFE), config)
    x, output = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 8, 8)
    after = scheduler.step(output, scheduler.timesteps[0], x).prev_sample
    scheduler.set_timesteps(NFE)
    assert torch.equal(scheduler.step(output[:, :4], scheduler.timesteps[0], x).prev_sample, after)
    with pytest.raises(UserError, match=r"output has shape \[2, 12, 8, 8\]"):
        scheduler.step(torch.randn(2, 12, 8, 8), scheduler.timesteps[1], after)


@pytest.mark.parametrize(
    ("config", "mu"),
    [({"shift": 3.0}, None), ({"shift": 1.0}, None), ({"use_dynamic_shifting": True}, 0.7),
     ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 1.4)],
)  # fmt: skip
def test_the_times_before_a_shift_are_those_of_diffusers(config, mu):
    """CogView4 gives its scheduler both: sigmas, which it shifts, and timesteps, which it does not."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    before = torch.linspace(1000, 250, NFE).numpy()
    theirs.set_timesteps(timesteps=before, sigmas=before / 1000, mu=mu)
    t = theirs.sigmas.double()
    t[0], t[-1] = FLOW.T, FLOW.t_min
    ours = S4SScheduler.from_tableau(registry.build("ddim", FLOW, t), theirs.config)
    ours.set_timesteps(timesteps=before, sigmas=before / 1000, mu=mu)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-4, atol=1e-3)
    ours.set_timesteps(sigmas=before / 1000, mu=mu)
    torch.testing.assert_close(ours.timesteps, 1000 * t[:-1].float())


def test_times_that_were_changed_otherwise_are_refused():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = S4SScheduler.from_tableau(registry.make("ddim", "logsnr", FLOW, NFE), theirs.config)
    with pytest.raises(UserError, match=r"shows its network other times .* \(shift None\)"):
        ours.set_timesteps(timesteps=[3, 2, 1, 0], sigmas=[3, 2, 1, 0])
    with pytest.raises(UserError, match="got 3 timesteps"):
        ours.set_timesteps(timesteps=[3, 2, 1])
    with pytest.raises(UserError, match="does not know 'jump_length'"):
        ours.set_timesteps(4, jump_length=10)
    with pytest.raises(UserError, match="latent consistency models decode the network's last x0 prediction"):
        ours.set_timesteps(4, original_inference_steps=None)


def test_an_inverted_time_is_that_of_diffusers(tmp_path):
    """OmniGen's and Mochi's networks are shown 0 for noise, and predict the velocity to the image."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, shift=2.0)
    theirs.set_timesteps(NFE)
    t = 1 - theirs.sigmas.double()
    t[0], t[-1] = FLOW.T, FLOW.t_min
    ours = S4SScheduler.from_tableau(registry.build("ddim", FLOW, t), theirs.config)
    ours.save_pretrained(tmp_path)
    x = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
    for scheduler in (ours, S4SScheduler.from_pretrained(tmp_path)):
        torch.testing.assert_close(scheduler.timesteps, theirs.timesteps, rtol=1e-4, atol=2e-3)
        torch.testing.assert_close(scheduler.sigmas, theirs.sigmas, rtol=1e-4, atol=2e-6)
        theirs.set_timesteps(NFE)
        a = b = x
        for s, t in zip(scheduler.timesteps, theirs.timesteps, strict=True):
            a, b = scheduler.step(torch.tanh(a), s, a)[0], theirs.step(torch.tanh(b), t, b)[0]
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="false for a model that is no flow model, got True"):
        S4SScheduler.from_tableau(registry.make("ddim", "logsnr", SD, NFE), {**SCALED, "invert_sigmas": True})
    made = S4SScheduler.from_classical("ddim", "logsnr", NFE, theirs.config)
    assert made.config.invert_sigmas


def test_options_of_other_schedulers():
    scheduler, x = S4SScheduler.from_tableau(registry.make("ddim", "logsnr", FLOW, NFE)), torch.randn(2, 5, 4)
    t = scheduler.timesteps[0]
    after = scheduler.step(x, t, x, per_token_timesteps=t.expand(2, 5), prev_timestep=3, s_churn=0.0, eta=0)[0]
    assert after.shape == x.shape
    for options, says in (
        ({"per_token_timesteps": torch.tensor([[0.0, 1, 2, 3, 4]])}, "some of its tokens at other times"),
        ({"s_churn": 0.5}, "leave out s_churn, got 0.5"),
        ({"use_clipped_model_output": True}, "leave out use_clipped_model_output"),
        ({"original_image": x}, "does not know 'original_image'"),
    ):
        with pytest.raises(UserError, match=says):
            scheduler.step(x, scheduler.timesteps[1], after, **options)


def test_what_a_scheduler_lacks_is_told_and_can_be_asked_for():
    scheduler = S4SScheduler.from_tableau(registry.make("ddim", "logsnr", SD, NFE))
    assert not hasattr(scheduler, "alphas_cumprod")
    with pytest.raises(UserError, match="S4SScheduler has no 'alphas_cumprod', which this pipeline asks"):
        scheduler.alphas_cumprod  # noqa: B018
    assert scheduler.step_index == 0


def test_times_that_stand_for_one_are_found():
    t = torch.tensor([900.0, 500.5, 3.0])
    assert [times.place(t, given) for given in (900, torch.tensor([500.5, 500.5]), [3.0], 4, [3.0, 900.0], [])] == [
        0, 1, 2, None, None, None]  # fmt: skip


VP_CLASSES = ("DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete",
              "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "KDPM2Discrete",
              "TCD")  # fmt: skip


@pytest.mark.parametrize("name", [*VP_CLASSES, "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"])
def test_a_config_keeps_every_key_there_and_back(name, tmp_path):
    """With values that are no defaults; from a folder too, as pipelines are loaded."""
    cls = getattr(diffusers, f"{name}Scheduler")
    flow = name.startswith("Flow")
    given = {"shift": 2.5, "num_train_timesteps": 500} if flow else SCALED | {"prediction_type": "v_prediction"}
    given |= {"steps_offset": 1, "timestep_spacing": "trailing"} if name in ("DDIM", "PNDM", "EulerDiscrete") else {}
    given |= {"use_dynamic_shifting": True, "base_shift": 0.7} if name == "FlowMatchEulerDiscrete" else {}
    cls(**given).save_pretrained(tmp_path)
    own = cls.from_pretrained(tmp_path)
    table = registry.make("dpmpp_2m", "logsnr", FLOW if flow else SD, NFE)
    ours = S4SScheduler.from_tableau(table, own.config)
    ours.save_pretrained(tmp_path / "ours")
    for one in (ours, S4SScheduler.from_pretrained(tmp_path / "ours")):
        again = cls.from_config(one.config)
        plain = {key: value for key, value in own.config.items() if key[:1] != "_"}
        assert {key: again.config[key] for key in plain} == plain
        assert S4SScheduler.from_tableau(table, again.config).tableau.agrees(table)
