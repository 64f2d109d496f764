"""A solver as a folder for a hub, and solvers that come from elsewhere."""

import json
import subprocess
import sys
import warnings

import diffusers
import pytest
import torch
from click.testing import CliRunner
from ruamel.yaml import YAML
from support import finished, pipes
from support.pipeline import ROOT
from support.problems import NOISES

import s4spipe
from s4spipe import models
from s4spipe.commands.cli import main
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import USUAL
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry, timesteps

SD = NOISES["vp_discrete"]


def call(*arguments, code=0):
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_a_solver_of_a_pipeline_is_exported_and_runs_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    pipe = pipes.saved(pipes.stable_diffusion(), tmp_path / "models/sd")
    (pipe / "s4spipe.json").write_text(json.dumps({"source": "someone/sd", "commit": "abc123"}))
    run = finished.make(
        tmp_path, SD, nfe=[4], classical=["ipndm", "ddim_afs"], learned=[], refined=[], prompts="p.txt",
        classical_schedules={**dict.fromkeys(USUAL, "logsnr"), "ddim_afs": "logsnr"},
        model={"name": "sd", "kind": "diffusers", "weights": "models/sd", "condition": "prompts", "guidance": 3.0},
    )  # fmt: skip
    identity = models.identity({"kind": "diffusers", "weights": "models/sd"})
    meta = {"family": "lms", "solver": "ipndm", "model": identity, "params": {"order": 3}}
    table = registry.build("ipndm", SD, timesteps.build("logsnr", SD, 4), meta)
    table.save(run.places.table(Cell("ipndm", 4)))
    said = call("ipndm", "4", "out")
    assert {line.split("/")[-1] for line in said.split()} == {"README.md", "scheduler_config.json", "solver.json"}
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    front = YAML(typ="safe").load(card.split("---")[1])
    assert front["base_model"] == "someone/sd"
    for part in ("commit abc123", identity["fingerprint"], "| ipndm | 4 | 4 | 2.000 | 0.5000 |", "| teacher | 20 |",
                 "order: 3", "s4spipe.apply(pipe, ", "guidance scale 3", "12,345 samples"):  # fmt: skip
        assert part in card
    for loaded in (S4SScheduler.from_tableau("out"), S4SScheduler.from_pretrained("out")):
        assert loaded.tableau.to_dict() == table.to_dict()
        assert (loaded.config.prediction_type, loaded.nfe) == ("epsilon", 4)
    assert "exists already" in call("ipndm", "4", "out", code=1)
    assert "did you mean 'ipndm-4'" in call("ipndm", "5", "other", code=1)
    # A first step without the network scales the noises, as `free` does.
    afs = registry.make("ddim_afs", "logsnr", SD, 4)
    call("ddim_afs", "4", "afs")
    made = diffusers.StableDiffusionPipeline.from_pretrained(pipe)
    made.set_progress_bar_config(disable=True)
    assert s4spipe.apply(made, "afs").scheduler.tableau.agrees(afs)
    assert len(made("a", num_inference_steps=4, output_type="np").images) == 1
    (pipe / "scheduler/scheduler_config.json").unlink()
    assert "scheduler_config.json" in call("ipndm", "4", "other", code=1)
    assert not [path for path in tmp_path.iterdir() if "other" in path.name]


def test_a_solver_that_no_pipeline_can_run_is_exported_with_code_that_runs_it(tmp_path, monkeypatch):
    finished.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    call("s4s", "5", "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "solver.json"}
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/weights", str(ROOT / "models/digits.safetensors"))
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    exec(code, names)
    assert names["x_0"].shape == (16, 1, 8, 8)


def test_a_solver_comes_from_another_project(tmp_path):
    table = registry.build("ipndm", SD, timesteps.build("logsnr", SD, 4))
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
            sample(denoiser, registry.build("ddim", noise, timesteps.build("edm", noise, 2), made_for), 80 * x)
    with pytest.warns(UserWarning, match=r"was learned for other \(0{16}\), and runs on digits.safetensors"):
        sample(denoiser, registry.build("ddim", noise, timesteps.build("edm", noise, 2), {"model": other}), 80 * x)
