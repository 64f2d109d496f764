"""Classical solvers against diffusers' schedulers, on the same steps, in float64.

Convention in all of them: the scheduler's float32 table of sigmas (sigma/alpha) or alphas_cumprod is overwritten by
ours in float64, so that what is compared is the update and not the table; 1e-9 is then rounding. Where a scheduler ends
at sigma = 0, ours ends at a sigma too small to differ.
"""

import diffusers
import numpy as np
import pytest
import torch
from support.problems import NOISES, noises, wavy

from s4spipe.noise import VE, Flow
from s4spipe.sampling.loop import sample
from s4spipe.solvers import classical, registry, timesteps
from s4spipe.solvers.multistep import Multistep

VP = NOISES["vp_linear"]
NFES = [3, 5, 8, 14, 20]
FLOAT32 = 1e-6  # for the schedulers that compute in it, whatever they are given


def ours(solver, noise, t, nfe=None):
    table = (
        solver.tableau(noise, t, "x") if isinstance(solver, Multistep) else registry.build(solver, noise, t, nfe=nfe)
    )
    return sample(wavy, table, noises(scale=noise.sigma_T))


def theirs(scheduler, noise, t, table, predict):
    """Run a scheduler whose own sigmas are replaced by `table`; `predict` gives what it takes for network output."""
    scheduler.sigmas = table
    x = noises(scale=noise.sigma_T)
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True
    for timestep, s in zip(scheduler.timesteps, t, strict=False):
        x = scheduler.step(predict(x, s), timestep, x).prev_sample
    return x


def agree(a, b, rtol=1e-9):
    assert (a - b).abs().max() <= rtol * b.abs().max()


def on_vp(scheduler, solver, nfe, rtol=1e-9):
    t = timesteps.build("logsnr", VP, nfe)
    scheduler.set_timesteps(nfe)
    agree(ours(solver(t) if callable(solver) else solver, VP, t),
          theirs(scheduler, VP, t, VP.sigma(t) / VP.alpha(t), wavy), rtol)  # fmt: skip


