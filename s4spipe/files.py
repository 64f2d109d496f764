"""Files that appear whole or not at all, and the scratch space from which long work resumes."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from s4spipe.errors import UserError

SCRATCH = Path(".s4spipe")  # ignored by git and by DVC
PACKAGE = Path(__file__).parent


@contextmanager
def atomic(path: str | Path):
    """Yield a temporary path beside `path` and rename it to `path` once the block has succeeded.

    It is always the same path, so that what a killed process left there is overwritten by the next one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> object:
    """Parsed JSON. Raises UserError for a file that is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise missing(path) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); rebuild it with `dvc repro`") from None


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor], about: object = None) -> None:
    """Tensors as safetensors; `about` goes into its single metadata key (more than one is not byte-stable)."""
    metadata = {"s4spipe": json.dumps(about, sort_keys=True)}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: str | Path, *, tensors: bool = True) -> tuple[dict[str, torch.Tensor], object]:
    """The tensors (if wanted) and the `about` of `write_tensors`. Raises UserError if missing, truncated or foreign."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["s4spipe"])
            return {name: file.get_tensor(name) for name in file.keys() if tensors}, about  # noqa: SIM118
    except FileNotFoundError:
        raise missing(path) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); restore it with `git checkout` or `dvc repro`"
        ) from None
    except (KeyError, json.JSONDecodeError):
        raise UserError(f"{path}: a safetensors file, but not one that s4spipe wrote") from None


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def write_arrays(path: str | Path, chunks: Iterable[np.ndarray], rows: int) -> None:
    """One .npy file of `rows` rows, out of chunks that need not all fit into memory."""
    with atomic(path) as temporary:
        whole, filled = None, 0
        for chunk in chunks:
            if whole is None:
                whole = np.lib.format.open_memmap(temporary, "w+", chunk.dtype, (rows, *chunk.shape[1:]))
            whole[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        whole.flush()


def read_array(path: str | Path) -> np.ndarray:
    """An .npy file of plain numbers, read where it is looked at. Raises UserError if it is missing or broken."""
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError:
        raise missing(path) from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a whole .npy file ({error}); make it again with `dvc repro`") from None


def missing(path: str | Path) -> UserError:
    return UserError(f"{path}: no such file; make it with `dvc repro`, or fetch it with `dvc pull`")


def signature(path: str | Path) -> str:
    """A short hash of a file, or of a folder's files: of their names, sizes, and first and last MiB, which for weights
    of many GB is quick and tells them apart. Raises UserError if there is nothing at `path`."""
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
    """Hash of everything that determines a result: parameters, input files and folders, and this package's code.

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
    """Unfinished work under one fingerprint: what is saved here survives a kill and is found by the re-run.

    Every entry is a dict that `torch.save` can hold and `weights_only=True` can read.
    """

    def __init__(self, key: str):
        self.folder = SCRATCH / key

    def load(self, name: str) -> dict | None:
        path = self.folder / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def save(self, name: str, state: dict) -> None:
        with atomic(self.folder / f"{name}.pt") as temporary:
            torch.save(state, temporary)

    def once(self, name: str, make: Callable[[], dict]) -> dict:
        """The saved entry, or `make()` saved under that name."""
        state = self.load(name)
        if state is None:
            state = make()
            self.save(name, state)
        return state

    def clear(self) -> None:
        """Forget it all, once the result stands whole elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)
