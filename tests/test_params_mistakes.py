"""params.yaml: every mistake is a UserError of one line that names the key, and the file, whatever the mistake is."""

import copy
import datetime
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from support.parameters import DEFAULT, changed, mistake
from support.pipeline import ROOT

from s4spipe.pipeline import layout, params
from s4spipe.pipeline.render import flow
from s4spipe.pipeline.schema import Learner, Params, Start
from s4spipe.runtime.errors import UserError

TIMES = [80, 10.5, 0.002]


def blocks(block=Params, prefix=()):
    """Where the mappings with a fixed set of keys are, and what their keys are."""
    yield prefix, block
    for name, field in block.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from blocks(type(field.default), (*prefix, name))
    if block is Params:
        yield from (((*prefix, "starts", name), Start) for name in DEFAULT["starts"])
        yield from (((*prefix, "learners", name), Learner) for name in DEFAULT["learners"])


BLOCKS = list(blocks())
# Keys that must be there: all of them, but for those that may be null, and those of one start or learner.
KEYS = [(*prefix, name) for prefix, block in BLOCKS for name, field in block.model_fields.items()
        if block not in (Start, Learner) or prefix == ("learner_defaults",)
        if field.default is not None]  # fmt: skip
OPTIONAL = [
    *("run.launcher", "refine.reward"),
    *("learner_defaults.late", "learner_defaults.mean", "learner_defaults.reward"),
    *(f"model.{key}" for key in ("source", "revision", "size", "shape", "scheduler", "pipeline")),
]


@pytest.mark.parametrize("key", OPTIONAL)
def test_what_may_be_null_may_also_be_left_out(key):
    assert params.parse(changed((key, None))) == params.parse(DEFAULT)


def test_these_are_all_that_may_be_left_out():
    all_keys = [(*prefix, name) for prefix, block in BLOCKS for name in block.model_fields
                if block not in (Start, Learner) or prefix == ("learner_defaults",)]  # fmt: skip
    assert sorted(".".join(key) for key in set(all_keys) - set(KEYS)) == sorted(OPTIONAL)


# -- what is wrong with one key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_a_missing_key_is_named_with_its_default(key):
    data = copy.deepcopy(DEFAULT)
    inner = data
    for block in key[:-1]:
        inner = inner[block]
    default = inner.pop(key[-1])
    said = mistake(data)
    assert said.startswith(f"{'.'.join(key)}: missing; ")
    assert said.endswith("parameters.md has its defaults" if isinstance(default, dict) else f"is {flow(default)}")


@pytest.mark.parametrize(("place", "block"), BLOCKS, ids=[".".join(place) or "top" for place, _ in BLOCKS])
def test_an_unknown_key_is_named_at_every_level_with_the_nearest_known_one(place, block):
    known = min(block.model_fields)
    typo = (*place, known[:-1] + known[-1] * 2)
    said = mistake(changed((typo, 1)))
    assert said.startswith(f"{'.'.join(typo)}: unknown key '{typo[-1]}': did you mean '")
    assert known in said


def test_keys_that_are_no_strings_are_told():
    for place, _ in BLOCKS:
        for key in (5, None, True, 2.5, datetime.date(2020, 1, 1)):
            said = mistake(changed(((*place, key), 1)))
            assert said.startswith(".".join(place) or ("5: ", "1: ", "top level: "))
            assert "keys must be strings" in said
    for place in ("starts", "learners", "classical_schedules"):
        assert mistake(changed(((place, 5), {}))).startswith(f"{place}.5: keys must be strings")


@pytest.mark.parametrize(("place", "_"), BLOCKS[1:], ids=[".".join(place) for place, _ in BLOCKS[1:]])
@pytest.mark.parametrize("value", [None, [], ["a"], "text", 3, True, 0.5])
def test_a_block_that_is_no_mapping_is_told(place, _, value):
    assert mistake(changed((place, value))) == f"{'.'.join(place)}: must be a mapping, got {params._shown(value)}"