SAMPLE = {"prediction_type": "sample", "timestep_spacing": "linspace", "final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpmpp_on_vp(order, nfe):
    """solver_type midpoint; from 15 steps on diffusers ignores its lower_order_final, which we say explicitly."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, algorithm_type="dpmsolver++", solver_type="midpoint", lower_order_final=True, **SAMPLE
    )
    on_vp(scheduler, lambda t: classical.dpm_multistep(VP, t, order, lower_order_final=nfe < 15), nfe, FLOAT32)


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_in_the_noise_form_on_vp(order, nfe):
    """This form amplifies what float32 makes of x_T, by alpha/alpha_T."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, algorithm_type="dpmsolver", solver_type="midpoint", lower_order_final=True, **SAMPLE
    )
    on_vp(
        scheduler,
        lambda t: classical.dpm_multistep(VP, t, order, "noise", lower_order_final=nfe < 15),
        nfe,
        10 * FLOAT32,
    )


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("variant", "form"), [("bh1", "data"), ("bh2", "data"), ("bh1", "noise"), ("bh2", "noise")])
def test_unipc_on_vp(variant, form, order, nfe):
    """With corrector on every step but the last, lower_order_final always; predict_x0 is our data form."""
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type=variant, predict_x0=form == "data", lower_order_final=True, **SAMPLE
    )
    on_vp(scheduler, f"unipc_{variant}{'_eps' if form == 'noise' else ''}_{order}", nfe)


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [2, 3])
def test_unip_on_vp(order, nfe):
    """disable_corrector on all steps leaves the predictor."""
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type="bh2", disable_corrector=list(range(nfe)), lower_order_final=True, **SAMPLE
    )
    on_vp(scheduler, f"unip_bh2_{order}", nfe)


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_on_vp(order, nfe):
    """diffusers has the logarithmic version; lower_order_final off, as in ours."""
    options = {key: value for key, value in SAMPLE.items() if key != "final_sigmas_type"}
    scheduler = diffusers.DEISMultistepScheduler(solver_order=order, lower_order_final=False, **options)
    on_vp(scheduler, f"deis_log_{order}", nfe)


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpmpp_on_edm(order, nfe):
    """EDM's preconditioning is undone in what the scheduler is handed."""
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_data=0.5, solver_order=order, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(nfe)
    noise = VE(1e-9, 80.0)
    t = torch.cat([timesteps.build("edm", VE(), nfe)[:-1], torch.tensor([1e-9], dtype=torch.float64)])

    def output(x, sigma):
        return (wavy(x, sigma) - 0.25 / (sigma**2 + 0.25) * x) / (sigma * 0.5 / (sigma**2 + 0.25).sqrt())

    solver = classical.dpm_multistep(noise, t, order, lower_order_final=True)
    if nfe >= 15 and order == 3:  # diffusers then lowers the last step only, which sigma = 0 demands
        full = classical.dpm_multistep(noise, t, order, lower_order_final=False)
        solver.b[-2] = full.b[-2]
    agree(ours(solver, noise, t), theirs(scheduler, noise, t, t, output), 1e-8)


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [2, 3])
def test_dpmpp_on_flow(order, nfe):
    """use_flow_sigmas: alpha = 1 - sigma."""
    noise = Flow()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, use_flow_sigmas=True, solver_type="midpoint", prediction_type="flow_prediction",
        final_sigmas_type="zero",
    )  # fmt: skip
    scheduler.set_timesteps(nfe)
    t = timesteps.build("logsnr", noise, nfe)
    solver = classical.dpm_multistep(noise, t, order, lower_order_final=True)
    if nfe >= 15 and order == 3:  # as above
        solver.b[-2] = classical.dpm_multistep(noise, t, order, lower_order_final=False).b[-2]
    agree(ours(solver, noise, t), theirs(scheduler, noise, t, t, lambda x, s: (x - wavy(x, s)) / s), FLOAT32)


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_is_rhoab(order, nfe):
    """LMSDiscreteScheduler works on VE states; its quadrature is exact for these polynomials."""
    noise = VE(0.02, 80.0)
    scheduler = diffusers.LMSDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(nfe)
    t = timesteps.build("edm", noise, nfe)
    step = scheduler.step
    scheduler.step = lambda *inputs: step(*inputs, order=order)
    agree(ours(f"deis_rhoab_{order}", noise, t), theirs(scheduler, noise, t, t, wavy))


@pytest.mark.parametrize("nfe", NFES)
def test_euler_on_flow(nfe):
    """The scheduler computes in float32."""
    noise = Flow()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(nfe)
    t = timesteps.build("time_uniform", noise, nfe)
    for solver in ("euler", "ddim"):
        agree(ours(solver, noise, t), theirs(scheduler, noise, t, t, lambda x, s: (x - wavy(x, s)) / s), FLOAT32)
        scheduler.set_timesteps(nfe)


def twice(t):
    """The table of a Heun scheduler, and the times its evaluations see: every inner time twice, the last not at all."""
    return torch.cat([t[:1], t[1:-1].repeat_interleave(2), t[-1:]]), torch.cat([t[:1], t[1:-1].repeat_interleave(2)])


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_heun_on_flow(count):
    """The scheduler's last step is of order 1, and it computes in float32: our odd NFE 2 S - 1."""
    noise = Flow()
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(count)
    t = timesteps.build("time_uniform", noise, count)
    table, seen = twice(t)
    x = theirs(scheduler, noise, seen, table, lambda x, s: (x - wavy(x, s)) / s)
    agree(ours("heun", noise, t, nfe=2 * count - 1), x, FLOAT32)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_heun_on_edm(count):
    noise = VE(0.02, 80.0)
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(count)
    t = timesteps.build("edm", noise, count)
    table, seen = twice(t)
    agree(ours("heun", noise, t, nfe=2 * count - 1), theirs(scheduler, noise, seen, table, wavy))


