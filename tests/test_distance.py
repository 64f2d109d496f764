"""Distances between a student's and a teacher's samples."""

import pytest
import torch

from s4spipe.features.base import loading
from s4spipe.learning import distance
from s4spipe.runtime.errors import UserError
from s4spipe.training import digits


@pytest.fixture(scope="module")
def net():
    return loading.load("digits", "models/features.safetensors", torch.device("cpu"))


@pytest.mark.parametrize("name", distance.DISTANCES)
class TestDistances:
    def test_it_is_a_distance_per_pair(self, name, net):
        d = distance.build(name, net)
        x, y = digits.images()[0][:5], digits.images()[0][5:10]
        assert d(x, y).shape == (5,)
        assert (d(x, y) > 0).all()
        torch.testing.assert_close(d(x, x), torch.zeros(5), atol=1e-7, rtol=0)
        torch.testing.assert_close(d(x, y)[2:3], d(x[2:3], y[2:3]))

    def test_its_gradient_points_towards_the_other(self, name, net):
        d = distance.build(name, net)
        x, y = (digits.images()[0][i : i + 5].clone() for i in (0, 5))
        x.requires_grad_()
        d(x, y).sum().backward()
        assert (d(x - 1e-3 * x.grad / x.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1), y) < d(x, y)).all()


def test_values_of_the_pixel_distances():
    x, y = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert distance.l2(x, y).item() == 1
    assert distance.pseudo_huber(x, y).item() == pytest.approx((4 + 0.00108**2) ** 0.5 - 0.00108)


def test_an_unknown_distance_is_told():
    with pytest.raises(UserError, match="'perceptual'"):
        distance.build("perceptial")