# For a key, values that are wrong, and what the line must say of each beside the key.
MISTAKES = {
    "nfe": [([], "at least 1"), (5, "must be a list"), ("5", "must be a list"), (None, "must be a list"),
            ([5, 5], "only once"), ({5: 5}, "must be a list")],
    "classical": [([], "at least 1"), (["ddim", "ddim"], "only once"), ("ddim", "must be a list")],
    "classical_schedules": [({}, "ddim: missing"), (["edm"], "must be a mapping"), (None, "must be a mapping")],
    "classical_schedules.ddim": [("emd", "unknown schedule 'emd': did you mean 'edm'?"), (None, "a schedule is"),
                                 ([80.0, 1.0, 2.0], "fall strictly"), ([80.0], "at least two"),
                                 ([80.0, "1"], "a schedule is a name or a list of times"), (5, "a schedule is"),
                                 ([10**400, 1], "a schedule is"), ([float("nan"), 1.0], "a schedule is")],
    "run.device": [(None, "must be a string"), (0, "must be a string"), ("", "printable characters")],
    "run.batch_size": [(0, "greater than or equal to 1"), (2.5, "an integer"), ("5", "an integer"), (None, "integer")],
    "run.compile": [("yes", "must be true or false"), (1, "must be true or false"), (None, "must be true or false")],
    "run.launcher": [(["torchrun"], "must be a string")],
    "model.name": [*((name, "letters, digits and _") for name in ("Digits", "a b", "../up", "", "é")),
                   (5, "must be a string")],
    "model.kind": [("difusers", "unknown kind of model 'difusers': did you mean 'diffusers'?"), (["edm"], "a string")],
    "model.condition": [("label", "'labels', 'prompts' or 'none'"), (None, "'labels'")],
    "model.guidance": [("high", "must be a number"), (-1, "greater than or equal to 0"), (float("inf"), "finite"),
                       (True, "must be a number")],
    "model.precision": [("fp16", "unknown precision 'fp16'"), (["float32"], "must be a string"), ({}, "a string")],
    "model.weights": [("https://example.org/x.pkl", "must be a local path"), ("~/x.pkl", "write the whole path")],
    "model.source": [("~/x.pkl", "write the whole path")],
    "perceptual.weights": [("https://example.org/vgg.pth", "or list it in fetch")],
    "model.size": [(0, "greater than or equal to 1"), ("8", "an integer")],
    "model.pipeline": [([], "must be a mapping"), ({"num_frames": 5}, "only models of kind diffusers")],
    "model.scheduler": [([], "must be a mapping")],
    "fetch": [("a", "must be a list"), (["a", "a"], "only once"), (None, "must be a list")],
    "prompts": [(None, "must be a string"), ("mine.txt", "model.condition"), ("~/p.txt", "write the whole path"),
                ("https://example.org/p.txt", "must be a local path")],
    "train_digits.ema": [(1.5, "less than or equal to 1")],
    "train_features.learning_rate": [(0, "greater than 0"), (float("nan"), "")],
    "searched": [(["gits", "gits"], "only once"), ("gits", "must be a list")],
    "statistics_for": [(["dpm_v3", "dpm_v3"], "only once"), ("dpm_v3", "must be a list")],
    "statistics.grid": [(2, "greater than")], "statistics.schedule": [("gits", "unknown schedule 'gits'")],
    "gits.solver": [("ipndm_9", "ipndm has order"), ("dpm_v3", "only the solvers in"), ("dpmpp_sde", "adds fresh")],
    "gits.grid": [(1, "greater than or equal to 2")],
    "dmn.schedule": [("logsn", "unknown schedule 'logsn': did you mean 'logsnr'?"), ("dmn", "unknown schedule"),
                     (TIMES, "must be a string")],
    "dmn.order": [(5, "less than or equal to 4")],
    "teacher.solver": [("unipc", "unknown classical solver 'unipc'"), ("ddim_2", "ddim has order 1, got 2"),
                       ("ipndm_7", "got 7"), ([], "must be a string"), (None, "must be a string"),
                       ("ddim_eta_50", "adds fresh noise")],
    "teacher.schedule": [("logsrn", "unknown schedule 'logsrn'"), ("best", "unknown schedule 'best'"),
                         ({"a": 1}, "a schedule is a name or a list of times")],
    "reference.schedule": [("best", "unknown schedule 'best'"), ([80.0, 80.0], "fall strictly")],
    "teacher.seed": [(-1, "greater than or equal to 0")],
    "perceptual.network": [("inception", "unknown perceptual network"), ([], "must be a string")],
    "learned": [(["ld4"], "unknown learner 'ld4': did you mean 'ld3'?"), (["gs", "gs"], "only once"),
                ({"gs": 1}, "must be a list")],
    "refined": [(["fre"], "unknown learner 'fre': did you mean 'free'?"), (["free", "free"], "only once"),
                (["s4s"], "`learned` too"), (None, "must be a list")],
    "starts": [(None, "must be a mapping"), ({}, "s4s: missing"), ([], "must be a mapping")],
    "starts.s4s.solver": [("ipmdn", "unknown classical solver 'ipmdn': did you mean 'ipndm'?"), (3, "a string"),
                          ("sa_solver", "adds fresh noise")],
    "starts.s4s.schedules": [([], "at least 1"), ("edm", "must be a list"), (["best"], "unknown schedule 'best'")],
    "starts.s4s.skip": [([0.1], "only the family free"), (0.1, "must be a list")],
    "learner_defaults.order": [(0, "greater than or equal to 1"), (True, "an integer"), ("3", "an integer")],
    "learner_defaults.decoupling": [(0.7, "less than or equal to 0.5")],
    "learner_defaults.distance": [("lpips", "unknown distance 'lpips'")],
    "learners.s4s.radius": [(-0.1, "greater than or equal to 0"), (float("nan"), ""), (None, "must be a number")],
    "learners.s4s.order": [(6, "smallest NFE, which is 5"), (0, "greater than or equal to 1")],
    "learners.s4s.pairs": [(10**6, "teacher.train = 600"), (0, "greater than or equal to 1")],
    "learners.free.validation_pairs": [(10**6, "teacher.validation = 600")],
    "learners.s4s.learns": [("both", "'coefficients', 'times', 'alternating' or 'joint'")],
    "learners.s4s.family": [("fixt", "unknown family 'fixt': did you mean 'fixed'?"), (["lms"], "must be a string")],
    "learners.gs.consistent": [(True, "not for the family gs"), ("yes", "must be true or false")],
    "learners.ld3.shared": [(True, "not for the family fixed")],
    "learners.ld3.gaussian": [(True, "only for the families lms and pc")],
    "learners.ld3.mean": [("image", "only for the family free, not fixed; leave it out")],
    "learners.free.mean": [("picture", "'image', 'channels' or 'none'"), (True, "")],
    "learners.ld3.learns": [("joint", "make it times"), ("coefficients", "make it times")],
    "learners.free.learns": [("alternating", "make it joint"), ("times", "make it joint")],
    "learners.gn.learns": [("alternating", "cannot alternate")],
    "learners": [(None, "must be a mapping"), ({}, ""), ([], "must be a mapping")],
    "refine.pairs": [(1, "greater than or equal to 2"), (10**6, "teacher.train = 600")],
    "refine.validation_pairs": [(10**6, "teacher.validation = 600")],
    "sample.count": [(0, "greater than or equal to 1"), (None, "must be an integer")],
    "reference.source": [("reel", "'model' or 'real'")],
    "fid.count": [(10**9, "sample.count = 10000"), ("most", "must be an integer or 'all'"), (0, "equal to 1 or 'all'"),
                  (None, "must be an integer or 'all'")],
    "fid.network": [("lpips", "unknown features network")],
    "fid.mode": [("legacy", "unknown mode of FID 'legacy'")],
    "fid.real": [("https://example.org/x.npz", "must be a local path"), ("s3://images", "must be a local path"),
                 ("~/images", "write the whole path")],
    "fid.features": [("https://example.org/i.pt", "or list it in fetch")],
    "fid.clip": [("openai/clip", "needs prompts"), ("https://example.org/clip", "must be a local path")],
    "report.sheet_columns": [(21, "less than or equal to 20")],
}  # fmt: skip
# Of these another key is named than the one that was changed: it could be either.
ELSEWHERE = {
    ("classical_schedules", "ddim: missing"): "classical_schedules.ddim",
    ("starts", "s4s: missing"): "starts.s4s",
    ("learners", ""): "learned",
}


