"""Reading the files in a pipeline's folder."""

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import pipelines

from s4spipe.runtime.errors import UserError, shown
from s4spipe.runtime.files import missing, read_json

LIBRARIES = ("diffusers", "transformers")
# Files of weights, whole or a part of them, plain or as a variant: model.fp16-00001-of-00002.safetensors
WEIGHTS = re.compile(r"[\w-]+?(\.(?P<variant>[\w-]+?))?(-\d+-of-\d+)?\.(safetensors|bin)")


def index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json: the pipeline's class and those of its components."""
    if not folder.exists():
        raise missing(folder)
    path = folder / "model_index.json"
    if not path.exists():
        raise UserError(f"{folder}: not a diffusers pipeline (no model_index.json)")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object, which names a pipeline of diffusers and its parts")
    return content


@contextmanager
def told(sentence: str) -> Iterator[None]:
    """Raises UserError for whatever the block raises, with errors of many kinds, in diffusers, safetensors and json.

    Args:
        sentence: what the error says; the reason stands behind it.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{sentence} ({reason[0][:200]})") from None


def check_parts(folder: Path, names: Iterable[str]) -> None:
    """Raises UserError if loading these parts of the folder's pipeline could run other code than diffusers' and
    transformers' own, or read files outside the folder."""
    parts = index(folder)
    for name in names:
        part = parts.get(name)
        if name.startswith("_") or not isinstance(part, list) or not any(isinstance(entry, str) for entry in part):
            continue  # no part, but a setting
        library, cls = part if len(part) == 2 else (None, None)
        plain = isinstance(cls, str) and cls.isidentifier() and not re.match("_|Auto(?!encoder)", cls)
        own = library in LIBRARIES or (isinstance(library, str) and inspect.ismodule(getattr(pipelines, library, None)))
        if not own or not plain:  # Auto classes may load code from the folder
            raise UserError(f"{folder}: its {name} is {str(part)[:80]}, but only classes of diffusers and transformers "
                            "are loaded")  # fmt: skip
    check_shards(folder)


def check_shards(folder: Path) -> None:
    """Raises UserError if an index of weights names a file that is not beside it."""
    for path in folder.rglob("*.index*.json"):
        content = read_json(path)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        for name in shards.values() if isinstance(shards, dict) else ():
            if not isinstance(name, str) or name != Path(name).name:
                raise UserError(f"{path}: weights must be in files beside it, got {str(name)[:80]!r}")


def load_part(cls: Any, folder: Path, name: str) -> Any:
    """A network of the pipeline, in whole: `cls` is its class, in diffusers or transformers.

    Raises UserError if its files lack weights, which these libraries fill with whatever the memory holds.
    """
    path = folder / name if (folder / name).is_dir() else folder  # old uploads of pixel models are flat
    whole = cls.__module__.startswith("diffusers") and not getattr(cls, "_keep_in_fp32_modules", None)
    options: dict[str, Any] = {"low_cpu_mem_usage": False} if whole else {}
    if variant := only_variant(path):
        options["variant"] = variant
    network, loaded = cls.from_pretrained(path, local_files_only=True, output_loading_info=True, **options)
    if lacking := sorted(loaded["missing_keys"]):
        raise UserError(f"{path}: its files lack {len(lacking)} of the weights of {cls.__name__}, such as "
                        f"{shown(lacking[0])}: they are those of another network, or not all there")  # fmt: skip
    return network


def only_variant(folder: Path) -> str | None:
    """The variant, such as fp16, of a network's files if it has no plain ones.

    Raises UserError if it has no plain ones and several variants.
    """
    found = {known["variant"] for file in folder.iterdir() if (known := WEIGHTS.fullmatch(file.name))}
    if None in found or not found:
        return None
    if len(found) > 1:
        raise UserError(f"{folder}: has weights only as the variants {', '.join(sorted(found))}: keep the files of one "
                        "of them")  # fmt: skip
    return found.pop()


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The config of the pipeline's own scheduler: in its subfolder, or in the folder itself in old uploads.

    Its class is the one that model_index.json names, as for diffusers: the config itself may name another.
    """
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.exists():
            config = read_json(path)
            if not isinstance(config, dict):
                raise UserError(f"{path}: must be a JSON object, the config of a scheduler, got {shown(config)}")
            named = index(folder).get("scheduler")
            if isinstance(named, list) and len(named) == 2 and named[0] == "diffusers":
                config["_class_name"] = named[1]
            return config
    raise UserError(f"{folder}: holds no scheduler_config.json, which describes the noise of the model's training")
