"""The command line where DVC's verbs are not enough."""

import shutil

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pipeline import ROOT, edit
from problems import NOISES

from s4spipe import classical, steps
from s4spipe.cli import main


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("digits.safetensors", "features.safetensors", "digits.npy"):
        shutil.copy(ROOT / "models" / name, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    noise = NOISES["ve"]
    for name, solver, n in (("a", "ipndm", 10), ("b", "ddim", 10), ("c", "ddim", 4)):
        meta = {"steps": "edm", "model": {"source": name}, "long": list(range(50))}
        classical.build(solver, noise, steps.build("edm", noise, n), meta).save(f"{name}.json")
    return tmp_path


def call(*arguments, code=0):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_a_solver_is_shown_within_the_terminals_width(project):
    said = call("show", "a.json")
    assert said.startswith("ipndm: 10 evaluations (depth 10) in 10 steps, for ve noise (sigma_min 0.002, sigma_max 80)")
    assert all(len(line) <= 80 for line in said.splitlines()[1:])
    assert "source: a" in said
    assert "long" not in said
    table = classical.build("ipndm", NOISES["ve"], steps.build("edm", NOISES["ve"], 10))
    assert f"{table.W[9, 9]:8.4f}".strip() in said
    assert "no such file" in call("show", "absent.json", code=1)


def test_two_solvers_are_compared(project):
    said = call("compare", "a.json", "b.json")
    assert "ipndm" in said.splitlines()[0]
    assert "model.source: a / b" in said
    difference = max(float(line.split()[2]) for line in said.splitlines() if line.startswith("largest difference"))
    a, b = (classical.build(s, NOISES["ve"], steps.build("edm", NOISES["ve"], 10)) for s in ("ipndm", "ddim"))
    assert difference == pytest.approx((a.W - b.W).abs().max().item(), rel=1e-2)
    assert "largest difference" not in call("compare", "a.json", "c.json")
    same = call("compare", "b.json", "b.json")
    assert "0 in W, 0 in c" in same


def test_a_sheet_is_sampled_without_dvc(project):
    assert "sheet.png: 4 images" in call("sample", "b.json", "sheet.png", "--count", "4")
    first = (project / "sheet.png").read_bytes()
    assert Image.open(project / "sheet.png").size[0] > 200
    call("sample", "b.json", "again.png", "--count", "4")
    assert (project / "again.png").read_bytes() == first
    call("sample", "b.json", "other.png", "--count", "4", "--seed", "1")
    assert (project / "other.png").read_bytes() != first
    assert "must" not in call("sample", "b.json", "sheet.jpg", code=1)
    assert "ends in .png" in call("sample", "b.json", "sheet.jpg", code=1)


def test_parameters_are_checked_before_a_long_run(project):
    edit(project, run={"batch_size": 8, "device": "cpu"}, perceptual={"weights": "models/absent.pth"})
    said = call("check")
    assert "perceptual.weights: models/absent.pth is not there: put it there" in said
    assert f"{'samples':24} {10_000 * (20 + 9 * 5):>14,}" in said
    assert "time: about" in said
    assert "disk: 0.0064 GB of samples" in said  # 10 arrays of 10,000 images of 64 bytes
    edit(project, s4s={"order": 0})
    assert "Error: params.yaml: s4s.order: must be greater than or equal to 1" in call("check", code=1)
    assert torch.is_grad_enabled()
