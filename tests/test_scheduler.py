"""S4SScheduler inside diffusers' pipelines with small random networks, against their schedulers and our own loop."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from support.pipes import SCALED, classes, flow, flux, guided, unconditional
from support.problems import NOISES

from s4spipe import models, noise
from s4spipe.noise import VE, Flow, VPDiscrete
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.scheduler import S4SScheduler, noise_schedule
from s4spipe.solvers import registry, timesteps

SD = NOISES["vp_discrete"]
LINEAR = VPDiscrete(noise.alphas_cumprod("linear", 1e-4, 0.02, 1000))
FLOW = Flow(t_min=1e-6, T=1 - 1e-6)  # diffusers goes from 1 to 0


def build(make, *options):
    torch.manual_seed(0)
    pipe, call = make(*options)
    pipe.set_progress_bar_config(disable=True)
    return pipe, call


def images(pipe, call, nfe, seed=3):
    return pipe(**call, num_inference_steps=nfe, output_type="np", generator=torch.manual_seed(seed)).images


def drive(pipe, table):
    pipe.scheduler = S4SScheduler.from_tableau(table, pipe.scheduler.config)
    return pipe


def test_a_solver_for_noise_that_no_pipeline_has_runs_in_a_loop_of_ones_own():
    denoiser = models.load({"weights": "models/digits.safetensors"})
    schedule, labels = denoiser.noise_schedule, torch.arange(6)
    table = registry.make("unipc_bh2", "edm", schedule, 5)
    scheduler = S4SScheduler.from_tableau(table)
    assert scheduler.init_noise_sigma == schedule.sigma_T
    x_T = x = scheduler.init_noise_sigma * torch.randn(6, 1, 8, 8, generator=torch.manual_seed(0))
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(denoiser(x, t, labels), t, x).prev_sample
        torch.testing.assert_close(x, sample(denoiser, table, x_T, labels), rtol=1e-4, atol=1e-4)


VP = {"unconditional": (unconditional, LINEAR, {}), "guided": (guided, SD, SCALED), "classes": (classes, LINEAR, {})}


@pytest.mark.parametrize("nfe", [1, 5, 8])
@pytest.mark.parametrize("model", VP)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_a_classical_solver_makes_the_images_of_diffusers_own(solver, model, nfe):
    """On the scheduler's own timesteps and then 0, at the first entry of its table (no "alpha to one", no sigma 0)."""
    make, schedule, betas = VP[model]
    pipe, call = build(make)
    if solver == "ddim":
        theirs = diffusers.DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    else:
        theirs = diffusers.DPMSolverMultistepScheduler(**betas, final_sigmas_type="sigma_min", lower_order_final=True)
    pipe.scheduler = theirs
    expected = images(pipe, call, nfe)
    t = torch.cat([theirs.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    ours = images(drive(pipe, registry.build(solver, schedule, t)), call, nfe)
    assert np.abs(ours - expected).max() < 1e-3
    assert np.abs(images(pipe, call, nfe, seed=4) - expected).max() > 1e-2  # the test can tell images apart


@pytest.mark.parametrize("nfe", [2, 5, 8])
@pytest.mark.parametrize("make", [flow, flux])
def test_ddim_is_eulers_method_on_flow(make, nfe):
    pipe, call = build(make)
    if make is flux:  # which hands its scheduler sigmas of its own
        call = call | {"sigmas": np.linspace(1, 1 / nfe, nfe)}
    expected = images(pipe, call, nfe)
    t = pipe.scheduler.sigmas.double()
    t[0], t[-1] = FLOW.T, FLOW.t_min
    call.pop("sigmas", None)
    assert np.abs(images(drive(pipe, registry.build("ddim", FLOW, t)), call, nfe) - expected).max() < 1e-3


@pytest.mark.parametrize("nfe", [3, 8])
def test_dpmpp_on_flow(nfe):
    """diffusers shows the network whole timesteps here, which our table can say."""
    pipe, call = build(flow)
    own = pipe.scheduler.config
    theirs = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", final_sigmas_type="zero", lower_order_final=True
    )
    pipe.scheduler = theirs
    expected = images(pipe, call, nfe)
    t = torch.cat([theirs.sigmas[:-1].double(), torch.tensor([FLOW.t_min], dtype=torch.float64)])
    table = dataclasses.replace(registry.build("dpmpp_2m", FLOW, t), t_c=theirs.timesteps.double() / 1000)
    pipe.scheduler = S4SScheduler.from_tableau(table, own)
    assert np.abs(images(pipe, call, nfe) - expected).max() < 1e-3


SOLVERS = ["unipc_bh2", "heun", "fdpm", "dpm_3s", "parallel_midpoints", "deis_tab_4"]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_what_our_loop_makes_of_the_pipelines_parts(solver, prediction_type):
    """Guided, from the same latents, to float32 rounding; any evaluation may lie anywhere in time."""
    pipe, call = build(guided, prediction_type)
    table = registry.make(solver, "logsnr", SD, 6)
    x_T = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(1))
    latents = drive(pipe, table)(**call, latents=x_T, num_inference_steps=6, output_type="latent").images

    @torch.no_grad()
    def denoiser(x, t, condition):
        x, t, rows = x.float(), t.expand(len(x)), len(x) // 2  # several evaluations may come as one call
        prompts = [call[key].repeat(rows, 1, 1) for key in ("negative_prompt_embeds", "prompt_embeds")]
        negative, positive = pipe.unet(torch.cat([x, x]), t.float().repeat(2), torch.cat(prompts)).sample.chunk(2)
        out = negative + 3.0 * (positive - negative)
        alpha, sigma = (v(t)[:, None, None, None] for v in (SD.alpha, SD.sigma))
        x0 = {"epsilon": (x - sigma * out) / alpha, "sample": out, "v_prediction": alpha * x - sigma * out}
        return x0[prediction_type]

    expected = sample(denoiser, table, x_T)
    assert (latents - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_state_is_float32(dtype):
    """Of a network that is exact in half precision, only the rounding of what it is shown is left."""
    table = registry.make("dpmpp_2m", "edm", SD, 8)
    x = torch.randn(4, 4, 8, 8, generator=torch.manual_seed(1)).to(dtype)
    ends = []
    for precision in (dtype, torch.float32):
        scheduler = S4SScheduler.from_tableau(table)
        scheduler.set_timesteps(8)
        sample = x.to(precision)
        for t in scheduler.timesteps:
            sample = scheduler.step((0.5 * sample).to(dtype), t, sample).prev_sample
        assert sample.dtype == precision
        ends.append(sample.float())
    assert scheduler.run._state.dtype == torch.float32
    eps = torch.finfo(dtype).eps
    assert (ends[0] - ends[1]).abs().max() < 4 * eps * ends[1].abs().max()


def test_a_batch_with_a_generator_each_is_made_image_by_image():
    pipe, call = build(guided)
    drive(pipe, registry.make("unipc_bh2", "logsnr", SD, 4))
    options = {"num_inference_steps": 4, "output_type": "np"}
    both = pipe(**call, **options, generator=[torch.Generator().manual_seed(i) for i in (5, 6)]).images
    for i, seed in enumerate((5, 6)):
        one = {key: value[i : i + 1] if torch.is_tensor(value) else value for key, value in call.items()}
        alone = pipe(**one, **options, generator=torch.Generator().manual_seed(seed)).images
        assert np.abs(both[i] - alone[0]).max() < 1e-4


def test_a_pipeline_saved_with_it_loads_and_makes_the_same(tmp_path):
    pipe, call = build(unconditional)
    table = registry.build("dpmpp_3m", LINEAR, timesteps.build("logsnr", LINEAR, 5), {"note": "a", "list": [1.5, None]})
    table.save(tmp_path / "solver.json")
    expected = images(drive(pipe, tmp_path / "solver.json"), call, 5)
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    folder = tmp_path / "scheduler"
    loaded = S4SScheduler.from_pretrained(folder), S4SScheduler.from_tableau(folder)
    for again in (*loaded, S4SScheduler.from_config(pipe.scheduler.config)):
        assert again.tableau.to_dict() == table.to_dict()
        pipe.scheduler = again
        assert np.array_equal(images(pipe, call, 5), expected)
    # Another solver takes the place of ours as of any.
    drive(pipe, registry.make("ddim", "logsnr", LINEAR, 3))
    assert images(pipe, call, 3).shape == expected.shape


def test_a_pipeline_can_be_given_its_own_scheduler_again():
    """`from_config(pipe.scheduler.config)` is how diffusers changes schedulers."""
    pipe, call = build(guided)
    own, expected = pipe.scheduler.config, images(pipe, call, 4)
    drive(pipe, registry.make("dpmpp_2m", "logsnr", SD, 4))
    assert not np.array_equal(images(pipe, call, 4), expected)
    pipe.scheduler = S4SScheduler.from_config(pipe.scheduler.config)  # which keeps what it was given
    drive(pipe, registry.make("ddim", "logsnr", SD, 3))
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    assert {key: pipe.scheduler.config[key] for key in own if key[:1] != "_"} == {
        key: value for key, value in own.items() if key[:1] != "_"
    }
    assert np.array_equal(images(pipe, call, 4), expected)
    shifted = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = S4SScheduler.from_tableau(registry.make("ddim", "logsnr", Flow(), 4), shifted.config)
    assert type(shifted).from_config(ours.config).config.shift == 3.0
    several = diffusers.DPMSolverMultistepScheduler(**SCALED, use_karras_sigmas=True)
    ours = S4SScheduler.from_tableau(registry.make("ddim", "logsnr", SD, 4), several.config)
    again = type(several).from_config(ours.config)
    assert again.config.use_flow_sigmas is False
    assert torch.equal(again.alphas_cumprod, several.alphas_cumprod)


def test_a_pipeline_that_makes_its_own_scheduler_of_ours_has_the_models_noise():
    pipe, _ = build(unconditional)
    ours = S4SScheduler.from_tableau(registry.make("ddim", "logsnr", SD, 4), SCALED)
    pipe = diffusers.DDIMPipeline(pipe.unet, ours)
    assert torch.equal(pipe.scheduler.alphas_cumprod, diffusers.DDIMScheduler(**SCALED).alphas_cumprod)
    pipe.scheduler = ours  # and it passes DDIM's options to it
    assert len(pipe(batch_size=2, num_inference_steps=4, output_type="np").images) == 2
    with pytest.raises(UserError, match="leave out eta"):
        pipe(batch_size=2, num_inference_steps=4, eta=0.5)


def test_however_it_is_made_it_knows_what_the_network_predicts(tmp_path):
    table = registry.make("dpmpp_2m", "logsnr", Flow(), 4)
    config = diffusers.FlowMatchEulerDiscreteScheduler().config
    made = [S4SScheduler.from_tableau(table, config), S4SScheduler.from_config(config, tableau=table.to_dict()),
            S4SScheduler(tableau=table.to_dict()), S4SScheduler.from_tableau(table)]  # fmt: skip
    assert {scheduler.prediction for scheduler in made} == {"flow_prediction"}
    assert S4SScheduler(tableau=registry.make("ddim", "edm", VE(), 3).to_dict()).prediction == "sample"
    table = registry.make("dpmpp_2m", "logsnr", SD, 4)
    scheduler = S4SScheduler(tableau=table.to_dict(), prediction_type="v_prediction")
    scheduler.save_pretrained(tmp_path)
    config = diffusers.DDIMScheduler(**SCALED, prediction_type="v_prediction").config
    for again in (S4SScheduler.from_config(scheduler.config), S4SScheduler.from_pretrained(tmp_path),
                  S4SScheduler.from_tableau(tmp_path, config)):  # fmt: skip
        assert again.prediction == "v_prediction"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: S4SScheduler.from_tableau(folder, diffusers.DDIMScheduler().config), "another model"),
        (lambda folder: S4SScheduler.from_tableau(folder, diffusers.FlowMatchEulerDiscreteScheduler().config), "flow"),
        (lambda folder: S4SScheduler.from_config(diffusers.DDIMScheduler().config, tableau=scheduler().config.tableau),
         "another model"),
        (lambda folder: S4SScheduler.from_config(diffusers.DDIMScheduler().config), "needs a solver"),
        (lambda folder: S4SScheduler.from_tableau(folder / "ddim"), "needs a solver"),
        (lambda folder: S4SScheduler.from_pretrained(folder / "ddim"), "needs a solver"),
        (lambda folder: S4SScheduler(tableau=scheduler().config.tableau, num_train_timesteps="1000"),
         "num_train_timesteps must be a whole number"),
        (lambda folder: S4SScheduler(tableau=scheduler().config.tableau, num_train_timesteps=-5), "at least 1"),
        (lambda folder: scheduler().set_timesteps(4, "gpu"), "'gpu' is not available on this machine"),
        (lambda folder: scheduler().set_timesteps(sigmas=[1.0, 0.5]), "got 2 sigmas"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(make, says, tmp_path):
    scheduler().save_pretrained(tmp_path)
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "ddim")
    with pytest.raises(UserError, match=says):
        make(tmp_path)


