"""What every stage gets out of params.yaml: the device, the model, and a sentence for a mistake."""

import importlib
import re
import shutil
import subprocess
import sys
import threading

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.parameters import changed
from support.pipeline import ROOT
from tqdm import tqdm

from s4spipe import models
from s4spipe.pipeline import params, render, stage
from s4spipe.pipeline.schema import Model, Params, Run
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError
from stages import hiding


def on(device):
    return Params(run=Run(device=device))


def test_devices():
    assert stage.device(on("cpu")) == torch.device("cpu")
    assert stage.device(Params()).type in ("cpu", "cuda")
    for absent in ("cuda:99", "gpu", "hpu", "privateuseone", "mtia"):
        with pytest.raises(UserError, match=f"run.device: '{absent}' is not available.* use auto or cpu"):
            stage.device(on(absent))
    with pytest.raises(UserError, match="run.device: 'meta' holds no numbers; use auto or cpu"):
        stage.device(on("meta"))


def test_every_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    for name, value in {"S4SPIPE_LAUNCHED_BY": "a test", "WORLD_SIZE": "8", "RANK": "6", "LOCAL_RANK": "6"}.items():
        monkeypatch.setenv(name, value)
    assert {str(stage.device(on(name))) for name in ("auto", "cuda")} == {"cuda:2"}
    assert str(stage.device(on("cuda:1"))) == "cuda:1"


def test_the_models_settings_are_the_block_and_the_prompts_of_the_run():
    settings = stage.model_settings(Params())
    assert settings == models.ModelSettings.of(Model().model_dump())
    assert (settings.name, settings.condition, settings.embeddings) == ("digits", "labels", None)
    schedules = ("classical_schedules", dict.fromkeys(Params().classical, "edm"))
    prompted = params.parse(changed(("model.name", "mine"), ("model.kind", "diffusers"), schedules,
                                    ("model.condition", "prompts"), ("prompts", "mine.txt")))  # fmt: skip
    assert stage.model_settings(prompted).embeddings == "runs/mine/prompts.safetensors"
    assert stage.layout(prompted).run.as_posix() == "runs/mine"


@pytest.mark.parametrize("condition", ["labels", "none"])
def test_the_model_is_loaded_as_its_block_says(condition, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = params.parse(changed(("model.condition", condition), ("model.guidance", 2.0), ("run.device", "cpu")))
    denoiser = stage.load_model(found, channels_last=True)
    assert (denoiser.conditional, denoiser.guidance, denoiser.device.type) == (condition == "labels", 2.0, "cpu")
    assert denoiser.net.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A stage in a project of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "_follow_parent", lambda: None)

    @stage.command
    @click.argument("name")
    def main(params, name):
        if name == "wrong":
            raise UserError("name: wrong")
        click.echo(f"{name} at {params.nfe}")

    return lambda *arguments: CliRunner().invoke(main, arguments)


def test_a_stage_gets_the_parameters_of_its_project(command, tmp_path):
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed(("nfe", [4, 7]))))
    done = command("this")
    assert (done.exit_code, done.output) == (0, "this at [4, 7]\n")


def test_a_stage_tells_a_mistake_in_a_line_and_ends_with_an_error(command, tmp_path, monkeypatch):
    assert command("this").output == "Error: params.yaml: no such file; run from the project's root\n"
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed(("nfe", [0]))))
    done = command("this")
    assert done.exit_code == 1
    assert done.output.startswith("Error: params.yaml: nfe.0: must be ")
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed()))
    done = command("wrong")
    assert (done.exit_code, done.output) == (1, "Error: name: wrong\n")
    for name, value in {"S4SPIPE_LAUNCHED_BY": "a test", "WORLD_SIZE": "4", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert command("wrong").output == "Error (process 3): name: wrong\n"


@pytest.mark.parametrize(
    "words", ["real", "teacher_pairs", "learn solvers s4s 5", "sample solvers s4s 5", "evaluate s4s 5"]
)
def test_a_stage_waits_for_itself_with_the_same_arguments_alone(words, tmp_path, monkeypatch):
    def alone(name, tell):
        raise UserError(name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "_follow_parent", lambda: None)
    monkeypatch.setattr(stage, "alone", alone)
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed()))
    name, *arguments = words.split()
    done = CliRunner().invoke(importlib.import_module(f"stages.{name}").main, arguments)
    assert (done.exit_code, done.output) == (1, f"Error: {words.replace(' ', '-')}\n")