@pytest.mark.parametrize(("key", "value", "says"), [(k, v, says) for k, cases in MISTAKES.items() for v, says in cases])
def test_a_mistake_is_told_with_the_key(key, value, says):
    said = mistake(changed((key, value)))
    assert said.startswith(f"{ELSEWHERE.get((key, says), key)}: ")
    assert says in said


def test_a_place_in_a_list_is_named():
    places = {"nfe": 0, "searched": "git", "statistics_for": "ddim", "classical": "ddmi", "learned": 5, "fetch": None}
    for key, value in places.items():
        assert mistake(changed((key, [value]))).startswith(f"{key}.0: ")
    assert mistake(changed(("starts.free.skip", [0.0, 1.0]))).startswith("starts.free.skip.1: ")
    assert mistake(changed(("starts.free.schedules", ["edm", 5]))).startswith("starts.free.schedules.1: ")
    assert mistake(changed(("model.shape", [3, 0]))).startswith("model.shape.1: ")


def test_networks_and_their_files_that_do_not_go_together_are_told():
    assert "perceptual.weights: must be inputs/none.txt if perceptual.network is random" in mistake(
        changed(("perceptual.network", "random"))
    )
    assert "fid.features: must be inputs/none.txt if fid.network is random, and name a file otherwise" in mistake(
        changed(("fid.features", layout.NONE))
    )
    by_random = [("perceptual.network", "random"), ("perceptual.weights", layout.NONE)]
    same = [("fid.network", "random"), ("fid.features", layout.NONE)]
    assert "fitted to their judge" in mistake(changed(*by_random, *same))


