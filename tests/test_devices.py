"""Devices without float64 (Apple's mps): no such tensor is made on them. A mode of torch stands for the device."""

import diffusers
import pytest
import torch
from support import pipes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s4spipe import models, noise
from s4spipe.models.base import dry_call
from s4spipe.noise import Flow, VPCosine, VPDiscrete, VPLinear
from s4spipe.sampling import loop
from s4spipe.sampling.batches import Noises, generate
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry


class NoFloat64(TorchDispatchMode):
    """Refuses arithmetic on float64 tensors that have a batch of samples, which is what lies on the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf) and leaf.dtype == torch.float64 and leaf.ndim and leaf.shape[0] == BATCH:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return out


BATCH = 13  # so that its tensors are known by their length


@pytest.fixture
def without_float64(monkeypatch):
    """As if the CPU were mps."""
    for module in (noise, loop, dry_call):
        monkeypatch.setattr(module, "precision", lambda device: torch.float32)


@pytest.mark.parametrize("schedule", [VPDiscrete(noise.alphas_cumprod("linear", 1e-4, 0.02, 1000)), VPLinear(),
                                      VPCosine(), Flow()], ids=lambda n: type(n).__name__)  # fmt: skip
def test_a_noise_schedule_answers_in_the_dtype_that_it_is_asked_in(schedule):
    lam = torch.linspace(-2, 3, BATCH)
    with NoFloat64():
        t = schedule.inverse(lam)
        answers = [schedule.alpha(t), schedule.sigma(t), schedule.lambda_(t)]
    assert {answer.dtype for answer in [t, *answers]} == {torch.float32}
    exact = schedule.inverse(lam.double())
    torch.testing.assert_close(t.double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answers[2].double(), schedule.lambda_(exact), rtol=1e-3, atol=1e-3)


MAKE = {
    "discrete VP": (lambda: pipes.unconditional()[0], "none"),
    "DiT": (lambda: pipes.classes()[0], "labels"),
    "latent": (pipes.latent_unconditional, "none"),
}


@pytest.mark.parametrize("name", MAKE)
def test_pipelines_models_sample_without_float64(name, tmp_path, without_float64):
    torch.manual_seed(0)
    make, condition = MAKE[name]
    settings = {"kind": "diffusers", "weights": str(pipes.saved(make(), tmp_path / "model")), "condition": condition}
    denoiser = models.load(settings)
    table = registry.make("dpmpp_2m", "logsnr", denoiser.noise_schedule, 4)
    exact = next(generate(denoiser, table, Noises("sample", 0, BATCH), BATCH))["x_0"]
    with NoFloat64():
        ours = next(generate(denoiser, table, Noises("sample", 0, BATCH), BATCH))["x_0"]
    assert torch.equal(ours, exact)


def test_the_mode_refuses_what_it_should(tmp_path):
    """The check of the check: as the CPU, which has float64, the same sampling is refused."""
    torch.manual_seed(0)
    weights = str(pipes.saved(pipes.unconditional()[0], tmp_path / "model"))
    denoiser = models.load({"kind": "diffusers", "weights": weights, "condition": "none"})
    table = registry.make("ddim", "logsnr", denoiser.noise_schedule, 2)
    with NoFloat64(), pytest.raises(TypeError, match="MPS"):
        next(generate(denoiser, table, Noises("sample", 0, BATCH), BATCH))


def test_the_scheduler_needs_no_float64():
    scheduler = S4SScheduler.from_classical("unipc_bh2", "logsnr", 4, diffusers.DDIMScheduler().config)
    x = torch.randn(BATCH, 3, 4, 4)
    with NoFloat64():
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
    assert x.isfinite().all()


def test_the_dry_call_is_left_out_where_there_are_no_numbers():
    denoiser = models.load({"weights": "models/digits.safetensors"}, "meta")
    dry_call.check(denoiser)
    assert {parameter.device.type for parameter in denoiser.parameters()} == {"meta"}
