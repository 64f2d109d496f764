"""Models out of a user's own code."""

import sys

import pytest
import torch
from diffusers import UNet2DModel
from support import own_code
from torch.utils.checkpoint import checkpoint

from s4spipe import models
from s4spipe.runtime.errors import UserError

CODE = """
import torch

class Edm(torch.nn.Module):
    img_channels, img_resolution, label_dim, sigma_min, sigma_max = 2, 4, 3, 0.0, float("inf")

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, sigma, class_labels=None):
        assert sigma.shape == (len(x),) and x.dtype == sigma.dtype == torch.float32
        labels = 0 if class_labels is None else (class_labels @ torch.tensor([1.0, 2.0, 3.0]))[:, None, None, None]
        return self.scale * x / (1 + sigma[:, None, None, None]) + labels

class Bare(torch.nn.Module):
    def forward(self, x, sigma, class_labels=None):
        return x

class Odd(torch.nn.Module):
    def forward(self, picture):
        return picture

def edm(): return Edm()
def given(weights): return Edm() if weights == "weights.bin" else None
def bare(): return Bare()
def odd(): return Odd()
def nothing(): return 3
def net():
    from diffusers import UNet2DModel
    torch.manual_seed(0)
    return UNet2DModel(8, 3, 6, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
text = "a"
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    name = own_code.module(tmp_path, monkeypatch, "research", CODE)
    (tmp_path / "weights.bin").write_bytes(b"1")
    return lambda function, **more: models.load(
        {"kind": "callable", "source": f"{name}:{function}", "weights": "weights.bin", **more}
    )


@pytest.mark.parametrize("function", ["edm", "given"])
def test_edms_interface(load, function):
    denoiser = load(function)
    assert (denoiser.sample_shape, denoiser.num_classes, denoiser.network_calls) == ((2, 4, 4), 3, 1)
    noise = denoiser.noise_schedule
    assert (noise.sigma_min, noise.sigma_max) == (0.002, 80.0)
    x, t, labels = torch.randn(5, 2, 4, 4).double(), torch.tensor(3.0).double(), torch.tensor([0, 1, 2, 0, 1])
    plain = 0.5 * x / 4
    torch.testing.assert_close(
        denoiser(x, t, labels), plain + (labels + 1.0)[:, None, None, None], rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(denoiser(x, t), plain, rtol=1e-6, atol=1e-6)
    guided = load(function, guidance=3.0)
    assert guided.network_calls == 2
    expected = plain + 3 * (labels + 1.0)[:, None, None, None]
    torch.testing.assert_close(guided(x, t, labels), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "x0"),
    [
        ({}, lambda x, out, a, s: (x - s * out) / a),
        ({"prediction_type": "v_prediction"}, lambda x, out, a, s: a * x - s * out),
        ({"prediction_type": "sample", "beta_schedule": "scaled_linear"}, lambda x, out, a, s: out),
    ],
)
def test_diffusers_interface_with_a_learned_variance(load, scheduler, x0):
    from diffusers import DDPMScheduler

    denoiser = load("net", scheduler=scheduler)
    assert (denoiser.sample_shape, denoiser.num_classes) == ((3, 8, 8), 0)
    torch.manual_seed(0)
    net = UNet2DModel(8, 3, 6, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                      down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    alpha_2 = DDPMScheduler(**scheduler).alphas_cumprod[300]
    x = torch.randn(2, 3, 8, 8)
    expected = x0(x, net(x, 300).sample[:, :3], alpha_2.sqrt(), (1 - alpha_2).sqrt())
    torch.testing.assert_close(denoiser(x, torch.tensor(300.0)), expected, rtol=1e-4, atol=1e-4)


def test_a_flow_model(load):
    denoiser = load("net", scheduler={"beta_schedule": "linear", "use_flow_sigmas": True})
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(0.25)
    torch.testing.assert_close(denoiser(x, t), x - 0.25 * denoiser.net(x, 250.0).sample[:, :3])


def test_a_shape_may_be_given(load):
    assert load("bare", shape=[1, 5, 5]).sample_shape == (1, 5, 5)
    with pytest.raises(UserError, match="model.shape: needed"):
        load("bare")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("nothing", "must return a torch.nn.Module, got int"),
        ("text", "must be a function, got str"),
        ("absent", "has no function 'absent'"),
        ("odd", r"forward takes \(picture\); it must take \(x, sigma, class_labels\)"),
    ],
)
def test_what_is_no_model_is_told(load, function, says):
    with pytest.raises(UserError, match=f"model.source: .*{says}"):
        load(function)


FAILING = {
    "exits.py": "import sys\nsys.exit(0)",
    "parses.py": "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--x', required=True)\n"
    "parser.parse_args()",
    "lacks.py": "\n\nimport not_installed_here",
    "wrong.py": "def (",
    "cannot.py": "from json import no_such_name",
    "late.py": "import json\n\ndef f():\n    return helper()\n\ndef helper():\n    return json.loads('{')\n\n"
    "def g():\n    raise SystemExit\n\ndef two(a, b):\n    pass\n\nclass Net:\n    pass",
    "nets.py": "import torch\n\nclass Net(torch.nn.Module):\n    label_dim = 'ten'\n"
    "    def forward(self, x, sigma, class_labels=None):\n        return x",
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("exits:f", r"cannot be imported: SystemExit: 0 \(.*exits.py:2\)"),
        ("parses:f", r"cannot be imported: SystemExit: 2 \(.*parses.py:4\)"),
        ("lacks:f", r"cannot be imported: ModuleNotFoundError: No module named 'not_installed_here' \(.*lacks.py:3\)"),
        ("wrong:f", r"cannot be imported: SyntaxError: .*wrong.py, line 1"),
        ("cannot:f", r"cannot be imported: ImportError: cannot import name 'no_such_name' .*cannot.py:1\)"),
        ("late:f", r"fails: JSONDecodeError: Expecting property name .* \(.*late.py:7\)"),
        ("late:g", r"fails: SystemExit \(.*late.py:10\)"),
        ("late:two", "fails: TypeError: two.. missing 1 required positional argument: 'b'"),
        ("late:Net", "must return a torch.nn.Module, got Net"),
        ("nets:Net", "returned a network that cannot be used: ValueError: .*'ten'"),
    ],
)
def test_a_users_code_that_fails_is_told_with_its_place(source, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["s4spipe"])
    sys.modules.pop(source.partition(":")[0], None)  # of the test before
    for name, code in FAILING.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    with pytest.raises(UserError, match=f"model.source: {source} {says}") as caught:
        models.load({"kind": "callable", "source": source, "weights": "x"})
    assert len(str(caught.value)) <= 400


@pytest.mark.parametrize("place", ["same_name.py", "same_package/net.py"])
def test_two_projects_with_a_module_of_the_same_name_are_not_mixed(place, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = place.removesuffix(".py").replace("/", ".")

    def load(project):
        path = tmp_path / project / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CODE, encoding="utf-8")
        monkeypatch.chdir(tmp_path / project)
        return models.load({"kind": "callable", "source": f"{module}:edm", "weights": place})

    assert load("first").num_classes == 3
    with pytest.raises(
        UserError, match=f"Python has kept the module '{module}' of .*first.*, and .*second.* has the same"
    ):
        load("second")
    assert load("first").num_classes == 3


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no_module:f", "no module 'no_module' can be imported"),
        ("json.no_module:f", "no module 'json.no_module' can be imported"),
        ("edm", "must be module:function"),
        ("..edm:f", "must be module:function"),
        (None, "must be module"),
    ],
)
def test_a_source_that_names_no_function_is_told(source, says, tmp_path):
    with pytest.raises(UserError, match=says):
        models.load({"kind": "callable", "source": source, "weights": "x"})


def test_unknown_kinds_and_precisions_are_told():
    with pytest.raises(UserError, match="unknown kind of model 'difusers': did you mean 'diffusers'"):
        models.load({"kind": "difusers", "weights": "x"})
    with pytest.raises(UserError, match="unknown precision 'fp16'"):
        models.load({"weights": "models/digits.safetensors", "precision": "fp16"})


def test_without_a_gpu_half_precision_and_compilation_are_left_out_with_a_word(capsys):
    params = {"weights": "models/digits.safetensors"}
    half = models.load(params | {"precision": "bfloat16"}, compiled=True)
    said = capsys.readouterr().err
    assert "model.precision: bfloat16 needs a GPU" in said
    assert "run.compile: true needs a GPU" in said
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(1.0)
    assert torch.equal(half(x, t), models.load(params)(x, t))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_compiled_network_computes_the_same_and_passes_gradients():
    """As `load` compiles it on a GPU, with the compiler's front end alone."""
    params = {"weights": "models/digits.safetensors", "guidance": 2.0}
    compiled, plain = models.load(params), models.load(params)
    compiled.net = torch.compile(compiled.net, backend="eager")
    x, t, labels = torch.randn(3, 1, 8, 8), torch.tensor(1.0), torch.tensor([1, 2, 3])
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for denoiser, start in zip((compiled, plain), inputs, strict=True):
        checkpoint(denoiser, start, t, labels, use_reentrant=False).sum().backward()
    torch.testing.assert_close(compiled(x, t, labels), plain(x, t, labels))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_on_another_device_than_a_cpu_precision_and_compilation_are_taken(capsys):
    asked = {"weights": "models/digits.safetensors", "precision": "bfloat16"}
    denoiser = models.load(asked, "meta", compiled=True)
    assert capsys.readouterr().err == ""
    assert denoiser.precision == torch.bfloat16
    assert isinstance(denoiser.net, torch._dynamo.eval_frame.OptimizedModule)
    assert {parameter.device.type for parameter in denoiser.parameters()} == {"meta"}
    x = torch.empty(2, 1, 8, 8, device="meta", dtype=torch.float64)
    denoiser = models.load(asked | {"precision": "float32"}, "meta")
    out = denoiser(x, torch.tensor(1.0, device="meta"), torch.zeros(2, dtype=torch.long, device="meta"))
    assert (out.shape, out.dtype, out.device.type) == (x.shape, torch.float64, "meta")


def test_autocast_computes_in_half_precision_and_keeps_the_state():
    """On the CPU too, where `load` does not choose it."""
    denoiser = models.load({"weights": "models/digits.safetensors"})
    x, t = torch.randn(8, 1, 8, 8).double(), torch.tensor(1.0).double()
    exact = denoiser(x, t)
    denoiser.set_precision(torch.bfloat16)
    rounded = denoiser(x, t)
    assert rounded.dtype == torch.float64
    assert 1e-5 < (rounded - exact).abs().max() < 0.1
