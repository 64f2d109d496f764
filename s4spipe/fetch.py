"""Files that are made by downloading: a model, FID's network and statistics, a backbone of LPIPS.

Whoever has no network puts the file there himself: what stands at its place is not fetched again.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from cleanfid.downloads_helper import inception_url

from s4spipe.errors import UserError
from s4spipe.files import SCRATCH, atomic, read_json, write_json
from s4spipe.models import ORIGIN
from s4spipe.params import Params

NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/edm"
OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"
TORCHVISION = "https://download.pytorch.org/models"
# Where a file is from, by its name.
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
    """What `run` is about to do, in a sentence."""

    sentence: str
    run: Callable[[], None]


def plan(path: str, params: Params) -> Plan:
    """How the file or folder at `path` comes to be there.

    Raises UserError for a file that is not there, is not the model's, and has a name that is not known here.
    """
    model = params.model
    if path == model.weights and model.kind == "diffusers" and model.source:
        at = f" at {model.revision}" if model.revision else ""
        return Plan(f"{path}: downloads {model.source}{at} from the hub of models", lambda: from_hub(path, params))
    if path == model.weights and model.kind == "edm" and path.endswith(".safetensors"):
        pickle = model.source or Path(path).with_suffix(".pkl").name
        return Plan(f"{path}: converts {pickle}" + ("" if Path(pickle).exists() else f", from {address(pickle)}"),
                    lambda: converted(path, pickle))  # fmt: skip
    if Path(path).exists():
        return Plan(f"{path}: is there already", lambda: None)
    return Plan(f"{path}: downloads {address(path)}", lambda: download(path, address(path)))


def address(path: str) -> str:
    """Where on the internet a file is, by its name. Raises UserError for a name that is not known here."""
    if path.startswith("https://"):
        return path
    name = Path(path).name
    for pattern, url in SOURCES:
        if re.fullmatch(pattern, name):
            return url(name)
    raise UserError(
        f"fetch: nothing is known of where {path} is from; put it there yourself and take it out of `fetch` in "
        "params.yaml, or give the model's source"
    )


def download(path: str, url: str) -> None:
    if Path(path).exists():
        return
    try:
        with atomic(path) as temporary:
            torch.hub.download_url_to_file(url, str(temporary), progress=True)
    except (URLError, OSError) as error:
        raise UserError(f"{path}: could not be downloaded from {url} ({error}); put that file there yourself and run "
                        "again") from None  # fmt: skip


def converted(path: str, pickle: str) -> None:
    """An EDM checkpoint as safetensors; its pickle, if it is not at hand, is downloaded first, and kept in scratch."""
    from s4spipe.models import edm

    if not Path(pickle).exists():
        if Path(path).exists():
            return
        local = str(SCRATCH / "downloads" / Path(pickle).name)
        download(local, address(pickle))
        pickle = local
    edm.convert(pickle, path)


def from_hub(path: str, params: Params) -> None:
    """A pipeline's files in a folder of ours, linked to the hub's cache if they can be, and where they are from."""
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
    except Exception as error:  # the hub's client has some dozen kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: could not download {model.source} ({reason[0][:200]}); put its folder there "
                        "yourself and run again") from None  # fmt: skip
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(snapshot, temporary, copy_function=link)
    write_json(temporary / ORIGIN, {"source": model.source, "commit": snapshot.name, "asked": model.revision})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    if model.revision != snapshot.name:
        print(f"{path}: commit {snapshot.name}; to stay with it, make it model.revision in params.yaml")


def link(source: str, target: str) -> None:
    """A second name for a file, or a copy of it on another disk."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
