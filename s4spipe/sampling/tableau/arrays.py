"""Weights that are arrays, and a solver's constant: in a safetensors file beside the solver's own, which refers to it
by its hash."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from s4spipe.runtime.errors import UserError, shown
from s4spipe.runtime.files import atomic, readable

MOST_INLINE = 1024  # numbers of a constant that may stand in the solver's own file
NAMES = ("c_0", "c", "W", "beta", "m", "V")


def write(path: Path, numbers: dict[str, Tensor]) -> dict[str, str]:
    """Write the arrays of the solver's file `path`, and return its entry for them: the name of their file and its hash.

    The name holds a part of the hash, so that the arrays of an older solver in the same place stay whole until the
    solver's own file is replaced.
    """
    own = {name: value.detach().cpu().contiguous().clone() for name, value in numbers.items()}  # they may share memory
    data = save(own)
    digest = sha256(data).hexdigest()
    file = path.with_name(f"{path.stem}-{digest[:8]}.safetensors")
    with atomic(file) as temporary:
        temporary.write_bytes(data)
    return {"file": file.name, "sha256": digest}


def read(path: Path, entry: Any) -> dict[str, Tensor]:
    """The arrays that the entry in the solver's file `path` refers to.

    Raises UserError for another entry, and for a file that is missing, is another or is elsewhere.
    """
    beside = path.with_name(name(entry))
    with readable(beside):
        content = beside.read_bytes()
    return decoded(content, entry, str(beside))


def name(entry: Any) -> str:
    """The name of the file that an entry refers to, which has no folder. Raises UserError for another entry."""
    plain = isinstance(entry, dict) and set(entry) == {"file", "sha256"}
    if not plain or not all(isinstance(value, str) for value in entry.values()):
        raise UserError(f"entry arrays must have the file's name and its sha256, got {shown(entry)}")
    file = entry["file"]
    if file != Path(file).name or "\\" in file or not file.isprintable() or not file.endswith(".safetensors"):
        raise UserError(f"entry arrays must name a .safetensors file in the solver's own folder, got {shown(file)}")
    return file


def decoded(content: bytes, entry: Any, where: str) -> dict[str, Tensor]:
    """The arrays in the bytes of a file. Raises UserError if it is not what the entry refers to."""
    if sha256(content).hexdigest() != entry["sha256"]:
        raise UserError(f"{where}: not the arrays that the solver was saved with (its sha256 is another); get both "
                        "files again")  # fmt: skip
    try:
        found = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a complete safetensors file ({str(error)[:150]})") from None
    if not set(found) <= set(NAMES):
        raise UserError(f"{where}: may hold the arrays {', '.join(NAMES)}, got {shown(sorted(found))}")
    return found
