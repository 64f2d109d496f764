"""Scratch space, from which interrupted work resumes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from s4spipe.runtime.files import atomic, missing

SCRATCH = Path(".s4spipe")  # in the project's folder; ignored by git and by DVC
PACKAGE = Path(__file__).parent.parent


def signature(path: str | Path) -> str:
    """A short hash of a file, or of all files in a folder: of their names, sizes, and first and last MiB. This is fast
    even for weights of many GB, and distinguishes them. Raises UserError if there is nothing at `path`."""
    path = Path(path)
    if not path.exists():
        raise missing(path)
    inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in inside:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}\n".encode())
        with open(file, "rb") as data:
            digest.update(data.read(2**20))
            data.seek(max(0, size - 2**20))
            digest.update(data.read())
    return digest.hexdigest()[:16]


def fingerprint(*determinants: object, files: tuple = ()) -> str:
    """A hash of all that determines a result: parameters, input files and folders, and the code of this package.

    Raises UserError for a file that is missing.
    """
    digest = hashlib.sha256(json.dumps(determinants, sort_keys=True).encode())
    for path in map(Path, files):
        if not path.exists():
            raise missing(path)
        digest.update(path.name.encode() + (signature(path).encode() if path.is_dir() else path.read_bytes()))
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:24]


class Scratch:
    """The progress of unfinished work with a given fingerprint. It survives a kill, and the next run finds it.

    Every entry is a dict that `torch.save` can write and `torch.load` can read with `weights_only=True`.
    """

    def __init__(self, key: str):
        self.folder = SCRATCH / key

    def load(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def save(self, name: str, state: dict) -> None:
        with atomic(self.folder / f"{name}.pt") as temporary:
            torch.save(state, temporary)

    def once(self, name: str, make: Callable[[], dict]) -> dict:
        """The saved entry `name`; if there is none, `make()`, which is then saved."""
        state = self.load(name)
        if state is None:
            state = make()
            self.save(name, state)
        return state

    def clear(self) -> None:
        """Delete all entries, once the result is complete elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)
