import numpy as np
import pytest
import torch

from s4spipe import distance, features, fid
from s4spipe.errors import UserError
from s4spipe.images import to_uint8
from s4spipe.models import digits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def net():
    return features.load("digits", "models/features.safetensors", CPU)


@pytest.fixture(scope="module")
def two_sets():
    x, _ = digits.images()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return to_uint8(x), to_uint8(x + 0.3 * noise)


def test_features_are_the_networks_own(net, two_sets):
    ours = fid.features(two_sets[0], net, CPU, batch_size=100)
    np.testing.assert_allclose(ours, net(torch.from_numpy(two_sets[0]).float()).numpy(), rtol=1e-5, atol=1e-5)


def test_fid_is_that_of_torchmetrics(net, two_sets):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(torch.nn.Module):
        num_features = 64

        def forward(self, x):
            return net(x.float())

    metric = FrechetInceptionDistance(feature=Features(), input_img_size=(1, 8, 8)).set_dtype(torch.float64)
    for images, real in zip(two_sets, (True, False), strict=True):
        metric.update(torch.from_numpy(images), real=real)
    ours = fid.frechet_distance(*(s for x in two_sets for s in fid.statistics(fid.features(x, net, CPU))))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-4)


def test_fid_is_the_trace_formula_with_scipys_matrix_root():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((500, 6)), rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 1
    (m1, c1), (m2, c2) = fid.statistics(a), fid.statistics(b)
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert fid.frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-10)


def test_known_distances():
    mean, cov = np.zeros(3), np.diag([1.0, 4.0, 9.0])
    assert fid.frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-12)
    assert fid.frechet_distance(mean, cov, mean + 2, cov) == pytest.approx(12)
    assert fid.frechet_distance(mean, cov, mean, 4 * cov) == pytest.approx(1 + 4 + 9)  # sum of (2 sd - sd)^2


def test_fewer_samples_than_dimensions_are_told(capsys):
    x = np.random.default_rng(0).standard_normal((65, 64))
    fid.statistics(x)
    assert capsys.readouterr().err == ""
    fid.statistics(x[:64])
    assert "FID of 64 samples in 64 dimensions means little" in capsys.readouterr().err
    with pytest.raises(UserError, match="more than 1 samples"):
        fid.statistics(x[:1])


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
    with pytest.raises(UserError, match="did you mean 'perceptual'"):
        distance.build("perceptial")
