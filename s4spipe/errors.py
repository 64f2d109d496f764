"""The one exception for mistakes that the user can mend."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and what would be right."""


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The sentence for a name that is not in a registry, with the nearest known one first."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {what} {name!r}: {hint}known are {', '.join(known)}")
