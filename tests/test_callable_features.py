"""Features networks out of a user's own code."""

import numpy as np
import pytest
import torch
from support import own_code

from s4spipe.evaluation import fid
from s4spipe.evaluation import real as real_images
from s4spipe.features.base import loading
from s4spipe.runtime.errors import UserError

CPU = torch.device("cpu")
CODE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 5, 3)

    def forward(self, images):
        assert images.dtype == torch.float32 and images.abs().max() <= 1
        return torch.tanh(self.layer(images)).mean((2, 3))

class Given(Net):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

class Maps(Net):
    def forward(self, images):
        return self.layer(images)

class Frozen(Net):
    @torch.no_grad()
    def forward(self, images):
        return super().forward(images)

class Batchwise(Net):
    def forward(self, images):
        return super().forward(images - images.mean(0))

class Broken(Net):
    def forward(self, images):
        return super().forward(images) / 0

class Raises(Net):
    def forward(self, images):
        raise ValueError("only 299x299")

def number(): return 3
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    name = own_code.module(tmp_path, monkeypatch, "seeing", CODE)
    return lambda function: loading.load("callable", "w.bin", CPU, source=f"{name}:{function}", key="fid.source")


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 3, 9, 8), dtype=np.uint8)


def test_features_are_those_of_the_network_on_images_from_minus_1_to_1(load, images, tmp_path):
    net = load("Net")
    x = torch.from_numpy(images).float() / 127.5 - 1
    expected = torch.tanh(net.net.layer(x)).mean((2, 3))
    torch.testing.assert_close(net.embed(x), expected)
    torch.testing.assert_close(net.embed(3 * x), net.embed((3 * x).clamp(-1, 1)))
    np.testing.assert_allclose(
        torch.cat([*fid.features(images, net, CPU, batch_size=3)]), expected, rtol=1e-4, atol=1e-5
    )
    np.save(tmp_path / "real.npy", images)
    real = real_images.read(str(tmp_path / "real.npy"), net, CPU)
    np.testing.assert_allclose(real["features"], expected, rtol=1e-4, atol=1e-5)
    apart = (expected - expected.flip(0)).square().sum(1)
    torch.testing.assert_close(net.residual(x, x.flip(0)).square().sum(1), apart)
    assert load("Given").net.weights == "w.bin"


def test_the_distance_can_be_differentiated(load):
    net = load("Net")
    torch.manual_seed(0)
    x, y = ((torch.rand(2, 3, 6, 6) - 0.5).requires_grad_(), torch.rand(2, 3, 6, 6))
    (slope,) = torch.autograd.grad(net.residual(x, y).square().sum(), x)
    step = torch.randn_like(x)
    with torch.no_grad():
        ahead, behind = (net.residual(x + h * step, y).square().sum() for h in (1e-2, -1e-2))
    torch.testing.assert_close((slope * step).sum(), (ahead - behind) / 2e-2, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("Maps", r"fid\.source: seeing.*:Maps: its network must return features \[2, d\]"),
        ("Frozen", r"Frozen: its network cannot be differentiated"),
        ("Batchwise", r"Batchwise: the features of one image depend on the others"),
        ("Broken", r"Broken: its network returned features that are not finite"),
        ("Raises", r"Raises fails on images .*: ValueError: only 299x299 \(.*seeing"),
        ("number", r"number must return a torch\.nn\.Module, got int"),
        ("absent", r"has no function 'absent'"),
    ],
)
def test_a_network_that_cannot_be_used_is_told(load, function, says):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=says):
        load(function).embed(torch.rand(2, 3, 8, 8).requires_grad_())


def test_statistics_are_not_taken_for_those_of_the_network(load, tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(UserError, match=r"s\.npz: .*name the images themselves"):
        real_images.read(str(tmp_path / "s.npz"), load("Net"), CPU)
