"""Exceptions for mistakes that the user can fix, and how a value is shown in them."""

import difflib
import errno
import os
import reprlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 400  # characters of a message
BRIEF = reprlib.Repr()  # a few kilobytes at most, whatever refers to whatever
BRIEF.maxlevel, BRIEF.maxlist, BRIEF.maxtuple, BRIEF.maxdict, BRIEF.maxset = 3, 20, 20, 20, 20
BRIEF.maxstring = BRIEF.maxlong = BRIEF.maxother = 200


class UserError(ValueError):
    """Bad input. The message is one sentence: what is wrong, where, and what would be right.

    It is one line of at most 400 characters: what cannot be printed is escaped, and what is longer loses its middle,
    since the place is named at the beginning and the advice at the end.
    """

    def __init__(self, message: str):
        super().__init__(_shortened(printable(message), LONGEST))


class MissingExtra(UserError, ImportError):
    """A missing package that one of the project's extras installs."""


def printable(text: str) -> str:
    """Text with all that cannot be printed escaped: line ends, control characters, half characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object, longest: int = 80) -> str:
    """A value as a message shows it: on one line, of at most `longest` characters, whatever it is."""
    try:
        text = " ".join(BRIEF.repr(value).split())
    except (ValueError, RecursionError):  # an integer of more than 4300 digits, for instance
        return f"something too large to show ({type(value).__name__})"
    return _shortened(printable(text), longest)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = (longest - 5) * 2 // 5
    return f"{text[: longest - 5 - end]} ... {text[-end:]}"


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry; it suggests the closest known name."""
    known = sorted(known)
    close = difflib.get_close_matches(name[:100], known, n=1) if isinstance(name, str) else []
    hint = f"did you mean {shown(close[0])}? " if close else ""
    return UserError(f"unknown {what} {shown(name)}: {hint}choose from {', '.join(known)}")


# What the system can refuse about a file, and what a user can do about it.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room on its disk"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "give yourself the right to read and write there"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "move away the file that stands in the place of a folder"),
    errno.EISDIR: "move away the folder that stands in the place of a file",
    errno.EIO: "look after its disk",
    errno.ENOMEM: "close other programs, or use a machine with more memory",
}
# Parts of what torch says when there is no memory: on the CPU, on GPUs, in C++, in CUDA's libraries.
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "STATUS_ALLOC_FAILED")


@contextmanager
def explained(path: str | os.PathLike | None = None) -> Iterator[None]:
    """Turns what the system refuses inside into UserError: no room on the disk, no permission, no folder there, no
    memory.

    Args:
        path: the file to name; without it, the one that the system names.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        where = path or error.filename or "a file"
        raise UserError(
            f"{os.fspath(where)}: {error.strerror}; {REMEDIES[error.errno]} and run again: what is finished is kept"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(part in str(error) for part in NO_MEMORY):
            raise
        reason = (str(error).splitlines() or ["MemoryError"])[0]
        raise UserError(
            f"out of memory ({reason[:200]}): lower run.batch_size, or run.micro_batch_size if this was learning, in "
            "params.yaml and run again: what is finished is kept"
        ) from None


def ensure_streams() -> None:
    """Give this process the streams that it may lack, as without a console; what is said there goes nowhere.

    Libraries write to them without asking.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (open to the end)


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Turns a failed import inside into MissingExtra, which names `extra`; `what` is what needs the package."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "s4spipe", "stages"):
            raise
        raise MissingExtra(f"{what} needs {package}, which is not installed: pip install 's4spipe[{extra}]'") from None
