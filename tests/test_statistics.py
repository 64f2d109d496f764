"""Statistics of real images, as other tools and users write them: read, or refused where they are read."""

import numpy as np
import pytest
import torch
from support.hostile import said_of

from s4spipe.evaluation import fid
from s4spipe.evaluation import real as real_images
from s4spipe.features.base import frechet, loading
from s4spipe.runtime.files import write_tensors

CPU = torch.device("cpu")
BYTES = np.uint8


@pytest.fixture(scope="module")
def net():
    return loading.load("digits", "models/features.safetensors", CPU)


def good():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 64))
    return {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)}


@pytest.mark.parametrize(
    "more",
    [{}, {"mu_s": np.zeros(3), "sigma_s": np.eye(3), "arr_0": np.zeros((2, 4, 4, 3), BYTES)}],
    ids=["edm", "adm"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_statistics_of_other_tools_are_read(more, dtype, write, net, tmp_path):
    known = {key: np.asfortranarray(value.astype(dtype)) for key, value in good().items()}
    write(tmp_path / "x.npz", **known, **more)
    found = real_images.read(str(tmp_path / "x.npz"), net, CPU)
    assert found["mean"].dtype == found["covariance"].dtype == torch.float64
    np.testing.assert_array_equal(found["mean"], known["mu"])
    np.testing.assert_array_equal(found["covariance"], known["sigma"])
    own = fid.statistics([torch.from_numpy(np.random.default_rng(1).standard_normal((500, 64)))])
    assert 0 < frechet.distance(own, (found["mean"], found["covariance"])) < 30


NAN, COVARIANCE = float("nan"), good()["sigma"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mu": np.full(64, NAN)}, "mean holds numbers that are not finite"),
        ({"sigma": np.full((64, 64), np.inf)}, "covariance holds numbers that are not finite"),
        ({"mu": np.zeros((1, 64))}, "mu must be float32 or float64 [64], the statistics of the network"),
        ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, "got float64 [2048]"),
        ({"sigma": np.ones(64)}, "sigma must be float32 or float64 [64, 64]"),
        ({"mu": np.zeros(64, complex)}, "got complex128 [64]"),
        ({"mu": np.zeros(64, int)}, "got int64 [64]"),
        ({"mu": np.array([{}] * 64)}, "got object [64]"),
        ({"sigma": np.triu(COVARIANCE)}, "its covariance is not symmetric"),
        ({"sigma": -COVARIANCE}, "its covariance has negative eigenvalues"),
        ({"sigma": np.diag(np.linspace(-0.1, 1, 64))}, "its covariance has negative eigenvalues"),
        ({"mu": None}, "must hold feature statistics, the arrays mu and sigma"),
        ({"mu": None, "sigma": None, "arr_0": np.zeros((2, 4, 4, 3), BYTES)}, "must hold feature statistics"),
    ],
)
def test_wrong_statistics_are_refused_where_they_are_read(change, says, net, tmp_path):
    content = {key: value for key, value in (good() | change).items() if value is not None}
    np.savez(tmp_path / "x.npz", **content)
    said = said_of(lambda: real_images.read(str(tmp_path / "x.npz"), net, CPU))
    assert said.startswith(f"{tmp_path / 'x.npz'}: ")
    assert says in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": torch.full((64,), NAN).double()}, "mean holds numbers that are not finite"),
        ({"mean": torch.zeros(3), "covariance": torch.eye(3)}, "statistics of 3 features, where fid.network gives 64"),
        ({"covariance": torch.ones(64)}, r"covariance must be floats [64, 64], got torch.float32 [64]"),
        ({"features": torch.full((9, 64), NAN)}, "features holds numbers that are not finite"),
        ({"features": torch.zeros(9, 3)}, r"features must be floats [-1, 64], got torch.float32 [9, 3]"),
        ({"features": torch.zeros(9, 64, dtype=torch.int32)}, "got torch.int32"),
        ({"covariance": None}, "not feature statistics"),
    ],
)
def test_wrong_tensors_are_refused_where_they_are_read(change, says, net, tmp_path):
    whole = {"mean": torch.from_numpy(good()["mu"]), "covariance": torch.from_numpy(COVARIANCE)}
    path = str(tmp_path / "x.safetensors")
    write_tensors(path, {key: value for key, value in (whole | change).items() if value is not None})
    for read in (lambda: real_images.read(path, net, CPU), lambda: fid.load_statistics(path, 64)):
        assert says in said_of(read)


def test_statistics_in_another_mode_of_fid_are_refused(net, tmp_path):
    whole = {"mean": torch.from_numpy(good()["mu"]), "covariance": torch.from_numpy(COVARIANCE)}
    about, path = {"network": "digits", "mode": "clean"}, str(tmp_path / "x.safetensors")
    write_tensors(path, whole, about)
    assert set(real_images.read(path, net, CPU, about)) == set(whole)
    assert "statistics for fid.mode: clean, but params.yaml has legacy_tensorflow" in said_of(
        lambda: real_images.read(path, net, CPU, about | {"mode": "legacy_tensorflow"})
    )


def test_distances_between_other_shapes_are_refused():
    three, four = ((torch.zeros(d).double(), torch.eye(d).double()) for d in (3, 4))
    assert "of 3 features cannot be compared with those of 4" in said_of(lambda: frechet.distance(three, four))
    broken = torch.full((3,), NAN).double(), three[1]
    for pair in ((three, broken), (broken, three)):
        assert "not finite" in said_of(lambda: frechet.distance(*pair))
