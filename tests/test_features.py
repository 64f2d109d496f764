"""Inception, LPIPS, KID, precision and recall, real images: against the packages' own computations."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import standins

from s4spipe.evaluation import fid
from s4spipe.evaluation import real as real_images
from s4spipe.features.base import frechet, loading
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import write_tensors

CPU = torch.device("cpu")


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 3, 20, 24), dtype=np.uint8)


@pytest.mark.parametrize("mode", loading.MODES)
def test_inceptions_features_are_clean_fids(mode, images, tmp_path):
    """Against clean-fid's own classes, driven as it drives them from files."""
    from cleanfid import fid as cleanfid
    from cleanfid.inception_torchscript import InceptionV3W

    standins.inception(tmp_path / "inception-2015-12-05.pt", 2048)
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{i:03}.png")
    own = InceptionV3W(str(tmp_path), download=False, resize_inside=mode == "legacy_tensorflow")
    expected = cleanfid.get_folder_features(str(tmp_path), own, num_workers=0, mode=mode, device=CPU, verbose=False)
    net = loading.load("inception", str(tmp_path / "inception-2015-12-05.pt"), CPU, mode)
    np.testing.assert_allclose(
        torch.cat([*fid.features(images, net, CPU, batch_size=5)]), expected, rtol=1e-4, atol=1e-4
    )
    assert np.abs(expected - expected[::-1]).max() > 1e-3
    folder = real_images.read(str(tmp_path), net, CPU)
    np.testing.assert_allclose(folder["mean"], expected.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(folder["features"], expected, rtol=1e-4, atol=1e-4)


def test_grey_images_are_seen_in_three_channels(images, tmp_path):
    net = loading.load("inception", str(standins.inception(tmp_path / "i.pt", 16)), CPU)
    grey = images[:, :1]
    ours, in_colour = (next(fid.features(x, net, CPU)) for x in (grey, grey.repeat(3, 1)))
    assert torch.equal(ours, in_colour)


def test_files_that_are_not_inception_are_told(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"x\.pt: .*Inception"):
        loading.load("inception", str(tmp_path / "x.pt"), CPU)
    with pytest.raises(UserError, match=r"y\.pt: no such file"):
        loading.load("inception", str(tmp_path / "y.pt"), CPU)
    with pytest.raises(UserError, match="'inceptoin'.* 'inception'"):
        loading.load("inceptoin", "x", CPU)


def test_lpips_is_that_of_its_package(tmp_path):
    """Its distance with the same backbone put in by hand, and the same enlargement."""
    import lpips

    path = standins.alexnet(tmp_path / "alexnet.pth")
    net = loading.load("lpips", str(path), CPU)
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, parameter in theirs.net.named_parameters():
            _, layer, kind = name.split(".")
            parameter.copy_(weights[f"features.{layer}.{kind}"])
    x, y = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    x224, y224 = (torch.nn.functional.interpolate(image, (224, 224), mode="bilinear") for image in (x, y))
    torch.testing.assert_close(net.residual(x, y).square().sum(1), theirs(x224, y224).flatten())
    large = torch.rand(2, 1, 3, 256, 256)
    torch.testing.assert_close(net.residual(*large).square().sum(1), theirs(*large).flatten())
    assert net.residual(x, x).abs().max() == 0
    assert net.residual(x[:, :1], y[:, :1]).shape[0] == 3


def test_what_a_fit_sees_by_lpips_is_the_layers_spatial_means_of_images_as_on_a_screen(tmp_path):
    net = loading.load("lpips", str(standins.alexnet(tmp_path / "alexnet.pth")), CPU)
    x = (3 * torch.rand(2, 3, 256, 256) - 1.5).requires_grad_()
    layers = net.net.net.forward(net.net.scaling_layer(x.clamp(-1, 1)))
    expected = torch.cat([layer.flatten(2).mean(2) for layer in layers], 1)
    seen = net.embed(x)
    torch.testing.assert_close(seen, expected)
    (slope,) = torch.autograd.grad(seen.sum(), x)
    assert slope[x.abs() < 1].any()
    assert not slope[x.abs() > 1].any()


def test_other_backbones_are_told(tmp_path):
    weights = torch.load(standins.alexnet(tmp_path / "a.pth"), weights_only=True)
    del weights["features.8.bias"]
    torch.save(weights, tmp_path / "b.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "c.pth")
    (tmp_path / "d.pth").write_bytes(b"PK")
    for name, field in (
        ("b", r"features\.8\.bias"),
        ("c", "VGG-16 or AlexNet"),
        ("d", "file of weights"),
        ("e", "no such file"),
    ):
        with pytest.raises(UserError, match=rf"{name}\.pth: .*{field}"):
            loading.load("lpips", str(tmp_path / f"{name}.pth"), CPU)


def test_kid_is_the_unbiased_estimate_and_the_same_every_time():
    """On one subset of all samples it is the estimate of Binkowski et al. written out."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 5)), rng.standard_normal((60, 5)) + 0.5
    k = lambda a, b: (a @ b.T / 5 + 1) ** 3  # noqa: E731
    off = lambda m: (m.sum() - np.trace(m)) / (60 * 59)  # noqa: E731
    expected = off(k(x, x)) + off(k(y, y)) - 2 * k(x, y).mean()
    assert fid.kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)
    many = rng.standard_normal((3000, 5))
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert fid.kernel_distance(many, x) == fid.kernel_distance(many, x)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_precision_and_recall_are_the_definition():
    rng = np.random.default_rng(0)
    real, generated = rng.standard_normal((150, 3)), 0.5 * rng.standard_normal((130, 3)) + [1, 0, 0]

    def share(points, manifold, k=3):
        inside = 0
        for point in points:
            for centre in manifold:
                radius = np.sort(np.linalg.norm(manifold - centre, axis=1))[k]
                if np.linalg.norm(point - centre) <= radius:
                    inside += 1
                    break
        return inside / len(points)

    expected = share(generated, real), share(real, generated)
    assert fid.precision_recall(real, generated) == pytest.approx(expected)
    assert 0 < expected[1] < expected[0] < 1
    assert fid.precision_recall(real, real) == (1, 1)
    assert fid.precision_recall(real, real + 100) == (0, 0)


def test_real_images_as_an_array_as_statistics_and_as_our_own_file(images, tmp_path):
    net = loading.load("inception", str(standins.inception(tmp_path / "i.pt", 4)), CPU)
    np.save(tmp_path / "images.npy", images)
    seen = next(fid.features(images, net, CPU)).double().numpy()
    real = real_images.read(str(tmp_path / "images.npy"), net, CPU)
    np.testing.assert_allclose(real["mean"], seen.mean(0))
    np.testing.assert_allclose(real["covariance"], np.cov(seen, rowvar=False))
    np.savez(tmp_path / "known.npz", mu=seen.mean(0), sigma=np.cov(seen, rowvar=False))
    known = real_images.read(str(tmp_path / "known.npz"), net, CPU)
    assert set(known) == {"mean", "covariance"}
    np.testing.assert_allclose(known["covariance"], real["covariance"])


@pytest.mark.parametrize(
    ("name", "make", "field"),
    [
        ("a", lambda path: path.mkdir(), "no images"),
        ("b.npz", lambda path: np.savez(path, mu=np.zeros(64)), "mu and sigma"),
        ("c.npz", lambda path: path.write_bytes(b"PK"), "statistics"),
        ("d.npz", lambda path: np.savez(path, mu=np.array([{}]), sigma=np.eye(1)), "statistics"),  # no pickles
        ("e.txt", lambda path: path.write_text(""), "a folder of images"),
        ("f.npy", lambda path: None, "no such file"),
        ("g.npy", lambda path: path.write_bytes(b"PK"), r"\.npy file"),
    ],
)
def test_what_are_no_real_images_is_told(name, make, field, tmp_path):
    make(tmp_path / name)
    net = loading.load("digits", "models/features.safetensors", CPU)
    with pytest.raises(UserError, match=f"{name}: .*{field}"):
        real_images.read(str(tmp_path / name), net, CPU)


def test_the_digits_network_sees_digits_alone(images):
    net = loading.load("digits", "models/features.safetensors", CPU)
    with pytest.raises(UserError, match=r"8x8 .* 20x24.* fid\.network"):
        next(fid.features(images, net, CPU))


def test_what_a_fit_sees_of_digits_is_what_fid_would_of_the_images_without_their_rounding():
    net = loading.load("digits", "models/perceptual.safetensors", CPU)
    image = torch.randint(0, 256, (3, 2, 8, 8)).float()
    x = image / 127.5 - 1
    torch.testing.assert_close(net.embed(x), net(image.mean(1, keepdim=True)), rtol=1e-4, atol=1e-4)
    far = torch.where(image > 127, 3.0, -2.0).requires_grad_()
    torch.testing.assert_close(net.embed(far), net.embed(far.clamp(-1, 1)))
    assert not torch.autograd.grad(net.embed(far).sum(), far)[0].any()
    with pytest.raises(UserError, match=r"8x8 .* 20x24.* perceptual\.network"):
        net.embed(torch.zeros(1, 1, 20, 24))


def test_statistics_of_another_network_are_told():
    path = "runs/digits/reference.safetensors"
    assert fid.load_statistics(path, 64)["mean"].shape == (64,)
    with pytest.raises(UserError, match=r"reference\.safetensors: .*64 .*fid\.network .*2048"):
        fid.load_statistics(path, 2048)


def test_what_fid_needs_of_real_images_is_what_its_distance_takes(images, tmp_path):
    """From memory and from our own file alike."""
    net = loading.load("inception", str(standins.inception(tmp_path / "i.pt", 4)), CPU)
    np.save(tmp_path / "images.npy", images)
    real = real_images.read(str(tmp_path / "images.npy"), net, CPU)
    write_tensors(tmp_path / "real.safetensors", real)
    again = fid.load_statistics(tmp_path / "real.safetensors", 4)
    own = fid.statistics(fid.features(images[:6], net, CPU))
    values = [frechet.distance(own, (some["mean"], some["covariance"])) for some in (real, again)]
    assert values[0] == values[1] > 0
    assert set(real_images.read(str(tmp_path / "real.safetensors"), net, CPU)) == {"mean", "covariance", "features"}
