"""The command line, for what DVC's own commands do not do."""

import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support import finished
from support.pipeline import ROOT, edit
from support.problems import NOISES

from s4spipe.commands.cli import main
from s4spipe.pipeline import layout
from s4spipe.pipeline.layout import Cell
from s4spipe.sampling.tableau.lists import save_all
from s4spipe.solvers import registry, timesteps


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name in ("models/digits.safetensors", "models/features.safetensors", "data/digits.npy", "inputs/none.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    noise = NOISES["ve"]
    for name, solver, n in (("a", "ipndm", 10), ("b", "ddim", 10), ("c", "ddim", 4)):
        meta = {"schedule": "edm", "model": {"source": name}, "long": list(range(50))}
        registry.build(solver, noise, timesteps.build("edm", noise, n), meta).save(f"{name}.json")
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
    table = registry.build("ipndm", NOISES["ve"], timesteps.build("edm", NOISES["ve"], 10))
    assert f"{table.W[9, 9]:8.4f}".strip() in said
    assert "measured" not in said
    assert "no such file" in call("show", "absent.json", code=1)


@pytest.mark.parametrize("columns", ["1", "5", "6", "7", "-3", "x"])
def test_solvers_are_shown_in_the_narrowest_terminal(columns, project, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert "ipndm: 10 evaluations" in call("show", "a.json")
    assert "model.source: a" in call("compare", "a.json", "b.json")


def test_what_was_measured_of_a_solver_is_shown_with_it(project, tmp_path_factory):
    run = finished.make(tmp_path_factory.mktemp("run"))
    for cell in (Cell("s4s", 5), Cell("ddim", 5), run.teacher):
        path = run.places.learned("solvers", cell)[0] if cell.solver == "s4s" else run.places.table(cell)
        assert layout.cell_of(path) == (run.places, cell)
        said = call("show", str(path))
        assert f"  fid: {run.cells[cell]['fid']}" in said.split("measured:")[1].splitlines()
    ddim, s4s = (run.cells[Cell(solver, 5)]["fid"] for solver in ("ddim", "s4s"))
    assert f"measured.fid: {ddim} / {s4s}" in call(
        "compare", str(run.places.table(Cell("ddim", 5))), str(run.places.learned("solvers", Cell("s4s", 5))[0])
    )
    shutil.rmtree(run.places.run / "evaluations")
    assert "measured" not in call("show", str(path))
    for other in ("solver.json", "runs/digits/tables/ddim.json", "runs/digits/starts/s4s-5.json", "a-5.json"):
        assert layout.cell_of(other) is None


def test_two_solvers_are_compared(project):
    said = call("compare", "a.json", "b.json")
    assert "ipndm" in said.splitlines()[0]
    assert "model.source: a / b" in said
    difference = max(float(line.split()[2]) for line in said.splitlines() if line.startswith("largest difference"))
    a, b = (registry.build(s, NOISES["ve"], timesteps.build("edm", NOISES["ve"], 10)) for s in ("ipndm", "ddim"))
    assert difference == pytest.approx((a.W - b.W).abs().max().item(), rel=1e-2)
    assert "largest difference" not in call("compare", "a.json", "c.json")
    same = call("compare", "b.json", "b.json")
    assert "0 in W, 0 in c" in same


def test_a_solver_is_taken_from_a_file_with_several(project):
    tables = [registry.make("ddim", "edm", NOISES["ve"], nfe) for nfe in (3, 4, 4)]
    save_all(project / "several.json", tables)
    assert "3 evaluations" in call("show", "several.json", "--nfe", "3")
    for more in ([], ["--nfe", "4"], ["--nfe", "5"]):
        assert "has solvers with 3, 4, 4 evaluations" in call("show", "several.json", *more, code=1)
    call("sample", "several.json", "of3.png", "--count", "2", "--nfe", "3")
    tables[0].save(project / "of3.json")
    call("sample", "of3.json", "alone.png", "--count", "2")
    assert (project / "of3.png").read_bytes() == (project / "alone.png").read_bytes()


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
    said = call("estimate")
    assert "perceptual.weights: models/absent.pth is not there: put it there" in said
    assert f"{'samples':24} {10_000 * (20 + 10 * 5):>14,}" in said
    assert "time: about" in said
    assert "memory: about 0.0" in said
    assert "disk: 0.007 GB of samples" in said  # 11 arrays of 10,000 images of 64 bytes
    edit(project, learners={"s4s": {"order": 0}})
    assert "Error: params.yaml: learners.s4s.order: must be greater than or equal to 1" in call("estimate", code=1)
    assert torch.is_grad_enabled()


def test_without_the_extra_the_console_script_names_it(project):
    program = "import sys; sys.modules['click'] = None; sys.argv[1:] = ['show', 'a.json']"
    program += "; from s4spipe.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.endswith("needs click, which is not installed: pip install 's4spipe[pipeline]'")


@pytest.mark.parametrize(
    ("command", "module", "package"),
    [("diff a b", "revisions", "dvc"), ("sample b.json sheet.png", "figures", "matplotlib")],
)
def test_a_command_whose_extra_is_missing_names_it(project, monkeypatch, command, module, package):
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"s4spipe.report.{module}", raising=False)
    monkeypatch.delattr(f"s4spipe.report.{module}", raising=False)
    said = call(*command.split(), code=1)
    assert said.endswith(f"needs {package}, which is not installed: pip install 's4spipe[pipeline]'\n")
    assert len(said.splitlines()) == 1


def test_two_revisions_stand_on_one_page(project):
    run = finished.make(project, learned=["s4s"], refined=[])
    dvc = f"{sys.executable} -m dvc"

    def shell(*commands):
        for words in commands:
            subprocess.run(words.split(), cwd=project, check=True, capture_output=True)

    shell("git init -q", "git config user.email a@b.c", "git config user.name n", f"{dvc} init -q", "git add .",
          "git commit -qm one", "git tag v1")  # fmt: skip
    edit(project, classical=["ddim"])
    ideal = run.places.evaluation(run.teacher, "metrics.json")
    ideal.write_text(ideal.read_text().replace('"fid": 0.1', '"fid": 0.2'))
    assert call("diff", "v1", "workspace", "page.html").strip() == "page.html"
    shown = (project / "page.html").read_text(encoding="utf-8")
    assert "<td>teacher</td><td>20</td><td>0.100</td><td>0.200</td><td>+100.0</td>" in shown
    assert "<td>classical</td>" in shown
    assert "s4s · v1" in shown
    assert "no such experiment, branch, tag or commit" in call("diff", "v1", "v2", code=1)
    for no_commit in ("", "HEAD:params.yaml", "HEAD^{tree}", "v1..v1"):
        said = call("diff", no_commit, "workspace", code=1)
        assert said.startswith(f"Error: {no_commit or repr('')}: no such experiment, branch, tag or commit")
    assert "another run" in call("diff", "v1", "v1", code=1)
    ideal.unlink()
    shell("git commit -qam two")
    said = call("diff", "HEAD", "v1", code=1)
    assert said.startswith("Error: HEAD: runs/digits/evaluations/teacher-20/metrics.json: no such file")
    (project / ".git/HEAD").write_text("broken")
    assert "HEAD: git finds no commit of this project" in call("diff", "HEAD", "workspace", code=1)
    shutil.rmtree(project / ".git")
    assert "in no repository of git and DVC, or in a broken one" in call("diff", "HEAD", "workspace", code=1)
    shutil.rmtree(project / ".dvc")
    assert "in no repository of git and DVC, or in a broken one" in call("diff", "HEAD", "workspace", code=1)
