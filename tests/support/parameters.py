"""Parameters with a change or two, and what is said of wrong ones."""

import copy

import pytest

from s4spipe.pipeline import params
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.errors import UserError
from support.pipeline import ROOT

DEFAULT = Params().model_dump(exclude_none=True)


def changed(*changes):
    """The defaults with (key, value) changed; a key as `block.key`, or as its parts where one of them is no name."""
    data = copy.deepcopy(DEFAULT)
    for key, value in changes:
        *blocks, last = key.split(".") if isinstance(key, str) else key
        inner = data
        for block in blocks:
            inner = inner[block]
        inner[last] = value
    return data


def mistake(data, root=ROOT):
    """The one line that is said of wrong parameters."""
    with pytest.raises(UserError) as error:
        params.parse(data, root)
    assert "\n" not in str(error.value)
    return str(error.value)
