"""The real pipeline at a tiny size, in a clone of its own, for the tests that run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import quick_python
from filelock import FileLock
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
GIT = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
       for what, value in {"NAME": "a tester", "EMAIL": "tester@example.com"}.items()}  # fmt: skip
TINY = {
    "nfe": [3],
    "classical": ["ddim"],
    "learned": [],
    "teacher": {"nfe": 6, "train": 24, "validation": 12},
    "s4s": {"pairs": 24, "validation_pairs": 12, "batch_size": 8, "epochs": 1},
    "s4s_alt": {"pairs": 24, "validation_pairs": 12, "batch_size": 8, "warmup_epochs": 1, "alternations": 1},
    "fit": {"pairs": 24, "validation_pairs": 12, "batch_size": 8, "steps": 2, "starts": ["edm", "logsnr"]},
    "refine": {"pairs": 24, "validation_pairs": 12, "steps": 2},
    "gits": {"grid": 8, "noises": 20},
    "sample": {"count": 100},
    "run": {"batch_size": 16, "device": "cpu"},
}


def run(project, *command, ok=True):
    path = f"{quick_python.folder()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | GIT
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def ran(output):
    """The stages that a `dvc repro` ran (or would run, with --dry)."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")}


def edit(project, **blocks):
    path = project / "params.yaml"
    data = YAML(typ="safe").load(path)
    for name, value in blocks.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    YAML(typ="safe").dump(data, path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the files that git knows, with tiny parameters, after one `dvc repro`, which all processes share."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "clone"
    with FileLock(f"{shared}.lock"):
        if not (shared / "results/table.md").exists():
            shutil.rmtree(shared, ignore_errors=True)
            build(shared)
    return shutil.copytree(shared, tmp_path_factory.mktemp("project") / "clone")


def build(folder):
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if (ROOT / name).exists() and not name.startswith("results/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    prune(folder / "dvc.lock")
    run(folder, "git", "init", "-q")
    edit(folder, **TINY)
    # A fresh clone starts from the trained model.
    assert not ran(run(folder, "dvc", "repro")) & {"train_digits", "train_features", "train_perceptual", "reference"}


def prune(path):
    """Leave out the entries that a tiny run replaces or has no use for: DVC reads them all for every stage."""
    lock = YAML(typ="safe").load(path)
    kept = (
        "train_digits",
        "train_features",
        "train_perceptual",
        "digits_images",
        "reference",
        "reference_solver",
        "real",
        "embed",
    )
    lock["stages"] = {name: lock["stages"][name] for name in kept}
    YAML(typ="safe").dump(lock, path)


@pytest.fixture
def edited(project):
    """Edits params.yaml for one test."""
    before = (project / "params.yaml").read_text()
    yield lambda **blocks: edit(project, **blocks)
    (project / "params.yaml").write_text(before)
