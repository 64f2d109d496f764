"""Reading and writing files; writes are atomic: a file appears complete or not at all."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from s4spipe.runtime.errors import UserError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds.

    The temporary path is always the same, so that a leftover of a killed process is overwritten by the next one.
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
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Parsed JSON. Raises UserError for a file that is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); rebuild it with `dvc repro`") from None


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor], metadata: object = None) -> None:
    """Write tensors as safetensors, with `metadata` in a single metadata key (several keys are not byte-stable)."""
    header = {"s4spipe": json.dumps(metadata, sort_keys=True)}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, header)
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: str | Path, *, tensors: bool = True) -> tuple[dict[str, torch.Tensor], Any]:
    """Read what `write_tensors` wrote: tensors (optional) and metadata. Raises UserError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["s4spipe"])
            return {name: file.get_tensor(name) for name in file.keys() if tensors}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise missing(path) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a complete safetensors file ({error}); restore it with `git checkout` or `dvc repro`"
        ) from None
    except (KeyError, json.JSONDecodeError):
        raise UserError(f"{path}: a safetensors file, but not one that s4spipe wrote") from None


def write_array(path: str | Path, array: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def write_arrays(path: str | Path, chunks: Iterable[np.ndarray], rows: int) -> None:
    """Write an .npy file of `rows` rows from chunks, which need not all fit into memory."""
    with atomic(path) as temporary:
        whole, filled = None, 0
        for chunk in chunks:
            if whole is None:
                whole = np.lib.format.open_memmap(temporary, "w+", chunk.dtype, (rows, *chunk.shape[1:]))
            whole[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        if whole is not None:
            whole.flush()


def read_array(path: str | Path) -> np.ndarray:
    """Open an .npy file of plain numbers, memory-mapped. Raises UserError if it is missing or broken."""
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError:
        raise missing(path) from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a complete .npy file ({error}); make it again with `dvc repro`") from None


def missing(path: str | Path) -> UserError:
    return UserError(f"{path}: no such file; make it with `dvc repro`, or fetch it with `dvc pull`")


def read_lines(path: str | Path, what: str) -> list[str]:
    """The non-empty lines of a UTF-8 text file. Raises UserError if there are none."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; it must hold {what}, one per line") from None
    if not lines:
        raise UserError(f"{path}: holds no {what}; write one per line")
    return lines
