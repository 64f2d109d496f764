"""Weights by frequency in diffusers' pipelines of small random networks: the pipeline's latents are our loop's."""

from dataclasses import replace

import diffusers
import pytest
import torch
from support.pipes import SCALED, flow, flux, guided, stable_diffusion_xl, wan
from support.tables import banded

from s4spipe.models.base.prediction import X0
from s4spipe.models.base.tokens import Grid, grid
from s4spipe.noise import Flow, VPDiscrete, alphas_cumprod
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import Bands
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry

VP, FLOW = VPDiscrete(alphas_cumprod("scaled_linear", 0.00085, 0.012, 1000)), Flow(t_min=1e-3, T=1 - 1e-3)
PLANE, SPACE = Bands((0.6, 1.1)), Bands((0.6, 1.1), 3)
SIZE = (8, 16)


def xl():
    pipe = stable_diffusion_xl()
    pipe.scheduler = diffusers.DDIMScheduler(**SCALED)
    return pipe, {"prompt": ["a", "b"], "height": 8, "width": 16}


PIPES = {
    "SD": (guided, VP, PLANE, "epsilon", {}),
    "SDXL": (xl, VP, PLANE, "epsilon", {}),
    "SD3": (flow, FLOW, PLANE, "flow_prediction", {}),
    "Flux": (flux, FLOW, PLANE, "flow_prediction", {"size": SIZE}),
    "Wan": (wan, FLOW, SPACE, "flow_prediction", {}),
}


def solver(noise, basis, nfe=3):
    table = banded(noise, basis, nfe)
    return Tableau(table.t, table.t_c, table.c, table.W, noise, "x", {}, torch.ones_like(table.c_0), basis)


class Recording(S4SScheduler):
    """Keeps what the network saw and what it said."""

    def step(self, model_output, timestep, sample, **rest):
        self.seen = [*getattr(self, "seen", []), (sample.clone(), model_output.clone())]
        return super().step(model_output, timestep, sample, **rest)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", PIPES)
def test_a_pipelines_latents_are_our_loops(name, batch):
    make, noise, basis, prediction, options = PIPES[name]
    torch.manual_seed(0)
    pipe, call = make()
    pipe.set_progress_bar_config(disable=True)
    table = solver(noise, basis)
    pipe.scheduler = scheduler = Recording.from_tableau(table, pipe.scheduler.config, **options)
    call |= {"height": 8, "width": 16} if name != "Wan" else {}
    call |= {"num_inference_steps": 3, "output_type": "latent", "generator": torch.manual_seed(1)}
    for key in call:
        if key.startswith(("prompt", "negative", "pooled")):
            call[key] = torch.cat([call[key]] * batch) if torch.is_tensor(call[key]) else call[key] * batch
    end = pipe(**call)[0]
    lie = Grid(*(side // 2 for side in SIZE)) if name == "Flux" else Grid()
    if name == "Flux":  # which cuts its latents into patches of 2x2
        first = scheduler.seen[0][0]
        assert torch.equal(pipe._unpack_latents(first, *SIZE, pipe.vae_scale_factor), lie.image(first))
    met = iter(scheduler.seen)

    def denoiser(x, t, condition):
        state, output = next(met)
        assert x.shape[1:] == lie.image(state).shape[1:]
        torch.testing.assert_close(x.float(), lie.image(state).float(), rtol=1e-4, atol=1e-4)
        return X0[prediction](x, lie.image(output).to(x), noise.alpha(t), noise.sigma(t))

    ours = sample(denoiser, table, lie.image(scheduler.seen[0][0]))
    torch.testing.assert_close(lie.image(end).to(ours), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [None, SIZE], ids=["image", "tokens"])
def test_in_half_precision_the_state_is_float32(size, dtype):
    """Of a network that is exact in half precision, only the rounding of what it is shown is left."""
    x = torch.randn(2, *((32, 16) if size else (4, 8, 16)), generator=torch.manual_seed(0)).to(dtype)
    ends = []
    for precision in (dtype, torch.float32):
        scheduler = S4SScheduler.from_tableau(solver(FLOW, PLANE), size=size)
        state = x.to(precision)
        for t in scheduler.timesteps:
            state = scheduler.step(torch.full_like(state, 0.5), t, state).prev_sample
        assert state.dtype == precision
        ends.append(state.float())
    assert (ends[0] - ends[1]).abs().max() <= 0.501 * torch.finfo(dtype).eps * ends[1].abs().max()


@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 8, 16)], ids=["channels", "image"])
def test_a_constant_is_added_to_the_image_that_tokens_are_of(shape):
    m, beta = torch.randn(shape, generator=torch.manual_seed(1)).double(), torch.tensor([0, 0.5, -1, 2]).double()
    table, lie = replace(registry.make("dpmpp_2m", "logsnr", FLOW, 3), m=m, beta=beta), Grid(4, 8)
    x = torch.randn(2, 4, 8, 16, generator=torch.manual_seed(0))
    scheduler, state = S4SScheduler.from_tableau(table, size=SIZE), lie.tokens(x)
    for t in scheduler.timesteps:
        state = scheduler.step(torch.full_like(state, 0.5), t, state).prev_sample
    ours = sample(lambda x, t, _: X0["flow_prediction"](x, 0.5 + 0 * x, FLOW.alpha(t), FLOW.sigma(t)), table, x)
    torch.testing.assert_close(lie.image(state), ours, rtol=1e-4, atol=1e-4)
    unknown = S4SScheduler.from_tableau(table)
    with pytest.raises(UserError, match="or a mean image, over 2 axes: say how high and wide"):
        unknown.step(lie.tokens(x), unknown.timesteps[0], lie.tokens(x))


