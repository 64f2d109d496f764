"""Presets: checked, described without downloading, and switched to without losing anything."""

import functools
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from support.parameters import DEFAULT
from support.pipeline import edit

from s4spipe.commands.cli import main
from s4spipe.pipeline import cost, params, presets, render, resolve, schema
from s4spipe.pipeline.layout import INPUT_SCHEDULES, NONE
from s4spipe.runtime.errors import UserError

NAMES = presets.names()
PROMPTS = ("inputs/prompts/examples.txt", "inputs/prompts/varied.txt")
OTHERS = [name for name in NAMES if name != "digits"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(render.params_yaml(DEFAULT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments, code=0):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.output


def load(path="params.yaml"):
    return YAML(typ="safe").load(Path(path))


def text_of(name):
    return render.params_yaml(presets.read(name)[0])


def overlay(name):
    """A preset's file as it is."""
    return YAML(typ="safe").load((presets.FOLDER / f"{name}.yaml").read_text())


def leaves(values, prefix=""):
    for key, value in values.items():
        inner = isinstance(value, dict) and key != "pipeline"  # which has no keys of ours
        yield from leaves(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]


# -- what they are ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_a_short_overlay_of_what_differs(name):
    assert len((presets.FOLDER / f"{name}.yaml").read_text().splitlines()) <= 60
    own = overlay(name)
    about = own.pop("about")
    assert set(about) <= {"title", "licence", "image", "gflop", "download", "yourself"}
    assert sorted(leaves(own)) == sorted(key for key, _ in presets.changes(DEFAULT, presets.read(name)[0]))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_right_and_has_a_run_of_its_own(name):
    values, about = presets.read(name)
    found = params.parse(values)
    assert found.model.name == name
    assert found.model_dump(exclude_none=True) == values
    assert set(found.fetch) == set(about.get("download", {}))
    assert all(size > 0 for size in about.get("download", {}).values())
    if name != "digits":
        assert len(about["image"]) == 3
        assert about["gflop"] > 0
        assert about["licence"]
    for path in (found.model.weights, found.perceptual.weights, found.fid.features, found.fid.real, found.prompts):
        there = name == "digits" or path in (*found.fetch, NONE, *PROMPTS)
        assert there or path in about["yourself"], path
    if found.model.kind == "edm":
        assert "non-commercial" in about["licence"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_presets_learners_look_through_its_perceptual_network(name):
    """As in the paper: LPIPS for S4S and S4S-Alt, and for whatever of the rivals is named; but it sees no videos."""
    found = params.parse(presets.read(name)[0])
    by_norm = {learner for learner in found.learners if resolve.learner(found, learner).distance == "pseudo_huber"}
    assert by_norm == (set(found.learners) if name in ("ltx_video", "wan21") else {"free", "free_bands", "gn"})
    assert found.perceptual.network == "lpips"
    for rival in ("ld3", "dss", "gs", "bns", "epd", "gn"):
        assert found.starts[rival].schedules == found.starts["s4s_alt"].schedules


def test_a_new_parameter_needs_no_edit_in_any_preset(monkeypatch):
    """One in a block, and a block of its own."""

    class Teacher(schema.Teacher):
        fresh: schema.Count = schema.key(3, "A new key.")

    class Params(schema.Params):
        teacher: Teacher = schema.key(Teacher(), "The teacher.")
        fresh: schema.Sample = schema.key(schema.Sample(), "A new block.")

    for module in (params, presets, render):
        monkeypatch.setattr(module, "Params", Params)
    for name in NAMES:
        values, _ = presets.read(name)
        found = params.parse(values)
        assert (found.teacher.fresh, found.fresh) == (3, schema.Sample())
        assert found.teacher.train == presets.read(name)[0]["teacher"]["train"]
        assert "  fresh: 3 " in render.params_yaml(values)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_described_without_a_download(name, project):
    before = (project / "params.yaml").read_bytes()
    said = call("preset", name, "--dry-run")
    values, about = presets.read(name)
    assert said.startswith(f"{name}: {about['title']}\n")
    assert (project / "params.yaml").read_bytes() == before
    assert {path.name for path in project.iterdir()} == {"params.yaml"}
    for path in values["fetch"]:
        assert f"download: {path}: " in said
        assert f", about {about['download'][path]} MB" in said
    assert ("GPU time: about" in said) is (name != "digits")
    assert ("disk: " in said) is (name != "digits")
    assert about.get("yourself", "") in said


def test_what_is_there_already_is_not_said_to_be_downloaded(project):
    (project / "models").mkdir()
    (project / "models/vgg16-397923af.pth").write_text("mine")
    said = call("preset", "cifar10", "--dry-run")
    assert "models/vgg16-397923af.pth: is there already\n" in said
    assert "inception-2015-12-05.pt, about 96 MB" in said


def test_presets_are_listed_and_an_unknown_one_is_told(project):
    said = call("preset")
    for name in NAMES:
        assert f"{name:14} {presets.read(name)[1]['title']}\n" in said
    before = (project / "params.yaml").read_bytes()
    for options in ([], ["--dry-run"]):
        assert "Error: unknown preset 'cifar1': did you mean 'cifar10'?" in call("preset", "cifar1", *options, code=1)
    assert (project / "params.yaml").read_bytes() == before


def test_the_cost_is_counted_by_hand():
    found = params.parse(presets.read("dit_xl_256")[0])
    evaluations = cost.network_evaluations(found)
    total = sum(found.nfe)  # 4 + 5 + 6 + 7; guidance counts twice
    assert evaluations["teacher pairs"] == 2 * 1400 * 20
    whitening = 100 * 5  # at the start of every phase of coefficients
    assert evaluations["learning s4s"] == 2 * (10 * (4 * 600 + 200) + whitening) * total
    assert evaluations["learning s4s_alt"] == 2 * ((2 + 16) * (4 * 1000 + 400) + 8 * whitening) * total
    free, refine = resolve.learner(found, "free"), found.refine
    newton = 64 * 5 * 4 + free.epochs * 6 * free.batch_size + (free.epochs + 2) * free.validation_pairs
    bfgs = 5 * refine.pairs * total  # and steps: 6, and more of them at 4 and 5 evaluations
    bfgs += (9 * 4 + 7 * 5 + 6 * 6 + 6 * 7) * (3 * refine.pairs + refine.validation_pairs)
    assert evaluations["learning free"] == 2 * (newton * total + bfgs)
    steps = resolve.learner(found, "free_bands").epochs  # at most, of plain numbers and then of bands
    newton = 64 * 5 * 4 + 2 * (steps * 6 * free.batch_size + (steps + 2) * free.validation_pairs)
    assert evaluations["learning free_bands"] == 2 * (newton * total + bfgs)
    assert evaluations["samples"] == 2 * 50_000 * (20 + 10 * total)
    assert len(evaluations) == 6
    assert cost.gpu_hours(found, 100) == pytest.approx(sum(evaluations.values()) * 100e9 / 50e12 / 3600)
    assert cost.sample_bytes(found, [3, 256, 256]) == 41 * 50_000 * 3 * 256 * 256


# -- switching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_switch_from_a_preset_gives_the_other_as_it_is_and_leaves_nothing_behind(name, project):
    said = call("preset", name)
    assert (project / "params.yaml").read_text() == text_of(name)
    call("preset", "digits")
    assert (project / "params.yaml").read_text() == render.params_yaml(DEFAULT)
    assert [path.name for path in project.iterdir()] == ["params.yaml"]
    assert "your change" not in said
    assert "the old params.yaml" not in said


MINE = {
    "nfe": [7],
    "sample": {"count": 20_000},
    "fid": {"count": 500},
    "run": {"launcher": "torchrun --nproc-per-node 2 -m"},
    "learned": ["s4s", "mine"],
    "starts": {"mine": {"solver": "ipndm", "schedules": ["logsnr"], "skip": []}},
    "learners": {"mine": {"epochs": 3, "pairs": 500}, "s4s": {"radius": 0.05}},
}


def test_what_the_user_changed_is_kept_and_said(project):
    edit(project, **MINE)
    mine = (project / "params.yaml").read_bytes()
    said = call("preset", "cifar10")
    now, preset = load(), presets.read("cifar10")[0]
    assert now == presets.merge(preset, MINE)
    for key, value in presets.changes(DEFAULT, presets.merge(DEFAULT, MINE)):
        assert f"kept your change: {key}: {render.flow(value)}\n" in said
    assert said.count("kept your change: ") == 8
    assert "did not keep" not in said
    assert "the old params.yaml is in params.before-cifar10.yaml" in said
    assert (project / "params.before-cifar10.yaml").read_bytes() == mine
    assert params.load().sample.count == 20_000


def test_what_belongs_to_the_model_is_left_out_and_said(project):
    edit(project, model={"guidance": 2.0, "source": "somewhere"}, fid={"count": 500, "real": "mine.npz"},
         fetch=["a.npz"], reference={"source": "real", "count": 99},
         perceptual={"weights": "models/mine.safetensors"})  # fmt: skip
    said = call("preset", "cifar10")
    left = {"model.guidance": "2.0", "model.source": "somewhere", "fid.real": "mine.npz", "fetch": "[a.npz]",
            "reference.source": "real", "perceptual.weights": "models/mine.safetensors"}  # fmt: skip
    for key, value in left.items():
        assert f"did not keep your change, as it belongs to the model: {key}: {value}\n" in said
    assert said.count("did not keep") == len(left)
    expected = presets.merge(presets.read("cifar10")[0], {"fid": {"count": 500}, "reference": {"count": 99}})
    assert load() == expected


def test_what_the_user_took_out_stays_out(project):
    """S4S is to have the learning rate of all; a rival is not wanted."""
    data = load()
    del data["learners"]["s4s"]["learning_rate"], data["learners"]["gn"], data["starts"]["gn"]
    YAML(typ="safe").dump(data, Path("params.yaml"))
    said = call("preset", "cifar10")
    for key in ("learners.s4s.learning_rate", "learners.gn", "starts.gn"):
        assert f"kept your change: {key} removed\n" in said
    now = load()
    assert "learning_rate" not in now["learners"]["s4s"]
    assert "gn" not in now["learners"]
    assert now["learners"]["s4s"]["pairs"] == 700


def test_changes_are_those_from_the_preset_that_the_file_was_made_from(project):
    """Not from the defaults: what came with the one preset does not stay when it goes."""
    call("preset", "sd15")
    edit(project, sample={"count": 300})
    said = call("preset", "cifar10")
    assert said.count("kept your change: ") == 1
    assert load() == presets.merge(presets.read("cifar10")[0], {"sample": {"count": 300}})


def test_a_file_of_another_name_was_made_from_the_preset_that_it_is_nearest_to(project):
    call("preset", "ffhq64")
    edit(project, model={"name": "mine", "guidance": 1.0}, refine={"steps": 4})
    assert call("preset", "sd15").count("your change") == 2
    assert load() == presets.merge(presets.read("sd15")[0], {"refine": {"steps": 4}})


def test_every_old_file_is_kept_and_none_is_written_over(project):
    texts = []
    for count in (101, 102, 103):
        (project / "params.yaml").write_text(render.params_yaml(DEFAULT) + f"# {count}\n")
        texts.append((project / "params.yaml").read_text())
        call("preset", "cifar10")
    for text, suffix in zip(texts, ("", "-2", "-3"), strict=True):
        assert (project / f"params.before-cifar10{suffix}.yaml").read_text() == text


@pytest.mark.parametrize("text", [b"nfe: [", b"old: {steps: 5}\n", b"\xff\xfe", b"", b"[]"])
def test_a_file_that_cannot_be_read_is_kept_whole_and_said(text, project):
    (project / "params.yaml").write_bytes(text)
    said = call("preset", "cifar10")
    assert "kept none of your changes, as the old file could not be read: params.yaml: " in said
    assert (project / "params.before-cifar10.yaml").read_bytes() == text
    assert (project / "params.yaml").read_text() == text_of("cifar10")


def test_without_a_file_there_is_nothing_to_keep(project):
    (project / "params.yaml").unlink()
    assert "your change" not in call("preset", "cifar10")
    assert (project / "params.yaml").read_text() == text_of("cifar10")
    assert [path.name for path in project.iterdir()] == ["params.yaml"]


def test_changes_that_do_not_go_with_the_preset_are_told_and_nothing_is_changed(project):
    edit(project, classical=["heun"], classical_schedules={"heun": "best"})
    before = (project / "params.yaml").read_bytes()
    said = call("preset", "cifar10", code=1)
    assert "Error: params.yaml: your changes do not go with the preset cifar10 (classical_schedules.heun: " in said
    assert (project / "params.yaml").read_bytes() == before
    assert [path.name for path in project.iterdir()] == ["params.yaml"]


def test_a_schedule_of_the_users_is_kept_as_long_as_its_file_is_there(project):
    (project / INPUT_SCHEDULES).mkdir(parents=True)
    (project / INPUT_SCHEDULES / "mine.json").write_text("[80.0, 1.0, 0.002]")
    edit(project, starts={"s4s": {"schedules": ["mine"]}})
    assert presets.switch("cifar10").kept == {"starts.s4s.schedules": ["mine"]}
    (project / INPUT_SCHEDULES / "mine.json").unlink()
    said = call("preset", "digits")
    assert "kept none of your changes" in said
    assert "starts.s4s.schedules: unknown schedule 'mine'" in said


def test_pairs_that_the_presets_teacher_does_not_make_are_told(project):
    edit(project, learners={"s4s_alt": {"pairs": 500}})
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=r"sd15 \(learners.s4s_alt.pairs: must be at most teacher.train = 400, got 500"):
        presets.switch("sd15")
    assert (project / "params.yaml").read_bytes() == before
    assert presets.switch("cifar10").kept == {"learners.s4s_alt.pairs": 500}


# Changes that go with every preset, and are those of none.
CHANGES = [
    {"nfe": [9]},
    {"sample": {"count": 77_777}, "fid": {"count": 7_777}},
    {"run": {"launcher": "a: b #", "device": "cpu"}},
    {"teacher": {"nfe": 33, "seed": 3}},
    {"classical": ["heun", "ddim"], "classical_schedules": {"heun": "edm", "ddim": [80.0, 0.002]}},
    {"learners": {"gs": {"radius": 0.7}, "s4s": {"radius": 1 / 3}}},
    {
        "learners": {"mine": {"learns": "joint"}},
        "starts": {"mine": {"solver": "ddim", "schedules": ["edm"], "skip": []}},
    },
    {"report": {"sheet_columns": 17}},
]


@pytest.mark.slow
@settings(max_examples=8)
@given(st.lists(st.sampled_from(CHANGES)), st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_there_and_back_is_the_same_file_byte_for_byte(changes, first, second):
    mine = functools.reduce(presets.merge, changes, {})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "params.yaml")
        before = render.params_yaml(presets.merge(presets.read(first)[0], mine))
        file.write_text(before)
        there = presets.switch(second, file)
        own = dict(presets.changes(presets.read(first)[0], YAML(typ="safe").load(before)))
        assert there.kept == own
        assert there.left_out == {}
        assert (there.backup is not None) is bool(own)
        assert YAML(typ="safe").load(file) == presets.merge(presets.read(second)[0], mine)
        assert presets.switch(first, file).kept == own
        assert file.read_text() == before
