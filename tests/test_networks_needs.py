"""What a network needs and returns: checked by a call when it is loaded, and in its shape at every call after that."""

import diffusers
import pytest
import torch
from support import pipes

from s4spipe import models
from s4spipe.models.base import dry_call
from s4spipe.models.diffusers.prompts import embed
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import write_tensors

CODE = """
import torch

class Net(torch.nn.Module):
    img_channels, img_resolution, in_channels = 2, 4, 2

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
        self.config = {"in_channels": 2, "sample_size": 4}

class Plain(Net):
    def forward(self, x, t): return self.scale * x

class ByName(Net):
    num_classes = 3
    def forward(self, x, t, y): return self.scale * x

class Options(Net):
    def forward(self, x, t, class_labels=None, *, mask=None, **more): return self.scale * x

class NeedsMask(Net):
    def forward(self, x, t, class_labels=None, *, mask): return self.scale * x

class Swapped(Net):
    def forward(self, t, x): return self.scale * x

class EdmNeeds(Net):
    def forward(self, x, sigma, class_labels, augment): return self.scale * x

class OneChannel(Net):
    def forward(self, x, t): return self.scale * x[:, :1]

class TwiceTheChannels(Net):
    def forward(self, x, t): return torch.cat([self.scale * x, x], 1)

class ThreeTimes(Net):
    def forward(self, x, t): return self.scale * x.repeat(1, 3, 1, 1)

class Pooled(Net):
    def forward(self, x, sigma, class_labels=None): return self.scale * x.mean((2, 3), keepdim=True)

class Whole(Net):
    def forward(self, x, t): return (100 * x).long()

class Pair(Net):
    def forward(self, x, t): return self.scale * x, None

class Rows(Net):
    def forward(self, x, t): return self.scale * x - x.mean(0, keepdim=True)

class Nan(Net):
    def forward(self, x, t): return self.scale * x / (t > 1e9)[:, None, None, None]

class Crash(Net):
    def forward(self, x, t): raise KeyError("a table of mine")

class OneTime(Net):
    def forward(self, x, t): return self.scale * x * float(t)

class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(2)
    def forward(self, x, t): return self.norm(self.scale * x)
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"needs_{tmp_path.name}"  # Python keeps a module of the same name
    (tmp_path / f"{name}.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "weights.bin").write_bytes(b"1")
    return lambda net, **more: models.load(
        {"kind": "callable", "source": f"{name}:{net}", "weights": "weights.bin", **more}
    )


@pytest.mark.parametrize("net", ["Plain", "Options", "TwiceTheChannels", "Normed"])
def test_networks_that_can_be_used(load, net):
    denoiser = load(net)
    x = torch.randn(3, 2, 4, 4)
    assert denoiser(x, torch.tensor(10.0)).shape == x.shape


@pytest.mark.parametrize(
    ("net", "says"),
    [
        ("ByName", "forward needs 'y', which is not given to it; the argument of the classes must be class_labels"),
        ("NeedsMask", "forward needs 'mask'"),
        ("EdmNeeds", "forward needs 'augment'"),
        ("Swapped", r"forward takes \(t, x\); it must take"),
        ("OneChannel", r"must return the shape of its input, \[2, 2, 4, 4\], got \[2, 1, 4, 4\]"),
        ("ThreeTimes", r"the shape of its input, \[2, 2, 4, 4\], got \[2, 6, 4, 4\]"),
        ("Pooled", r"the shape of its input, \[2, 2, 4, 4\], got \[2, 2, 1, 1\]"),
        ("Whole", "tensor of floating-point numbers, got torch.int64"),
        ("Pair", "tensor of floating-point numbers, got tuple"),
        ("Rows", "one sample depends on the others in its batch"),
        ("Nan", r"not finite \(NaN or infinite\) at times .* bfloat16 or float32"),
        ("Crash", "cannot be called on a batch of two states .*a table of mine"),
        ("OneTime", "cannot be called on a batch of two states .* and their times"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_when_it_is_loaded(load, net, says):
    with pytest.raises(UserError, match=says) as caught:
        load(net)
    assert len(str(caught.value)) <= 400


def test_an_output_of_another_shape_is_never_broadcast():
    """Later calls too: a network may answer differently to other batches."""
    x = torch.zeros(2, 3, 4, 4)
    assert dry_call.output(torch.ones(2, 6, 4, 4), x).shape == x.shape
    for shape in ([2, 1, 4, 4], [1, 3, 4, 4], [2, 3, 1, 1], [3, 4, 4], [2, 4, 4, 4], []):
        with pytest.raises(UserError, match="must return the shape of its input"):
            dry_call.output(torch.ones(shape), x)


def unet(**more):
    return diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **more,
    )  # fmt: skip


def saved(tmp_path, net, scheduler=None):
    pipe = diffusers.DDPMPipeline(net, scheduler or diffusers.DDPMScheduler())
    return str(pipes.saved(pipe, tmp_path / "model"))


@torch.no_grad()
def test_a_class_conditional_unet_has_classes(tmp_path):
    torch.manual_seed(0)
    settings = {"kind": "diffusers", "weights": saved(tmp_path, unet(num_class_embeds=7))}
    denoiser = models.load(settings | {"condition": "labels"})
    assert (denoiser.num_classes, denoiser.null_condition, denoiser.network_calls) == (7, None, 1)
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 6])
    alpha_2 = diffusers.DDPMScheduler().alphas_cumprod[300]
    out = denoiser.net(x, torch.tensor(300.0), class_labels=labels).sample
    expected = (x - (1 - alpha_2).sqrt() * out) / alpha_2.sqrt()
    torch.testing.assert_close(denoiser(x, torch.tensor(300.0), labels), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="class_labels should be provided.*model.condition: labels gives it classes"):
        models.load(settings | {"condition": "none"})
    with pytest.raises(UserError, match="was never trained without one"):
        models.load(settings | {"condition": "labels", "guidance": 2.0})


def test_class_embeddings_of_another_type_are_refused(tmp_path):
    weights = saved(tmp_path, unet(class_embed_type="timestep"))
    with pytest.raises(UserError, match="class_embed_type 'timestep', which is not supported"):
        models.load({"kind": "diffusers", "weights": weights, "condition": "none"})


def test_a_network_of_more_channels_than_it_predicts_is_refused(tmp_path):
    """As those for inpainting, which also take a mask and an image."""
    weights = saved(tmp_path, unet(in_channels=7, out_channels=3))
    with pytest.raises(UserError, match=r"shape of its input, \[2, 7, 8, 8\], got \[2, 3, 8, 8\]"):
        models.load({"kind": "diffusers", "weights": weights, "condition": "none"})


@torch.no_grad()
def test_a_pixel_model_of_flow_is_shown_its_own_times(tmp_path):
    torch.manual_seed(0)
    weights = saved(tmp_path, unet(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    denoiser = models.load({"kind": "diffusers", "weights": weights, "condition": "none"})
    x = torch.randn(2, 3, 8, 8)
    expected = x - 0.25 * denoiser.net(x, torch.tensor(250.0)).sample
    torch.testing.assert_close(denoiser(x, torch.tensor(0.25)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [pipes.stable_diffusion, pipes.stable_diffusion_xl])
@torch.no_grad()
def test_a_distilled_network_takes_the_guidance_scale_as_an_input(make, tmp_path):
    """As that of a latent consistency model: embedded by the pipeline's own function, and no second network call."""
    torch.manual_seed(0)
    pipe = make()
    config = {key: value for key, value in pipe.unet.config.items() if key[0] != "_"} | {"time_cond_proj_dim": 6}
    pipe.register_modules(unet=diffusers.UNet2DConditionModel.from_config(config))
    settings = {"kind": "diffusers", "weights": str(pipes.saved(pipe, tmp_path / "model")), "condition": "prompts"}
    tensors = embed(models.ModelSettings.of(settings), ["a", "b"], torch.device("cpu"))
    settings["embeddings"] = str(tmp_path / "prompts.safetensors")
    write_tensors(settings["embeddings"], tensors, {"guided": True, "prompts": ["a", "b"], "model": {}})
    denoiser = models.load(settings | {"guidance": 7.5})
    assert denoiser.network_calls == 1
    seen = {}
    pipe.unet.register_forward_hook(lambda *call: seen.update(call[2]), with_kwargs=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.manual_seed(0)
    pipe(["a", "b"], guidance_scale=7.5, num_inference_steps=1, height=8, width=8, output_type="latent",
         generator=generator)  # fmt: skip
    ours = {}
    denoiser.net.register_forward_hook(lambda *call: ours.update(call[2]), with_kwargs=True)
    x = torch.randn(2, 4, 8, 8)
    at_7 = denoiser(x, torch.tensor(500.0), torch.tensor([0, 1]))
    torch.testing.assert_close(ours["timestep_cond"], seen["timestep_cond"])
    torch.testing.assert_close(ours["encoder_hidden_states"], seen["encoder_hidden_states"], rtol=1e-4, atol=1e-4)
    denoiser.guide(1.0)
    assert (denoiser(x, torch.tensor(500.0), torch.tensor([0, 1])) - at_7).abs().max() > 1e-4