def test_numbers_of_steps_of_any_kind_and_what_some_pipelines_add():
    one = scheduler()
    for given in ({"num_inference_steps": np.int64(4)}, {"sigmas": np.linspace(1, 0.25, 4)}, {"mu": 1.1},
                  {"timesteps": [900, 600, 400, 100]}, {"timesteps": torch.tensor([900, 600, 400, 100])}):  # fmt: skip
        one.set_timesteps(**given)
        assert len(one.timesteps) == 4


def scheduler(nfe=4):
    return S4SScheduler.from_tableau(registry.make("ipndm", "edm", SD, nfe))


def test_what_it_cannot_do_is_told():
    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(UserError, match="num_inference_steps=4, got num_inference_steps=50"):
        scheduler().set_timesteps(50)
    with pytest.raises(UserError, match="got 2 timesteps"):
        scheduler().set_timesteps(timesteps=[1, 2])
    with pytest.raises(UserError, match="begin_index must be at most 3, got 4"):
        scheduler().set_begin_index(4)
    with pytest.raises(UserError, match="asked to noise images for tensor"):
        scheduler().add_noise(x, x, torch.tensor([3]))
    begun = scheduler()
    with pytest.raises(UserError, match="timestep .* number 1"):
        begun.step(x, begun.timesteps[1], x)
    after = begun.step(x, begun.timesteps[0], x).prev_sample
    with pytest.raises(UserError, match="sample was changed"):
        begun.step(x, begun.timesteps[1], after + 1)
    for t in begun.timesteps[1:]:
        after = begun.step(x, t, after).prev_sample
    with pytest.raises(UserError, match="number 5.* set_timesteps"):
        begun.step(x, begun.timesteps[3], after)