def test_hidden_files_are_no_schedules(tmp_path):
    folder = tmp_path / "inputs/schedules"
    folder.mkdir(parents=True)
    for name in ("._mine.json", ".mine.json.tmp-1.json", "mine.json"):
        (folder / name).write_text("[80.0, 0.002]")
    assert layout.input_schedules(tmp_path) == {"mine": folder / "mine.json"}


# -- whatever is wrong ------------------------------------------------------------------------------------------------

PLACES = []


def places(value, place=()):
    PLACES.append(place)
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        places(inner, (*place, key))


places(DEFAULT)
NAMES = ["free", "fixed", "gauss_newton", "perceptual", "gits", "dmn", "best", "ddim", "none", "all", "s4s"]
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(NAMES),
    st.sampled_from([10**400, b"x", datetime.date(2020, 1, 1)]),
)  # fmt: skip
keys = st.one_of(st.text(max_size=4), st.integers(), st.none(), st.floats(), st.tuples(st.integers()), st.booleans())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=5
)


def said_of(use):
    """What a UserError of `use` says; nothing, if there is none."""
    try:
        use()
    except UserError as error:
        return str(error)
    return ""


@given(st.lists(st.tuples(st.sampled_from(PLACES), values), min_size=1, max_size=2), keys)
def test_whatever_stands_wherever_is_right_or_told(edits, key):
    """Anything that YAML can hold, in the place of any value, or as a further entry of any mapping or list."""
    data = copy.deepcopy(DEFAULT)
    for place, value in edits:
        try:
            if not place:
                data = value
                continue
            inner = data
            for part in place[:-1]:
                inner = inner[part]
            if isinstance(inner[place[-1]], dict):
                inner[place[-1]][key] = value
            else:
                inner[place[-1]] = value
        except (KeyError, IndexError, TypeError):  # the first edit has left no such place for the second
            continue
    assert "\n" not in said_of(lambda: params.parse(data, ROOT))


# -- files ------------------------------------------------------------------------------------------------------------


def told(path):
    with pytest.raises(UserError) as error:
        params.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("text", ["a: [", "a: 1\na: 2", "a: b: c", "\ta: 1", "a: 2001-13-01", "a: !!int x", "a: *b",
                                  "a: !!python/object:os.system x", "a: 1\n---\nb: 2", "a: \0"])  # fmt: skip
def test_a_file_that_is_not_yaml_is_told(text, tmp_path):
    (tmp_path / "params.yaml").write_text(text)
    assert told(tmp_path / "params.yaml").startswith("not valid YAML (")


def test_the_line_of_a_mistake_in_yaml_is_told(tmp_path):
    text = (ROOT / "params.yaml").read_text().splitlines()
    number = text.index("teacher:") + 1
    text.insert(number, "  nfe: [20")
    (tmp_path / "params.yaml").write_text("\n".join(text))
    line = int(told(tmp_path / "params.yaml").partition("line ")[2].partition(":")[0])
    assert number < line <= number + 2


@pytest.mark.parametrize("text", ["- 1", "", "text", "5", "null", "[]"])
def test_a_file_that_is_no_mapping_is_told(text, tmp_path):
    (tmp_path / "params.yaml").write_text(text)
    assert told(tmp_path / "params.yaml").startswith("must be a mapping of blocks")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    assert told(tmp_path / "params.yaml").startswith("no such file; run from the project's root")
    assert told(tmp_path).startswith("cannot be read")
    (tmp_path / "params.yaml").write_bytes(b"name: \xff\xfe")
    assert told(tmp_path / "params.yaml").startswith("not valid YAML")


def test_aliases_and_loops_are_no_trouble(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("nfe: [5]", "nfe: &again [5, *again]"))
    assert told(tmp_path / "params.yaml").startswith("nfe.1: must be an integer")
    (tmp_path / "params.yaml").write_text(text.replace("s4s_alt: {}", "s4s_alt: &me {me: *me}"))
    assert told(tmp_path / "params.yaml").startswith("learners.s4s_alt.me: unknown key")


LINES = (ROOT / "params.yaml").read_text().splitlines(keepends=True)


@given(st.lists(st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(["drop", "double", "indent", "cut", "swap"]),
                          st.integers(0, 40)), min_size=1, max_size=3))  # fmt: skip
def test_whatever_happens_to_a_line_of_the_file_is_right_or_told(edits):
    lines = list(LINES)
    for number, how, count in edits:
        line = lines[number]
        other = (number + 1) % len(lines)
        lines[number] = {"drop": "", "double": 2 * line, "indent": " " + line, "cut": line[:count] + "\n",
                         "swap": lines[other]}[how]  # fmt: skip
        if how == "swap":
            lines[other] = line
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_text("".join(lines))
        said = said_of(lambda: params.load(path))
        assert said == "" or said.startswith(f"{path}: ")
        assert "\n" not in said
