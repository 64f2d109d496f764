"""The random features network: it needs no weights, and tells good images from bad ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s4spipe import features
from s4spipe.features.base import frechet
from s4spipe.features.random import BESIDE, SIZE, RandomFeatures, beside
from s4spipe.training.digits import images

CPU = torch.device("cpu")


def test_it_is_the_same_everywhere():
    x = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
    seen = features.load("random", "", CPU).embed(x)
    assert torch.equal(seen, RandomFeatures().embed(x))
    expected = torch.tensor([0.12515, 0.15701, 0.25411, 0.06658])
    torch.testing.assert_close(seen[0, :4].abs(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(RandomFeatures(seed=1).embed(x), seen)


def test_beside_a_network_stand_those_of_two_other_seeds():
    x = torch.rand(5, 3, 16, 16, generator=torch.manual_seed(0))
    own, others = beside(lambda images: images.mean((2, 3)), lambda x: 2 * x - 1)(x)
    expected = [RandomFeatures(seed).embed(2 * x - 1) for seed in BESIDE]
    assert torch.equal(own, (2 * x - 1).mean((2, 3)))
    assert len(set(BESIDE) - {0}) == 2  # FID's are of seed 0
    assert torch.equal(others, torch.cat(expected, 1))


@settings(deadline=None, max_examples=30)
@given(channels=st.integers(1, 12), height=st.integers(1, 40), width=st.integers(1, 40))
def test_images_of_any_size_have_features_of_their_own_each(channels, height, width):
    net, x = RandomFeatures(), torch.rand(3, channels, height, width, generator=torch.manual_seed(0)) * 2 - 1
    seen = net.embed(x)
    assert seen.shape == (3, min(SIZE, channels * height * width) if min(height, width) < 4 else SIZE)
    assert seen.isfinite().all()
    torch.testing.assert_close(net.embed(x[1:2]), seen[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net((x + 1) * 127.5), seen, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.residual(x, x.flip(0))[1].norm(), torch.tensor(0.0), rtol=0, atol=1e-8)


def test_what_is_no_image_is_projected():
    x = torch.rand(5, 7) * 2 - 1
    torch.testing.assert_close(RandomFeatures().embed(x).norm(dim=1), x.norm(dim=1))  # orthonormal


def test_it_is_differentiable():
    x = (torch.rand(2, 3, 9, 9, generator=torch.manual_seed(0)) * 1.6 - 0.8).requires_grad_()
    along, h, net = torch.randn(x.shape, generator=torch.manual_seed(1)), 1e-2, RandomFeatures()
    (slope,) = torch.autograd.grad(net.embed(x).sum(), x)
    with torch.no_grad():
        ends = [net.embed(x + sign * h * along).sum() for sign in (1, -1)]
    assert (slope * along).sum().item() == pytest.approx((ends[0] - ends[1]).item() / (2 * h), rel=1e-2)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x, k: x + k * 0.1 * torch.randn(x.shape, generator=torch.manual_seed(2)),
        lambda x, k: x * (1 - 0.15 * k),
        lambda x, k: (1 - 0.3 * k) * x + 0.3 * k * x.roll(1, 3),
        lambda x, k: x + 0.1 * k,
    ],
    ids=["noise", "contrast", "blur", "brightness"],
)
def test_the_distance_grows_as_images_get_worse(spoil):
    x, net = images()[0][:600], RandomFeatures()
    goal = frechet.statistics(net.embed(x).double())
    found = [frechet.distance_and_slope(net.embed(spoil(x, k)).double(), goal)[0] for k in range(4)]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert np.all(np.diff(found) > 0)