def test_a_rank_of_a_launcher_does_not_wait_for_another(command, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed()))
    monkeypatch.setattr(stage, "alone", None)
    for name, value in {"S4SPIPE_LAUNCHED_BY": "a test", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert command("this").exit_code == 0


def test_a_stage_tells_what_the_system_refuses(command, tmp_path):
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed()))
    (tmp_path / ".s4spipe").touch()
    done = command("this")
    assert done.exit_code == 1
    assert done.output.startswith("Error: .s4spipe")
    assert "move away the file that stands in the place of a folder" in done.output


def cuda_is_full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")


def library_is_full():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize(("work", "said"), [
    (lambda: torch.empty(10**15), "allocate"), (lambda: np.empty(10**15), "Unable to allocate"),
    (lambda: bytearray(10**17), "MemoryError"), (cuda_is_full, "CUDA out of memory"), (library_is_full, "ALLOC_FAILED"),
])  # fmt: skip
def test_a_stage_tells_that_memory_is_short_and_what_needs_less(work, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed()))
    done = CliRunner().invoke(stage.command(lambda params: work()), [])
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert re.fullmatch(rf"Error: out of memory \(.*{said}.*\): lower run.batch_size, or run.micro_batch_size.*", line)
    assert len(line) < 410


def test_a_fault_of_another_kind_is_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed()))
    done = CliRunner().invoke(stage.command(lambda params: torch.ones(2) @ torch.ones(3)), [])
    assert isinstance(done.exception, RuntimeError)


def test_a_stage_without_streams_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed()))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert list(distributed.progress(range(3), "steps")) == [0, 1, 2]  # for those who call it from Python
    seen = []

    @stage.command
    def main(params):
        seen.extend(tqdm(range(3), "steps", disable=None))
        print("done", file=sys.stderr)
        raise UserError("told to nobody")

    with pytest.raises(SystemExit, match="1"):
        main.main([], standalone_mode=False)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(("variable", "follows"), [
    (None, False), ("DVC_STAGE", True), (distributed.MARK, True), ("TORCHELASTIC_RUN_ID", True),
])  # fmt: skip
def test_a_stage_follows_dvc_or_a_launcher_and_not_a_shell(variable, follows, monkeypatch):
    """nohup, setsid and `&` at the end of a line: a user's own stage goes on when the shell ends."""
    for name in ("DVC_STAGE", distributed.MARK, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "x")
    started = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    stage._follow_parent()
    assert len(started) == follows


def test_a_file_that_hides_a_library_is_told_before_the_library_is_missed(tmp_path):
    (tmp_path / "yaml").mkdir()  # without code, Python prefers the library
    for name in ("net.py", "test.py", "time.py", "random.txt", "s4spipe.py"):
        (tmp_path / name).touch()
    assert hiding(str(tmp_path)) is None
    for name in ("yaml/__init__.py", "torch.py", "random.py"):
        (tmp_path / name).touch()
        assert hiding(str(tmp_path)) == name.split("/")[0]
    (tmp_path / "stages").mkdir()
    for name in ("__init__.py", "sample.py"):
        shutil.copy(ROOT / "stages" / name, tmp_path / "stages")
    command = [sys.executable, "-m", "stages.sample", "tables", "ddim", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "Error: random.py: Python would import it instead of the library of the same name; rename it"
    ]
