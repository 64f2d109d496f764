"""Presets: complete, checked, described without downloading, and switched to without losing anything."""

import shutil

import pytest
from click.testing import CliRunner
from pipeline import ROOT
from ruamel.yaml import YAML

from s4spipe import cost, params, presets
from s4spipe.cli import main

NAMES = [path.stem for path in (ROOT / "presets").glob("*.yaml") if path.stem != "about"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments, code=0):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_complete_and_described_without_a_download(name, project):
    before = (project / "params.yaml").read_bytes()
    said = call("preset", name, "--dry-run")
    assert said.startswith(f"{name}: ")
    assert (project / "params.yaml").read_bytes() == before
    assert {path.name for path in project.iterdir()} == {"presets", "params.yaml"}
    settings, about = presets.read(name)
    for path in settings.fetch:
        assert f"download: {path}: " in said
        assert about["download"][path] > 0
    if name != "digits":
        assert "GPU time: about" in said
        assert "disk: " in said
        default = YAML(typ="safe").load(ROOT / "params.yaml")
        own = YAML(typ="safe").load(ROOT / f"presets/{name}.yaml")
        assert set(own) == set(default)
        assert own["model"]["solvers"] == f"solvers/{name}"  # beside those of other models
        assert own["fid"]["reference"] == f"models/{name}-reference.safetensors"
    if settings.model.kind == "edm":
        assert "non-commercial" in said


def test_a_switch_loses_no_change_of_the_users(project):
    mine = (project / "params.yaml").read_text().replace("nfe: [5]", "nfe: [7]")
    (project / "params.yaml").write_text(mine)
    assert "what it was is in params.before-cifar10.yaml" in call("preset", "cifar10")
    assert (project / "params.yaml").read_bytes() == (project / "presets/cifar10.yaml").read_bytes()
    assert (project / "params.before-cifar10.yaml").read_text() == mine
    again = mine.replace("nfe: [7]", "nfe: [8]")
    (project / "params.yaml").write_text(again)
    assert "params.before-cifar10-2.yaml" in call("preset", "cifar10")
    assert (project / "params.before-cifar10.yaml").read_text() == mine
    assert (project / "params.before-cifar10-2.yaml").read_text() == again
    call("preset", "sd15")  # a preset as it was leaves nothing behind
    assert len(list(project.iterdir())) == 4


def test_presets_are_listed_and_an_unknown_one_is_told(project):
    said = call("preset")
    assert all(name in said for name in NAMES)
    assert "Error: unknown preset 'cifar1': did you mean 'cifar10'?" in call("preset", "cifar1", code=1)


def test_the_cost_is_counted_by_hand():
    settings = params.load(ROOT / "presets/dit_xl_256.yaml")
    evaluations = cost.network_evaluations(settings)
    total = sum(settings.nfe)  # 4 + 5 + 6 + 7; guidance counts twice
    assert evaluations["teacher pairs"] == 2 * 1400 * 20
    assert evaluations["learning s4s"] == 2 * 10 * (4 * 600 + 200) * total
    assert evaluations["learning s4s_alt"] == 2 * (2 + 16) * (4 * 1000 + 400) * total
    fit, refine = settings.fit, settings.refine
    newton = 64 * 5 * 4 + fit.steps * 6 * fit.batch_size + (fit.steps + 2) * fit.validation_pairs
    bfgs = 4 * refine.pairs + refine.steps * (3 * refine.pairs + refine.validation_pairs)
    assert evaluations["learning free"] == 2 * (newton + bfgs) * total
    assert evaluations["samples"] == 2 * 50_000 * (20 + 9 * total)
    assert cost.gpu_hours(settings, 100) == pytest.approx(sum(evaluations.values()) * 100e9 / 50e12 / 3600)
    assert cost.sample_bytes(settings, [3, 256, 256]) == 37 * 50_000 * 3 * 256 * 256
