"""Scratch space, from which interrupted work resumes; and the lock that keeps two processes from the same work."""

import copy
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from s4spipe.runtime.errors import explained
from s4spipe.runtime.files import atomic, missing

if sys.platform != "win32":
    import fcntl

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

    def within(self, name: str) -> "Scratch":
        """The progress of a part of the work, which is cleared with the whole."""
        part = copy.copy(self)
        part.folder = self.folder / name
        return part

    def load(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.pt"
        try:
            return torch.load(path, weights_only=True) if path.exists() else None
        except (RuntimeError, EOFError, pickle.UnpicklingError):  # damaged, as by a loss of power: made again
            return None

    def save(self, name: str, state: dict) -> None:
        written = io.BytesIO()  # torch's own writer does not say that the disk is full
        torch.save(state, written)
        with atomic(self.folder / f"{name}.pt") as temporary:
            temporary.write_bytes(written.getbuffer())

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


@contextmanager
def alone(name: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time into the block, of all those in this folder that give the same `name`.

    The system frees the lock when its process dies, however it dies. Where it has no such locks (Windows, some network
    disks), nobody waits; a file is still written whole or not at all.

    Args:
        tell: gets the id of the process that this one is going to wait for; it is empty if it is not known.

    Raises UserError if the lock's file cannot be written.
    """
    if sys.platform == "win32":
        yield
        return
    path = SCRATCH / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:100]}.lock"
    with explained(path):
        file = _locked(path, tell)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked, so that it is nobody else's
        file.close()


def _locked(path: Path, tell: Callable[[str], None]) -> IO[str]:
    """The file at `path`, locked, with this process's id in it."""
    assert sys.platform != "win32"
    while True:
        path.parent.mkdir(exist_ok=True)
        file = open(path, "a+", encoding="ascii")  # noqa: SIM115  (the lock ends when it is closed)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            tell(file.read())
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # no locks here
            return file
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                return file
        except FileNotFoundError:  # deleted by the one that had it
            pass
        file.close()
