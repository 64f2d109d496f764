"""Real images as people have them: the right numbers out of each, or one sentence that names the file."""

import itertools
import os
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, features
from support.hostile import said_of

from s4spipe.evaluation import fid, pictures
from s4spipe.evaluation import real as real_images
from s4spipe.features.base import loading
from s4spipe.runtime.errors import UserError

CPU = torch.device("cpu")
GREY = {"1": 1, "I;16": 128 * 257, "I;16L": 128 * 257, "I;16B": 128 * 257, "I;16N": 128 * 257, "I": 128 * 257,
        "F": 0.5, "RGBA": (128, 128, 128, 255), "LA": (128, 255), "PA": (128, 255), "CMYK": (0, 0, 0, 127),
        "YCbCr": (128, 128, 128), "LAB": (137, 128, 128), "HSV": (0, 0, 128), "L": 128, "P": 128, "La": (128, 255),
        "RGBa": (128, 128, 128, 255), "RGBX": (128, 128, 128, 255), "RGB": (128, 128, 128)}  # fmt: skip


@pytest.fixture(scope="module")
def net():
    return loading.load("digits", "models/features.safetensors", CPU)


def assert_names(path, error):
    assert str(error).startswith(f"{path}: ")


def grey(mode):
    """A mid-grey picture of 8x8 pixels; white, where there is no grey."""
    image = Image.new(mode, (8, 8), GREY[mode])
    if mode in ("P", "PA"):
        image.putpalette([value for i in range(256) for value in (i, i, i)])
    return image


