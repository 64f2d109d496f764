"""The project without results, and all stages of its pipeline in one process, for tests with other models."""

import os
import shutil
import sys

import networkx
import pytest
from dvc.repo import Repo

from s4spipe.pipeline import render
from s4spipe.pipeline.schema import Params
from support.forks import FORK
from support.pipeline import ROOT


@pytest.fixture
def clone(tmp_path):
    """The project's own files, without results."""
    for name in ("dvc.yaml", ".dvc", "s4spipe", "stages", "inputs", "data", "models"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "params.yaml").write_text(render.params_yaml(Params().model_dump(exclude_none=True)), encoding="utf-8")
    (tmp_path / ".git").mkdir()
    return tmp_path


def run_all(project, *commands, code=0):
    """Run commands like `python -m stages.sample ddim 3` in one forked process, which ends with that exit code, and
    return what it said."""
    process = FORK.Process(target=run_stages, args=(str(project), [command.split()[2:] for command in commands]))
    process.start()
    process.join()
    said = (project / "said.txt").read_text(encoding="utf-8")
    assert process.exitcode == code, said
    return said


def run_stages(project, commands):
    import importlib

    os.chdir(project)
    sys.stderr = sys.stdout = open("said.txt", "w", encoding="utf-8")
    for module, *arguments in commands:
        importlib.import_module(module).main(arguments, standalone_mode=False)
    sys.stderr.flush()


def in_order(project):
    """The stages of dvc.yaml by these parameters, those that train the embedded model left out, each after its deps."""
    index = Repo(str(project), uninitialized=True).index
    own = {"train_digits", "train_features", "digits_images"}
    stages = reversed(list(networkx.topological_sort(index.graph)))
    return [stage for stage in stages if stage.name.partition("@")[0] not in own]
