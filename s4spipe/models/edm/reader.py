"""A reader of EDM's published checkpoints (Karras et al. 2022): pickles, read as data.

Such a pickle contains the source code of its classes, which the authors' library runs. Here nothing in it is run. The
reader extracts the tensors and the constructor arguments, and refuses a file that asks for anything else.
"""

import io
import json
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import missing


class Record(dict[str, Any]):
    """Replaces every dictionary and object of the pickle; holds its class_name and state, or its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self["state"] = state


def _allowed() -> dict[tuple[str, str], object]:
    """What EDM checkpoints ask for, and what they get instead. It is built for each file, so that none can alter it."""
    known: dict[tuple[str, str], object] = {
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("collections", "OrderedDict"): OrderedDict,
        ("dnnlib.util", "EasyDict"): type("EasyDict", (Record,), {}),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): lambda meta: Record(meta),
        ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: torch.as_strided(
            storage, size, stride, offset
        ),
        ("torch.storage", "_load_from_bytes"): lambda data: _storage(data),
    }
    for name in ("ModuleDict", "ModuleList", "Sequential"):
        known["torch.nn.modules.container", name] = type(name, (Record,), {})
    for name in ("float16", "float32", "float64", "bfloat16"):
        known["torch", name] = getattr(torch, name)
    return known


def _storage(data: bytes) -> Tensor:
    """The numbers of a storage that `torch.save` wrote, as a flat tensor, read without running any code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # such files have no other kind
        storage = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        return torch.tensor([], dtype=storage.dtype).set_(storage.untyped())


class Reader(pickle.Unpickler):
    """Unpickles what `_allowed` lists and nothing else. Raises UserError for a file that asks for more."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.known = _allowed()

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.known:
            raise UserError(
                f"it asks for {module}.{name}, which no EDM checkpoint needs: refused, nothing of it was run"
            )
        return self.known[module, name]


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint's `ema` network by name, and {"precond": .., "kwargs": ..} to build the network from.

    Raises UserError for a file that is missing, truncated, no EDM checkpoint, or that asks for anything else.
    """
    try:
        with open(path, "rb") as file:
            network = Reader(file).load()["ema"]
        metadata = {"precond": network["class_name"], "kwargs": dict(network["state"]["_init_kwargs"])}
        json.dumps(metadata)  # plain data, which a converted checkpoint can hold
        return dict(_tensors(network)), metadata
    except FileNotFoundError:
        raise missing(path) from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle may raise anything
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: not a complete EDM checkpoint ({type(error).__name__}: {reason})") from None


def _tensors(module: Record, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The parameters and persistent buffers of a module and its submodules, by their names in a state dict."""
    state = module["state"]
    for kind in ("_parameters", "_buffers"):
        for name, value in state[kind].items():
            if value is not None and name not in state.get("_non_persistent_buffers_set", ()):
                yield prefix + name, value.detach().contiguous()
    for name, inner in state["_modules"].items():
        if inner is not None:
            yield from _tensors(inner, f"{prefix}{name}.")
