"""Reading and writing files; writes are atomic: a file appears complete or not at all."""

import json
import math
import os
import secrets
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from s4spipe.runtime.checks import check_plain
from s4spipe.runtime.errors import UserError, explained, shown

STRUCTURED = (".csv", ".json", ".jsonl", ".tsv", ".yaml", ".yml")  # texts whose lines are no plain sentences


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds.

    No two processes have the same temporary path, so that neither can put the other's half of a file in place. What
    killed processes have left is removed by the next that writes the same file.

    Raises UserError if there is no room or no permission, or if another process wrote the file at the same time.
    """
    path = Path(path)
    start = f".{path.name}.tmp"
    temporary = path.with_name(f"{start}-{secrets.token_hex(4)}{path.suffix}")
    with explained():
        path.parent.mkdir(parents=True, exist_ok=True)
    with explained(path):
        for name in os.listdir(path.parent):
            if name.startswith(start):
                path.with_name(name).unlink(missing_ok=True)
        try:
            yield temporary
            _put(temporary, path)
        finally:
            with suppress(OSError):  # the one that led here says more
                temporary.unlink()


def _put(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except FileNotFoundError:
        raise UserError(f"{path}: another process wrote it at the same time; run again when that has ended") from None


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Raises UserError for a number that is not finite, which JSON does not have."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError:
        raise UserError(f"{path}: not written, since a number in it is not finite (NaN or infinite)") from None
    write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Parsed JSON. Raises UserError for a file that is missing, is not JSON, holds a key twice, or is nested too deeply
    to be used."""
    with readable(path):
        content = Path(path).read_bytes()
    try:
        # Editors on Windows put a mark before it.
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and numbers of over 4300 digits
        raise UserError(f"{path}: not valid JSON ({str(error)[:150]}); correct it, or make it again with `dvc repro` "
                        "if a stage wrote it") from None  # fmt: skip
    check_plain(str(path), value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of a key that is there twice, as after a bad merge, the parser would keep the last."""
    (key, times), *_ = Counter(key for key, _ in pairs).most_common(1) or [("", 0)]
    if times > 1:
        raise ValueError(f"the key {shown(key)} is there {times} times")
    return dict(pairs)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turns what the system says of a file that cannot be opened into UserError."""
    try:
        yield
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError, TypeError) as error:  # a folder, another user's file, a null byte, no path at all
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor], metadata: object = None) -> None:
    """Write tensors as safetensors, with `metadata` in a single metadata key (several keys are not byte-stable)."""
    header = {"s4spipe": json.dumps(metadata, sort_keys=True)}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, header)
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: str | Path, *needed: str, tensors: bool = True) -> tuple[dict[str, torch.Tensor], Any]:
    """Read what `write_tensors` wrote: tensors (optional) and metadata.

    Raises UserError for any other file, and for one without the tensors `needed`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["s4spipe"])
            found = {name: file.get_tensor(name) for name in file.keys() if tensors}  # noqa: SIM118
    except FileNotFoundError:
        raise missing(path) from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a complete safetensors file ({error}); restore it with `git checkout` or `dvc repro`"
        ) from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{path}: a safetensors file, but not one that s4spipe wrote") from None
    for name in needed:
        if name not in found:
            raise UserError(f"{path}: holds no tensor {name!r}; make it again with `dvc repro`")
    return found, metadata


def write_array(path: str | Path, array: np.ndarray) -> None:
    write_arrays(path, [array], len(array))


def write_arrays(path: str | Path, chunks: Iterable[np.ndarray], rows: int) -> None:
    """Write an .npy file of `rows` rows from chunks, which need not all fit into memory.

    It is written, not mapped into memory: a write to a mapped file ends the process when the disk is full.
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        filled = 0
        for chunk in chunks:
            if not filled:
                header = {"descr": np.lib.format.dtype_to_descr(chunk.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, *chunk.shape[1:])})
            file.write(chunk.tobytes())
            filled += len(chunk)
        if filled != rows:
            raise ValueError(f"{path}: {filled} rows instead of {rows}")


def read_array(path: str | Path) -> np.ndarray:
    """Open an .npy file of plain numbers, memory-mapped. Raises UserError if it is missing or broken."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise missing(path) from None
    except Exception as error:  # a broken header may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"{path}: not a complete .npy file of plain numbers ({reason}); save it again, or make it "
                        "again with `dvc repro` if a stage wrote it") from None  # fmt: skip


def read_floats(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name, as float64, if each is of floats in the shape that `shapes` gives.

    An array's header is checked before the array is unpacked, since a few kB can unpack to many GB. Raises UserError
    for any other file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _member(archive, name, shape) for name, shape in shapes.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a broken archive may raise anything
        what = " and ".join(shapes)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"{path}: must hold feature statistics, the arrays {what} ({reason})") from None


def _member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # of other versions, even the header can be of many GB
            raise ValueError(f"{name} has a header of version {version}")
        there, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        if there != shape or dtype.kind != "f" or dtype.itemsize not in (4, 8):
            raise UserError(f"{name} must be float32 or float64 {list(shape)}, the statistics of the network that "
                            f"fid.network names, got {dtype} {str(list(there))[:60]}")  # fmt: skip
        data = file.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C").astype(np.float64, order="C")


def missing(path: str | Path) -> UserError:
    return UserError(f"{path}: no such file; make it with `dvc repro`, or fetch it with `dvc pull`")


def read_lines(path: str | Path, what: str) -> list[str]:
    """The non-empty lines of a UTF-8 text file. Raises UserError if there are none, and for JSON and tables."""
    try:
        # Not `splitlines`, which also splits where texts from the web have other marks.
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; it must hold {what}, one per line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (at byte {error.start}); save it as UTF-8") from None
    if not lines:
        raise UserError(f"{path}: holds no {what}; write one per line")
    if Path(path).suffix.lower() in STRUCTURED or lines[0].startswith(("[", "{")):
        raise UserError(f"{path}: JSON or a table, by its name or its first line {shown(lines[0])}; write {what} as "
                        "plain text, one per line, into a .txt file")  # fmt: skip
    return lines
