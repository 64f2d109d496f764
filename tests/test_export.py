"""A solver as a folder for a hub, and solvers that come from elsewhere."""

import json
import pipes
import subprocess
import sys
import warnings

import pytest
import torch
from click.testing import CliRunner
from pipeline import ROOT, edit
from problems import NOISES
from ruamel.yaml import YAML

from s4spipe import classical, models, steps
from s4spipe.cli import main
from s4spipe.errors import UserError
from s4spipe.sampling import sample
from s4spipe.scheduler import S4SScheduler

SD = NOISES["vp_discrete"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project after a run, as far as an export looks at it."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    cells = {"nfe": 4, "network_calls": 8, "fid": 1.25, "teacher_distance": 0.5}
    (tmp_path / "results").mkdir()
    metrics = {"teacher": {"nfe20": cells | {"nfe": 20}}, "ipndm": {"nfe4": cells}, "s4s": {"nfe5": cells}}
    (tmp_path / "results/metrics.json").write_text(json.dumps(metrics))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments, code=0):
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_a_solver_of_a_pipeline_is_exported_and_runs_from_its_folder(project):
    torch.manual_seed(0)
    pipe = pipes.saved(pipes.stable_diffusion(), project / "models/sd")
    origin = {"source": "someone/sd", "commit": "abc123"}
    (pipe / "s4spipe.json").write_text(json.dumps(origin))
    solvers = dict.fromkeys(YAML(typ="safe").load(project / "params.yaml")["classical"], "logsnr")
    edit(project, model={"kind": "diffusers", "weights": "models/sd", "condition": "prompts", "guidance": 3.0},
         prompts="p.txt", classical_steps=solvers)  # fmt: skip
    identity = models.identity({"kind": "diffusers", "weights": "models/sd"})
    meta = {"family": "lms", "model": identity, "params": {"init": "ipndm", "order": 3}}
    table = classical.build("ipndm", SD, steps.build("logsnr", SD, 4), meta)
    table.save("solvers/ipndm/4.json")
    said = call("ipndm", "4", "out")
    assert {line.split("/")[-1] for line in said.split()} == {"README.md", "scheduler_config.json", "solver.json"}
    card = (project / "out/README.md").read_text()
    front = YAML(typ="safe").load(card.split("---")[1])
    assert front["base_model"] == "someone/sd"
    for part in ("commit abc123", identity["fingerprint"], "| ipndm | 4 | 8 | 1.250 | 0.5000 |", "| teacher | 20 |",
                 "order: 3", "S4SScheduler.from_tableau", "guidance 3"):  # fmt: skip
        assert part in card
    for loaded in (S4SScheduler.from_tableau("out"), S4SScheduler.from_pretrained("out")):
        assert loaded.tableau.to_dict() == table.to_dict()
        assert (loaded.config.prediction_type, loaded.nfe) == ("epsilon", 4)
    assert "is there already" in call("ipndm", "4", "out", code=1)
    assert "has no ipndm of 5 evaluations" in call_after_copy(project)


def call_after_copy(project):
    (project / "solvers/ipndm/5.json").write_text((project / "solvers/ipndm/4.json").read_text())
    said = call("ipndm", "5", "other", code=1)
    assert not (project / "other").exists()
    return said


def test_a_solver_that_no_pipeline_can_run_is_exported_without_a_scheduler(project):
    noise = NOISES["ve"]
    classical.build("ipndm", noise, steps.build("edm", noise, 5), {"steps": "edm"}).save("solvers/s4s/5.json")
    call("s4s", "5", "out")
    assert {path.name for path in (project / "out").iterdir()} == {"README.md", "solver.json"}
    assert "Tableau.load" in (project / "out/README.md").read_text()


def test_a_solver_comes_from_another_project(tmp_path):
    table = classical.build("ipndm", SD, steps.build("logsnr", SD, 4))
    table.save(tmp_path / "solver.json")
    (tmp_path / "broken.json").write_text("{")
    dvc = f"{sys.executable} -m dvc"
    for command in (
        "git init -q", "git config user.email a@b.c", "git config user.name n", f"{dvc} init -q",
        f"{dvc} add -q solver.json", "git add .", "git commit -qm one", "git tag v1",
    ):  # fmt: skip
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    loaded = S4SScheduler.from_tableau("solver.json", repo=str(tmp_path), rev="v1")
    assert loaded.tableau.to_dict() == table.to_dict()
    with pytest.raises(UserError, match="no absent.json can be read from that project at v1"):
        S4SScheduler.from_tableau("absent.json", repo=str(tmp_path), rev="v1")
    with pytest.raises(UserError, match="broken.json of .* not valid JSON"):
        S4SScheduler.from_tableau("broken.json", repo=str(tmp_path))


def test_a_folder_that_is_no_scheduler_is_told(tmp_path):
    with pytest.raises(UserError, match="neither a file, nor a folder or a hub's id of a scheduler"):
        S4SScheduler.from_tableau(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        S4SScheduler.from_tableau("nowhere/solver.json")


def test_a_solver_on_another_model_is_warned_of():
    denoiser = models.load({"weights": "models/digits.safetensors"})
    noise = denoiser.noise_schedule
    own, other = denoiser.identity, denoiser.identity | {"source": "other", "fingerprint": "0" * 16}
    x = torch.randn(1, 1, 8, 8)
    for made_for in ({}, {"model": own}, {"model": "hand-made"}, {"model": {"source": "x"}}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sample(denoiser, classical.build("ddim", noise, steps.build("edm", noise, 2), made_for), 80 * x)
    with pytest.warns(UserWarning, match=r"was learned for other \(0{16}\), and runs on digits.safetensors"):
        sample(denoiser, classical.build("ddim", noise, steps.build("edm", noise, 2), {"model": other}), 80 * x)