@pytest.mark.parametrize(
    ("solver", "schedule", "config", "field"),
    [
        ("ddim", VE(), {"x": 1}, "for ve noise"),
        ("ddim", SD, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "for vp_discrete noise.* for flow"),
        ("ddim", FLOW, {"beta_schedule": "linear"}, "for flow noise.* for vp_discrete"),
        ("ddim", LINEAR, SCALED, "alphas_cumprod"),
        ("ddim", SD, {**SCALED, "num_train_timesteps": 500}, "alphas_cumprod"),
        ("ddim", SD, {**SCALED, "prediction_type": "eps"}, "prediction_type 'eps'.* 'epsilon'"),
        ("ddim", SD, {**SCALED, "prediction_type": "flow_prediction"}, "'flow_prediction'"),
    ],
)
def test_a_solver_of_another_model_is_refused(solver, schedule, config, field):
    with pytest.raises(UserError, match=field):
        S4SScheduler.from_tableau(registry.make(solver, "logsnr", schedule, 3), config)


@pytest.mark.parametrize("make", [unconditional, guided, flow])
def test_a_classical_solver_by_name(make):
    pipe, call = build(make)
    for solver, schedule, nfe in (("unipc_bh2", "logsnr", 5), ("dpm_2s", "edm", 4), ("ipndm_4", "time_uniform", 6)):
        pipe.scheduler = S4SScheduler.from_classical(solver, schedule, nfe, pipe.scheduler.config)
        assert pipe.scheduler.tableau.nfe == nfe
        assert pipe.scheduler.tableau.meta == {"solver": solver, "schedule": schedule}
        assert np.isfinite(images(pipe, call, nfe)).all()


def test_the_noise_of_any_pipeline_is_known():
    assert noise_schedule(diffusers.DDPMScheduler().config) == LINEAR
    assert noise_schedule(diffusers.DDIMScheduler(**SCALED).config) == SD
    assert noise_schedule(diffusers.FlowMatchEulerDiscreteScheduler().config) == Flow()
    for config in ({"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.1, 0.2, 0.3]}):
        own = diffusers.DDPMScheduler(**config)
        ours = torch.tensor(noise_schedule(own.config).alphas_cumprod)
        torch.testing.assert_close(ours, own.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_betas_are_those_of_diffusers():
    for name, first, last in (("linear", 1e-4, 0.02), ("scaled_linear", 0.00085, 0.012)):
        theirs = diffusers.DDPMScheduler(beta_schedule=name, beta_start=first, beta_end=last).alphas_cumprod
        ours = torch.tensor(noise.alphas_cumprod(name, first, last, 1000))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


def test_tableau_dictionaries_are_json():
    table = registry.make("unipc_bh2", "edm", SD, 3)
    assert Tableau.from_dict(table.to_dict()).to_dict() == table.to_dict()