def test_of_every_mode_and_format_that_pillow_writes_grey_is_grey_or_refused_by_name(tmp_path, record_property):
    assert set(GREY) >= set(Image.MODES)
    Image.init()
    read, refused, path = [], [], tmp_path / "x.png"  # whose name does not tell the format
    for kind, mode in itertools.product(sorted(Image.SAVE), GREY):
        data = BytesIO()
        try:
            grey(mode).save(data, kind)
        except Exception:  # a mode that the format does not have, or a program that is not there
            continue
        if mode[0] in "IF" and kind not in ("PNG", "TIFF", "PPM"):  # what is written is white already
            continue
        path.write_bytes(data.getvalue())
        try:
            pixels = pictures.read(path)
        except UserError as error:
            refused.append((kind, mode))
            assert_names(path, error)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape == (8, 8, 3)
            assert np.abs(pixels.astype(int) - (255 if mode == "1" else 128)).max() <= 1, (kind, mode)
            read.append((kind, mode))
    record_property("image formats and modes read", len(read))
    record_property("image formats and modes refused", len(refused))
    assert {("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")} <= set(read)
    assert {("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16")} <= set(read)
    assert {("JPEG", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")} <= set(read)
    assert {("TIFF", mode) for mode in ("F", "I", "LAB")} <= set(refused)
    assert {kind for kind, _ in read} <= {*pictures.FORMATS, "MPO"}


@pytest.mark.parametrize("value", [0, 1, 128, 129, 32768, 33000, 65407, 65535])
@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_of_16_bits_65535_is_white(value, kind, tmp_path):
    Image.fromarray(np.full((2, 3), value, dtype=np.uint16)).save(tmp_path / f"x.{kind}")
    np.testing.assert_array_equal(pictures.read(tmp_path / f"x.{kind}"), np.full((2, 3, 3), round(value / 257)))


def test_bits_of_16_that_mean_something_else_are_refused(tmp_path):
    """White is zero; and 12 bits, whose white Pillow does not scale."""
    path = tmp_path / "x.tif"
    for tag, value, mode in ((262, 0, "I;16"), (339, 2, "I")):
        Image.fromarray(np.full((2, 3), 9, dtype=np.uint16)).save(path, tiffinfo={tag: value})
        assert f"its mode is {mode}, in which no number is plainly white" in said_of(lambda: pictures.read(path))


def test_signed_numbers_have_no_plain_white(tmp_path):
    path = tmp_path / "x.tif"
    for form, white in ((1, 255), (2, None)):
        Image.new("L", (2, 3), 255).save(path, tiffinfo={339: form})
        if white:
            assert (pictures.read(path) == white).all()
    assert f"{path}: its numbers have signs" in said_of(lambda: pictures.read(path))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_what_is_transparent_has_no_plain_colour(mode, tmp_path):
    image, path = grey(mode), tmp_path / "x.png"
    path = path.with_suffix(".tiff") if mode == "PA" else path
    image.save(path)
    assert (pictures.read(path) == 128).all()
    alpha = Image.new("L", (8, 8), 255)
    alpha.putpixel((3, 4), 254)
    image.putalpha(alpha)
    image.save(path)
    assert f"{path}: parts of it are transparent" in said_of(lambda: pictures.read(path))


@pytest.mark.parametrize(("mode", "key", "opaque"), [("P", 128, 3), ("L", 128, 3), ("RGB", (128,) * 3, (1, 2, 3))])
def test_a_transparent_colour_counts_where_it_is_used(mode, key, opaque, tmp_path):
    grey(mode).save(tmp_path / "x.png", transparency=key)
    assert "transparent" in said_of(lambda: pictures.read(tmp_path / "x.png"))
    grey(mode).save(tmp_path / "x.png", transparency=opaque)
    assert (pictures.read(tmp_path / "x.png") == 128).all()


def test_several_pictures_in_a_file_are_refused(tmp_path):
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in (0, 99)]
    for name in ("x.tiff", "y.png", *(["z.webp"] if features.check("webp") else [])):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert f"{name}: holds 2 pictures" in said_of(lambda: pictures.read(tmp_path / name))
    frames[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=frames[1:])  # a photograph and its preview
    assert pictures.read(tmp_path / "x.jpg").max() < 5


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff", "bmp", "webp", "ppm"])
def test_a_broken_image_is_named(kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"x.{kind}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], data[:20], b"", b"no image at all", b"\0" * 100):
        path.write_bytes(broken)
        said = said_of(lambda: pictures.read(path))
        assert said.startswith(f"{path}: not a whole image (")
        assert " )" not in said


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_must_have_its_end_and_may_have_more_after_it(progressive, tmp_path):
    noise, path = np.random.default_rng(0).integers(100, 156, (64, 64, 3), dtype=np.uint8), tmp_path / "x.jpg"
    preview = BytesIO()
    Image.fromarray(noise[:8, :8]).save(preview, "JPEG")  # in the header, with an end of its own
    Image.fromarray(noise).save(path, progressive=progressive, comment=preview.getvalue())
    data, whole = path.read_bytes(), pictures.read(path)
    assert np.abs(whole.astype(int) - noise).mean() < 20
    for more in (b"\0" * 512, b"\xff\xda, a film"):
        path.write_bytes(data + more)
        np.testing.assert_array_equal(pictures.read(path), whole)
    for cut in (len(data) - 2, len(data) - 300, (len(data) + data.rindex(b"\xff\xda")) // 2):
        path.write_bytes(data[:cut].ljust(len(data), b"\0"))
        assert f"{path}: not a whole image (a JPEG without its end)" in said_of(lambda: pictures.read(path))


@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", *(["webp"] if features.check("webp") else [])])
def test_a_photograph_is_turned_as_its_exif_says(kind, tmp_path):
    above = np.repeat([255, 0], 8)[:, None, None].repeat(16, 1).repeat(3, 2).astype(np.uint8)
    exif = Image.Exif()
    for orientation, turned in {1: above, 3: above[::-1], 6: np.rot90(above, -1), 8: np.rot90(above)}.items():
        exif[274] = orientation
        Image.fromarray(above).save(tmp_path / f"x.{kind}", exif=exif)
        assert np.abs(pictures.read(tmp_path / f"x.{kind}").astype(int) - turned).max() <= 2
    assert pictures.read(grey_of_16_bits(tmp_path / "y.png", exif)).shape == (3, 2, 3)


def grey_of_16_bits(path, exif):
    Image.fromarray(np.full((2, 3), 9, dtype=np.uint16)).save(path, exif=exif)
    return path


def folder_of(folder, images, name="{:03}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(np.asarray(image).squeeze()).save(folder / name.format(i))
    return folder


@pytest.fixture
def eights():
    return np.random.default_rng(0).integers(0, 256, (140, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_8_bits_keep_exactly_clean_fids_features(channels, net, eights, tmp_path):
    from cleanfid import fid as cleanfid

    folder = folder_of(tmp_path / "i", eights[..., :channels])
    theirs = cleanfid.get_files_features(
        sorted(map(str, folder.iterdir())), net, num_workers=0, device=CPU, custom_fn_resize=net.resize, verbose=False
    )
    np.testing.assert_array_equal(real_images.read(str(folder), net, CPU)["features"], theirs)


def test_a_folder_is_its_images_whatever_else_is_in_it(net, eights, tmp_path):
    plain = real_images.read(str(folder_of(tmp_path / "plain", eights[:20])), net, CPU)
    folder = folder_of(tmp_path / "mixed", eights[:10])
    folder_of(folder / "sub dir/é", eights[10:20], "X{:03}.PNG")
    for stray in (
        "Thumbs.db",
        ".DS_Store",
        "notes.txt",
        "__MACOSX/._000.png",
        "._001.png",
        ".hidden/x.png",
        "licence.pdf",
        "labels.json",
        "no_suffix",
        "a.PNG/b.txt",
    ):
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).write_bytes(b"\0\5\26\7")
    (folder / "loop").symlink_to(folder)
    mixed = real_images.read(str(folder), net, CPU)
    np.testing.assert_array_equal(mixed["features"], plain["features"])
    for name in ("x.GIF", "x.tga", "x.ico", "x.psd", "x.j2k", "x.heif", "x.dng", "x.exr", "x.svg"):
        (folder / name).write_bytes(b"")
        assert f"{name}: images of this kind are not read" in said_of(lambda: real_images.read(str(folder), net, CPU))
        (folder / name).unlink()
    (folder / "broken.jpeg").symlink_to(folder / "gone")
    assert "broken.jpeg: not a file" in said_of(lambda: real_images.read(str(folder), net, CPU))


def test_a_suffix_may_be_any_that_its_format_has(net, eights, tmp_path):
    folder = folder_of(tmp_path / "plain", eights[:6])
    plain = real_images.read(str(folder), net, CPU)
    for i, (suffix, kind) in enumerate({"pnm": "PPM", "apng": "PNG", "dib": "BMP", "TIF": "TIFF"}.items()):
        Image.fromarray(eights[i]).save(folder / f"{i:03}.{suffix}", kind)
        (folder / f"{i:03}.png").unlink()
    assert torch.equal(real_images.read(str(folder), net, CPU)["features"], plain["features"])
    for suffix in ("jfif", "jpe", "mpo"):
        Image.fromarray(eights[0]).save(folder / f"x.{suffix}", "JPEG")
    assert len(real_images.read(str(folder), net, CPU)["features"]) == 9


def test_a_suffix_may_be_in_capitals(net, eights, tmp_path):
    images, upper = eights.transpose(0, 3, 1, 2), tmp_path / "X.NPY"
    np.save(tmp_path / "x.npy", images)
    (tmp_path / "x.npy").rename(upper)
    seen = real_images.read(str(upper), net, CPU)
    assert len(seen["features"]) == len(images)
    np.savez(tmp_path / "x.npz", mu=seen["mean"], sigma=seen["covariance"])
    (tmp_path / "x.npz").rename(tmp_path / "X.NPZ")
    assert torch.equal(real_images.read(str(tmp_path / "X.NPZ"), net, CPU)["mean"], seen["mean"])


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    assert "x.png: not a file" in said_of(lambda: pictures.read(tmp_path / "x.png"))


def test_images_of_several_sizes_and_modes_make_one_folder(tmp_path):
    from support import standins

    rng = np.random.default_rng(0)
    sizes = [(20, 24, 3), (20, 24), (9, 30, 3), (20, 24, 1)]
    folder = folder_of(tmp_path / "i", [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes])
    weights = str(standins.inception(tmp_path / "i.pt", 4))
    assert real_images.read(str(folder), loading.load("inception", weights, CPU), CPU)["features"].shape == (4, 4)
    legacy = loading.load("inception", weights, CPU, "legacy_tensorflow")
    assert "needs images of one size" in said_of(lambda: real_images.read(str(folder), legacy, CPU))


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((8, 8, 3), np.float32), r"uint8 [height, width, 1 or 3], got float32 [8, 8, 3]"),
        (np.zeros((20, 1, 8, 8), np.uint8), "for an array of many, name it in fid.real"),
        (np.zeros((8, 8, 4), np.uint8), "got uint8 [8, 8, 4]"),
    ],
)
def test_an_array_in_a_folder_is_one_image(pixels, says, net, eights, tmp_path):
    folder = folder_of(tmp_path / "i", eights[:10])
    np.save(folder / "a.npy", eights[10])
    assert len(real_images.read(str(folder), net, CPU)["features"]) == 11
    np.save(folder / "b.npy", pixels)
    said = said_of(lambda: real_images.read(str(folder), net, CPU))
    assert said.startswith(f"{folder / 'b.npy'}: an .npy file in a folder of images must be one image")
    assert says in said


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_may_have_its_channels_last(channels, net, eights, tmp_path):
    images = eights[..., :channels]
    np.save(tmp_path / "last.npy", images)
    np.save(tmp_path / "first.npy", images.transpose(0, 3, 1, 2))
    last, first = (real_images.read(str(tmp_path / f"{name}.npy"), net, CPU) for name in ("last", "first"))
    for key in first:
        assert torch.equal(first[key], last[key])


BYTES = np.uint8


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((5, 4, 8, 8), BYTES), "1 or 3 channels, as [n, C, height, width], got uint8 [5, 4, 8, 8]"),
        (np.zeros((5, 8, 8, 4), BYTES), "1 or 3 channels"),
        (np.zeros((5, 3, 8, 3), BYTES), "may both be meant, got uint8 [5, 3, 8, 3]"),
        (np.zeros((5, 8, 8), BYTES), "an array [n, C, height, width], got uint8 [5, 8, 8]"),
        (np.zeros((0, 3, 8, 8), BYTES), "at least two images, got uint8 [0, 3, 8, 8]"),
        (np.zeros((1, 3, 8, 8), BYTES), "at least two images, got uint8 [1, 3, 8, 8]"),
        (np.zeros((5, 3, 0, 8), BYTES), "an array [n, C, height, width], got uint8 [5, 3, 0, 8]"),
        (np.zeros((5, 3, 8, 8)), "must be uint8, from 0 for black to 255 for white, got float64"),
        (np.zeros((5, 3, 8, 8), np.int64), "must be uint8, from 0 for black to 255 for white, got int64"),
        (np.zeros((5, 3, 8, 8), complex), "must be uint8"),
        (np.array(7, BYTES), "an array [n, C, height, width], got uint8 []"),
        (np.array([{}]), "not a complete .npy file"),
    ],
)
def test_an_array_that_is_not_of_images_is_refused(array, says, net, tmp_path):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    said = said_of(lambda: real_images.read(str(tmp_path / "x.npy"), net, CPU))
    assert said.startswith(f"{tmp_path / 'x.npy'}: ")
    assert says in said


def test_a_folder_of_one_image_is_refused(net, eights, tmp_path):
    folder = folder_of(tmp_path / "i", eights[:1])
    assert "000.png is its only image, and a covariance needs two" in said_of(
        lambda: real_images.read(str(folder), net, CPU)
    )


def test_a_network_that_gives_no_numbers_is_told(eights, tmp_path):
    broken = loading.load("digits", "models/features.safetensors", CPU)
    broken.last[1].weight[0, 0] = float("nan")
    images = eights[:5].transpose(0, 3, 1, 2)
    says = "fid.features: the network's features of 5 of 5 images are not finite"
    assert says in said_of(lambda: next(fid.features(images, broken, CPU)))
    assert says in said_of(lambda: real_images.read(str(folder_of(tmp_path / "i", eights[:5])), broken, CPU))
