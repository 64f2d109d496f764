import os

import numpy as np
import pytest
import torch

from s4spipe.evaluation import fid
from s4spipe.features.base import frechet, loading
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.images import to_uint8
from s4spipe.training import digits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def net():
    return loading.load("digits", "models/features.safetensors", CPU)


@pytest.fixture(scope="module")
def two_sets():
    x, _ = digits.images()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return to_uint8(x), to_uint8(x + 0.3 * noise)


def test_features_are_the_networks_own(net, two_sets):
    ours = torch.cat(list(fid.features(two_sets[0], net, CPU, batch_size=100)))
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
    ours = frechet.distance(*(fid.statistics(fid.features(x, net, CPU)) for x in two_sets))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-4)


def test_fewer_samples_than_dimensions_are_told(capsys):
    x = np.random.default_rng(0).standard_normal((65, 64))
    fid.statistics([torch.from_numpy(x)])
    assert capsys.readouterr().err == ""
    fid.statistics([torch.from_numpy(x[:64])])
    assert "FID of 64 samples in 64 dimensions means little" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"sample\.count"):
        fid.statistics([torch.from_numpy(x[:1])])


@pytest.mark.parametrize("dimension", [1, 5])
def test_statistics_are_what_the_frechet_distance_takes(dimension):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((50, dimension)))
    for ours, theirs in zip(fid.statistics([x]), frechet.statistics(x), strict=True):
        torch.testing.assert_close(ours, theirs.view_as(ours))
    assert frechet.distance(fid.statistics([x]), fid.statistics([x + 2])) == pytest.approx(4 * dimension)


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
def test_images_are_resized_in_order_on_any_number_of_cores(cores, monkeypatch):
    class Net(torch.nn.Module):
        @staticmethod
        def resize(image):
            return np.repeat(image, 2, 0).astype(np.float32)

        def forward(self, images):
            return images.flatten(1)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    images = torch.arange(5 * 12, dtype=torch.uint8).view(5, 3, 2, 2)
    found = fid.batch_features(images, Net(), torch.device("cpu"))
    assert torch.equal(found, images.repeat_interleave(2, 2).flatten(1).float())
