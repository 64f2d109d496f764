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


def images():
    return digits.images()[0][:20], digits.images()[0][20:40]


def test_the_perceptual_distance_is_lpips_over_the_layers(net):
    x, y = images()
    expected = torch.zeros(len(x))
    for a, b in zip(*(net.maps((z.clamp(-1, 1) + 1) * 127.5) for z in (x, y)), strict=True):
        a, b = (maps / maps.norm(dim=1, keepdim=True) for maps in (a, b))
        expected += (a - b).square().sum(1).mean(dim=(1, 2))
    torch.testing.assert_close(distance.build("perceptual", net)(x, y), expected, rtol=1e-4, atol=1e-6)


def test_robust_distances_are_huber_of_what_is_scaled_at_the_start(net):
    seen, (x, y) = distance.seen_by(net, lambda x: x), images()
    norms = [residual(x, y).norm(dim=1) for residual in (seen, distance.pixels)]
    parts = [norm / norm.mean() for norm in norms]
    c = distance.ROUNDED
    alone, both = distance.robust([seen], x, y), distance.robust([seen, distance.pixels], x, y)
    torch.testing.assert_close(alone(x, y), (parts[0] ** 2 + c**2).sqrt() - c)
    torch.testing.assert_close(both(x, y), (parts[0] ** 2 + parts[1] ** 2 + c**2).sqrt() - c)
    assert alone(x, x).abs().max() == 0


def test_a_part_without_any_difference_at_the_start_counts_as_it_is(net):
    x, y = images()
    same = distance.robust([lambda x, y: 0 * distance.pixels(x, y), distance.pixels], x, y)
    torch.testing.assert_close(same(x, y), distance.robust([distance.pixels], x, y)(x, y))


@pytest.mark.parametrize("name", distance.ROBUST)
def test_the_start_of_a_robust_distance_is_chosen_by_pixels(name):
    assert distance.build(name) is distance.pseudo_huber


def test_an_unknown_distance_is_told():
    with pytest.raises(UserError, match="'perceptual'"):
        distance.build("perceptial")
