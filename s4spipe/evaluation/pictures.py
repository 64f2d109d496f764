"""Image files of any kind that has a plain meaning as 8-bit colours, read as clean-fid reads them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cleanfid.fid import EXTENSIONS

from s4spipe.runtime.errors import UserError, needs
from s4spipe.runtime.files import read_array

with needs("pipeline", "reading images"):
    from PIL import Image, ImageOps, UnidentifiedImageError
# Only these are tried, whatever a file's name: others, such as EPS, are read by starting programs.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
NAMED = {suffix: kind for suffix, kind in Image.registered_extensions().items()
         if kind not in ("BUFR", "GRIB", "HDF5", "MPEG", "PDF")}  # no images, but known to Pillow  # fmt: skip
SUFFIXES = {f".{kind.lower()}" for kind in EXTENSIONS} | {
    suffix for suffix, kind in NAMED.items() if kind in (*FORMATS, "MPO") and kind != "GIF"
}
# Images too, which nobody may leave out without a word: those that Pillow knows, and those that it does not.
OTHERS = {*NAMED, ".arw", ".avif", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".heic", ".heif", ".jxl", ".jxr", ".nef",
          ".svg", ".xcf"} - SUFFIXES  # fmt: skip
AS_RGB = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")  # what Pillow converts truly
BITS, PHOTOMETRIC, BLACK_IS_ZERO, SAMPLE_FORMAT, SIGNED = 258, 262, 1, 339, 2  # tags of a TIFF file
JPEG_END = b"\xff\xd9"


def files(folder: str | Path) -> Iterator[Path]:
    """The image files in a folder and its subfolders, sorted; links to folders are followed, each folder once.

    Hidden files and folders are left out, as by clean-fid: systems and archives put them there (.DS_Store, ._x.png).
    """
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (true := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(true)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = (Path(place, name) for name in names if not name.startswith("."))
        found += [path for path in inside if path.suffix.lower() in SUFFIXES | OTHERS]
    yield from sorted(found, key=str)


def read(path: Path) -> np.ndarray:
    """The pixels of an image file, or of an .npy file of one image: uint8 [height, width, 1 or 3].

    Of 16 bits, 65535 is white. A photograph is turned as its EXIF says. Raises UserError, naming the file, for one that
    is broken, transparent, of several pictures, or of numbers without a plain white (32 bits, floats).
    """
    if not path.is_file():
        raise UserError(f"{path}: not a file that can be read")
    if path.suffix.lower() in OTHERS:
        raise UserError(f"{path}: images of this kind are not read; convert it to PNG, or take it away")
    if path.suffix.lower() == ".npy":
        return _of_array(path)
    try:
        Image.init()  # else not all of these formats are known by their names
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            # Up to the first scan, Pillow has read it. What zeros have replaced, libjpeg makes grey without a word.
            if image.format == "JPEG" and JPEG_END not in file.read():
                raise UserError("not a whole image (a JPEG without its end); repair it or take it away")
            image.load()
            if image.format != "TIFF":  # which Pillow has turned already
                ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # Pillow raises errors of many kinds for a broken file
        reason = str(error).partition(str(path))[0].strip(" '") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"by its content, none of {', '.join(FORMATS)} that Pillow reads"
        raise UserError(f"{path}: not a whole image ({reason[:100]}); repair it or take it away") from None


def _of_array(path: Path) -> np.ndarray:
    pixels = read_array(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        got = f"got {pixels.dtype} {list(pixels.shape)}"
        raise UserError(f"{path}: an .npy file in a folder of images must be one image, uint8 [height, width, 1 or 3], "
                        f"{got}; for an array of many, name it in fid.real")  # fmt: skip
    return np.array(pixels)


def _pixels(image: Image.Image) -> np.ndarray:
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # MPO: a photograph and its preview
        raise UserError(f"holds {count} pictures; write each to a file of its own")
    if image.mode.startswith("I"):
        return _of_16_bits(image)
    if image.mode not in AS_RGB:
        raise UserError(f"its mode is {image.mode}, in which no number is plainly white; convert it to 8-bit RGB")
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        if np.array(image.convert("RGBA"))[..., 3].min() < 255:
            raise UserError("parts of it are transparent; put it on a background and write it as RGB")
        image.info.pop("transparency", None)  # all of it is opaque
    if SIGNED in getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, ()):
        raise UserError("its numbers have signs, so that none is plainly white; convert it to 8-bit RGB")
    return np.array(image.convert("RGB"))


def _of_16_bits(image: Image.Image) -> np.ndarray:
    """Grey of 16 bits, which Pillow gives as I;16, or as I in files that have no more bits."""
    tags = getattr(image, "tag_v2", {PHOTOMETRIC: BLACK_IS_ZERO, BITS: (16,)})
    known = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if not known or tags.get(PHOTOMETRIC) != BLACK_IS_ZERO or tags.get(BITS) != (16,) or "transparency" in image.info:
        raise UserError(f"its mode is {image.mode}, in which no number is plainly white; convert it to 8-bit grey")
    grey = np.array(image).astype(np.float64) / 257
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