@pytest.mark.parametrize("nfe", NFES)
def test_ddim_on_vp(nfe):
    """eta = 0, no clipping; equal whole steps, since it derives the next timestep from their number."""
    noise = NOISES["vp_discrete"]
    scheduler = diffusers.DDIMScheduler(prediction_type="sample", clip_sample=False, set_alpha_to_one=False)
    scheduler.alphas_cumprod = torch.tensor(noise.alphas_cumprod, dtype=torch.float64)
    scheduler.set_timesteps(nfe + 1)
    t = scheduler.timesteps.double()
    x = noises(scale=noise.sigma_T)
    for timestep in scheduler.timesteps[:-1]:
        x = scheduler.step(wavy(x, timestep.double() / 1000), int(timestep), x).prev_sample
    mine = sample(lambda x, s, c: wavy(x, s / 1000), registry.build("ddim", noise, t), noises(scale=noise.sigma_T))
    agree(mine, x)


@pytest.mark.parametrize("nfe", [5, 8])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_it_stops_where_karras_cut_does(name, nfe):
    """Both schedulers on its noise levels, without the zero that they append; the first one's state is x/alpha."""
    noise = NOISES["vp_discrete"]
    t = timesteps.build("karras_cut", noise, nfe)
    sigmas = noise.sigma(t) / noise.alpha(t)
    if name == "dpmpp_2m":
        scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=2, lower_order_final=True, **SAMPLE)
        scheduler.set_timesteps(nfe)
        scale = torch.ones_like(sigmas)
    else:
        scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample")
        scheduler.set_timesteps(sigmas=sigmas.tolist())
        scale = noise.alpha(t)
    scheduler.sigmas, scheduler.is_scale_input_called = sigmas, True
    x = noises(scale=noise.sigma_T) / scale[0]
    for timestep, s, a in zip(scheduler.timesteps, t[:-1], scale, strict=False):
        x = scheduler.step(wavy(a * x, s / 1000), timestep, x).prev_sample
    mine = sample(lambda x, s, c: wavy(x, s / 1000), registry.build(name, noise, t), noises(scale=noise.sigma_T))
    agree(mine, x * scale[-1], FLOAT32)


@pytest.mark.parametrize("count", [6, 10, 20])
@pytest.mark.parametrize("warm", [True, False], ids=["pndm", "plms"])
def test_pndm_on_vp(warm, count):
    """Equal steps down to timestep 0; the scheduler's last step, beyond it, is left out. plms is its skip_prk_steps."""
    noise = NOISES["vp_discrete"]
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=not warm, timestep_spacing="leading")
    scheduler.set_timesteps(count)
    scheduler.alphas_cumprod = torch.tensor(noise.alphas_cumprod, dtype=torch.float64)
    t = torch.tensor(scheduler._timesteps[::-1].copy(), dtype=torch.float64)

    def eps(x, s):
        return (x - noise.alpha(s) * wavy(x, s / 1000)) / noise.sigma(s)

    x = noises(scale=noise.sigma_T)
    for timestep in scheduler.timesteps[:-1]:
        x = scheduler.step(eps(x, timestep.double()), int(timestep), x).prev_sample
    mine = sample(lambda x, s, c: wavy(x, s / 1000), registry.build("pndm" if warm else "plms", noise, t),
                  noises(scale=noise.sigma_T))  # fmt: skip
    agree(mine, x)


def test_the_float32_tables_differ_by_their_rounding_only():
    """Without overwriting: the scheduler as it comes."""
    noise = NOISES["vp_discrete"]
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=np.asarray(1 - np.array(noise.alphas_cumprod) / np.concatenate([[1], noise.alphas_cumprod[:-1]])),
        solver_order=2, lower_order_final=True, **SAMPLE,
    )  # fmt: skip
    scheduler.set_timesteps(8)
    t = torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    x = noises()
    for timestep in scheduler.timesteps:
        x = scheduler.step(wavy(x, timestep.double() / 1000), timestep, x).prev_sample
    mine = sample(lambda x, s, c: wavy(x, s / 1000), registry.build("dpmpp_2m", noise, t), noises())
    agree(mine, x, 1e-5)