def test_tokens_lie_as_the_size_says():
    x = torch.randn(2, 5, 6, 8, generator=torch.manual_seed(0))
    packed = diffusers.FluxPipeline._pack_latents(x, 2, 5, 6, 8)
    lie = grid(packed, (48, 64), 2)
    assert lie == Grid(3, 4)
    assert torch.equal(lie.image(packed), x)
    assert torch.equal(lie.tokens(x), packed)
    assert grid(packed, (50, 79), 2) == Grid(3, 4)  # pipelines round down to whole tokens
    assert grid(packed, (64, 48), 2) == Grid(4, 3)
    assert grid(packed, None, 0) == grid(x, None, 2) == Grid()


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (None, r"are tokens, and .* say how high and wide"),
        ((64, 64), r"latents \[2, 12, 20\] are not those of an image of 64x64 pixels"),
        ((64,), "size must be the height and the width"),
        ((0, 64), "height in size must be at least 1"),
        ((64, "a"), "width in size must be a whole number"),
    ],
)
def test_a_size_that_does_not_go_with_the_tokens_is_refused(size, says):
    with pytest.raises(UserError, match=says):
        grid(torch.zeros(2, 12, 20), size, 2)


def test_the_size_is_kept_with_the_scheduler(tmp_path):
    scheduler = S4SScheduler.from_tableau(solver(FLOW, PLANE), flow_config(), size=SIZE)
    scheduler.save_pretrained(tmp_path)
    assert tuple(S4SScheduler.from_pretrained(tmp_path).config.size) == SIZE
    assert tuple(S4SScheduler.from_tableau(tmp_path, flow_config()).config.size) == SIZE
    for config in (None, flow_config()):
        assert tuple(S4SScheduler.from_tableau(tmp_path, config, size=[16, 8]).config.size) == (16, 8)
    with pytest.raises(UserError, match="size must be"):
        S4SScheduler.from_tableau(solver(FLOW, PLANE), size="large")


def flow_config():
    return diffusers.FlowMatchEulerDiscreteScheduler().config
