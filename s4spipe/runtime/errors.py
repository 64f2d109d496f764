"""Exceptions for mistakes that the user can fix."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input. The message is one sentence: what is wrong, where, and what would be right."""


class MissingExtra(UserError, ImportError):
    """A missing package that one of the project's extras installs."""


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry; it suggests the closest known name."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {what} {name!r}: {hint}choose from {', '.join(known)}")


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
