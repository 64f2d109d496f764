"""params.yaml and its reference page are what the schema says, and what is written there is read back."""

import copy
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from support.parameters import DEFAULT, changed
from support.pipeline import ROOT

from s4spipe.pipeline import params, presets, render
from s4spipe.pipeline.fields import Block
from s4spipe.pipeline.schema import Params


def read(text):
    return YAML(typ="safe").load(text)


def test_the_file_in_git_is_that_of_the_defaults():
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == render.params_yaml(DEFAULT)


def test_the_reference_page_in_git_is_that_of_the_schema():
    page = (ROOT / "docs/reference/parameters.md").read_text(encoding="utf-8")
    assert page == render.reference(), "run python -m s4spipe.pipeline.render"


@pytest.mark.parametrize("name", presets.names())
def test_what_is_written_is_what_is_read(name):
    values, _ = presets.read(name)
    text = render.params_yaml(values)
    assert read(text) == values
    assert render.params_yaml(params.parse(read(text)).model_dump(exclude_none=True)) == text
    assert max(map(len, text.splitlines())) <= render.WIDTH


def test_the_file_has_every_description_and_says_what_may_be_left_out():
    text = render.params_yaml(DEFAULT)
    lines = " ".join(line.strip().removeprefix("#").strip() for line in text.splitlines())
    for name, field in Params.model_fields.items():
        assert field.description in lines, name
        inner = type(field.default).model_fields if isinstance(field.default, Block) else {}
        for key, entry in inner.items():
            assert (entry.description or "") in lines, f"{name}.{key}"
            if entry.default is None:
                assert f"\n  # {key}: null" in text
    given = render.params_yaml(changed(("model.source", "somewhere"), ("run.launcher", "torchrun -m")))
    assert "\n  source: somewhere " in given
    assert read(given)["run"]["launcher"] == "torchrun -m"


def test_the_reference_page_has_the_defaults_of_the_file():
    """Every row of every table, read back."""
    place, found = None, {}
    for line in render.reference().splitlines():
        if line.startswith("## "):
            place = line[3:]
        elif line.startswith("| `") and place != "starts":  # its table is of one start
            key, _, default, _ = line.removeprefix("| ").removesuffix(" |").replace("\\|", "/").split(" | ")
            found.setdefault(place, {})[key.strip("`")] = None if default == "-" else read(default.strip("`"))
    blocks = {name: field for name, field in Params() if isinstance(field, Block)}
    assert found == {name: block.model_dump() for name, block in blocks.items()}


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
awkward = st.sampled_from(["null", "yes", "1e3", "1.0", "~", "", "a: b", "- a", "a\nb", "#x", "a #b", "?0", ":0",
                           "0x1f", "2001-01-01", "...", "---", "\x85", "long " * 60])  # fmt: skip
scalars = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text | awkward
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=5
)


@given(values)
def test_any_value_is_one_line_that_reads_back(value):
    line = render.flow(value)
    assert "\n" not in line
    back = read(f"block:\n  key: {line} # a comment")["block"]["key"]
    assert back == value
    assert type(back) is type(value)


launchers = st.lists(st.text("ab :#'\"", min_size=1), min_size=1).map(shlex.join)
names = st.from_regex(r"[a-z][a-z0-9_]{0,40}", fullmatch=True)


@given(st.dictionaries(names, st.floats(0, 1), max_size=4), launchers, st.lists(names, unique=True))
def test_any_parameters_read_back(learners, launcher, files):
    """New learners and starts, whatever their number and length, and text with characters that mean something."""
    data = copy.deepcopy(DEFAULT)
    data["learners"] |= {f"{name}_": {"decoupling": share / 2, "radius": share} for name, share in learners.items()}
    data["starts"] |= {f"{name}_": {"solver": "ipndm", "schedules": ["edm"] * 9, "skip": []} for name in learners}
    data["run"]["launcher"], data["fetch"] = launcher, files
    back = read(render.params_yaml(data))
    assert back == data
    assert list(back) == list(Params.model_fields)
    assert params.parse(back) == params.parse(data)
