"""Downloads: a model, FID's network and statistics, the backbone of LPIPS.

An existing file is never downloaded again. So without a network connection, you can put the files there yourself.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import click
from cleanfid.downloads_helper import inception_url
from tqdm import tqdm

from s4spipe.models.base.settings import ORIGIN
from s4spipe.pipeline.layout import DOWNLOADS
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import atomic, read_json, write_json

NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/edm"
OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"
TORCHVISION = "https://download.pytorch.org/models"
# The URL of a file, by its name.
SOURCES = (
    (r"inception-2015-12-05\.pt", lambda name: inception_url),
    (r"(vgg16-397923af|alexnet-owt-7be5be79)\.pth", lambda name: f"{TORCHVISION}/{name}"),
    (r"(cifar10-32x32|ffhq-64x64|afhqv2-64x64|imagenet-64x64)\.npz", lambda name: f"{NVIDIA}/fid-refs/{name}"),
    (r"VIRTUAL_lsun_bedroom256\.npz", lambda name: f"{OPENAI}/lsun/bedroom/{name}"),
    (r"VIRTUAL_imagenet256_labeled\.npz", lambda name: f"{OPENAI}/imagenet/256/{name}"),
    (r"\w+_(clean|legacy_tensorflow)_[a-z]+_\w+\.npz", lambda name: f"https://www.cs.cmu.edu/~clean-fid/stats/{name}"),
    (r"edm-[\w-]+\.pkl", lambda name: f"{NVIDIA}/pretrained/{name}"),
)


@dataclass(frozen=True)
class Plan:
    """A sentence that tells what `run` is going to do, and `run` itself."""

    sentence: str
    run: Callable[[], None]


def plan(path: str, params: Params) -> Plan:
    """How to get the file or folder at `path`.

    Raises UserError for a file that does not exist, is not the model's, and has an unknown name, and for a place
    outside the project's folder.
    """
    if "://" in path or os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] in ("..", "."):
        raise UserError(f"fetch: {path} is no place within the project's folder; name a file such as models/name.npz")
    model = params.model
    if path == model.weights and model.kind == "diffusers" and model.source:
        at = f" at {model.revision}" if model.revision else ""
        return Plan(f"{path}: downloads {model.source}{at} from the model hub", lambda: from_hub(path, params))
    if path == model.weights and model.kind == "edm" and path.endswith(".safetensors"):
        pickle = model.source or Path(path).with_suffix(".pkl").name
        return Plan(f"{path}: converts {pickle}" + ("" if Path(pickle).exists() else f", from {address(pickle)}"),
                    lambda: converted(path, pickle))  # fmt: skip
    if Path(path).exists():
        return Plan(f"{path}: is there already", lambda: None)
    return Plan(f"{path}: downloads {address(path)}", lambda: download(path, address(path)))


def address(path: str) -> str:
    """The URL of a file, by its name. Raises UserError for an unknown name, or a URL that is not of https."""
    if path.startswith("https://"):
        return path
    if "://" in path:
        raise UserError(f"model.source: {path} cannot be trusted to arrive unchanged; only https:// addresses are read")
    name = Path(path).name
    for pattern, url in SOURCES:
        if re.fullmatch(pattern, name):
            return url(name)
    raise UserError(
        f"fetch: the origin of {path} is unknown; put it there yourself and take it out of `fetch` in params.yaml, or "
        "set model.source"
    )


def download(path: str, url: str) -> None:
    """Download a file that is not there yet. Raises UserError if it does not arrive whole, or is a web page."""
    if Path(path).exists():
        return
    try:
        with atomic(path) as temporary:
            _receive(url, temporary)
    except (OSError, HTTPException) as error:  # of what urllib raises
        raise UserError(f"{path}: could not be downloaded from {url} ({error}); put that file there yourself and run "
                        "again") from None  # fmt: skip


def _receive(url: str, path: Path) -> None:
    """Raises OSError or HTTPException for what does not arrive whole, and for a web page in the place of a file."""
    try:
        response = urlopen(Request(url, headers={"User-Agent": "s4spipe"}))  # some servers refuse urllib's own name
    except ValueError as error:  # of letters that no address has
        raise OSError(error) from None
    with response:
        size = response.length
        with open(path, "wb") as file, tqdm.wrapattr(file, "write", size, disable=None) as counted:
            shutil.copyfileobj(response, counted)
        if response.length:  # what is still to come; urllib says nothing when the line is cut
            raise OSError(f"{size - response.length:,} of {size:,} bytes have arrived")
        kind = response.headers.get_content_type()
    with open(path, "rb") as received:
        start = received.read(200).lstrip().lower()
    if kind == "text/html" or start.startswith((b"<!doctype html", b"<html")):
        raise OSError("what arrived is a web page, as of a login or an error")


def converted(path: str, pickle: str) -> None:
    """Convert an EDM checkpoint to safetensors. A missing pickle is first downloaded to the scratch folder."""
    from s4spipe.models import edm

    if not Path(pickle).exists():
        if Path(path).exists():
            return
        local = str(Path(DOWNLOADS) / Path(pickle).name)
        download(local, address(pickle))
        pickle = local
    edm.convert(pickle, path)


def from_hub(path: str, params: Params) -> None:
    """Put a pipeline's files, and a record of their origin, into a folder; linked to the hub's cache where possible."""
    from diffusers import DiffusionPipeline

    folder, model = Path(path), params.model
    if folder.exists():
        if not (folder / ORIGIN).exists():
            return  # the user's own
        there = read_json(folder / ORIGIN)
        if there["source"] == model.source and model.revision in (None, there["asked"], there["commit"]):
            return
    try:
        snapshot = Path(DiffusionPipeline.download(model.source, revision=model.revision))
    except Exception as error:  # the hub's client raises dozens of kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: could not download {model.source} ({reason[0][:200]}); put its folder there "
                        "yourself and run again") from None  # fmt: skip
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(snapshot, temporary, copy_function=link)
        write_json(temporary / ORIGIN, {"source": model.source, "commit": snapshot.name, "asked": model.revision})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except shutil.Error as error:  # of each file that could not be copied
        reason = error.args[0][0][2]
        raise UserError(f"{path}: could not be copied from {snapshot} ({reason}); make room there, or give yourself "
                        "the right to write, and run again") from None  # fmt: skip
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if model.revision != snapshot.name:
        click.echo(f"{path}: commit {snapshot.name}; to stay with it, make it model.revision in params.yaml")


def link(source: str, target: str) -> None:
    """Hard-link a file, or copy it to another disk."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
