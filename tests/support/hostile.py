"""What the tests of hostile files share: code that would run, a folder that shows if it did, and the one sentence."""

import os

import pytest

from s4spipe.runtime.errors import UserError

MARK = "hacked"  # the file that hostile code would write


class Hostile:
    """Runs code when it is unpickled, unless the unpickler refuses."""

    def __init__(self, function=os.system, *arguments):
        self.made = function, arguments or (f"touch {MARK}",)

    def __reduce__(self):
        return self.made


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which nothing appears that a test did not put there."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob(f"{MARK}*"))


def said_of(action):
    """The one sentence that is said."""
    with pytest.raises(UserError) as error:
        action()
    said = str(error.value)
    assert "\n" not in said
    assert len(said) <= 400
    return said
