"""The real pipeline at a tiny size, in a clone of its own, for the tests that run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

from s4spipe.pipeline import presets
from support import quick_python

ROOT = Path(__file__).parent.parent.parent
GIT = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
       for what, value in {"NAME": "a tester", "EMAIL": "tester@example.com"}.items()}  # fmt: skip
TINY = {
    "nfe": [3],
    "classical": ["ddim"],
    "refined": ["free"],
    "teacher": {"nfe": 6, "train": 24, "validation": 12},
    "starts": {"free": {"solver": "dpmpp_3m", "schedules": ["edm", "logsnr"], "skip": [0.0, 0.2]},
               "s4s_alt": {"solver": "dpmpp_3m"}},  # at NFE 3 it looks back two evaluations: order 2 may be tried
    "learner_defaults": {"pairs": 24, "validation_pairs": 12, "batch_size": 8, "warmup_epochs": 1, "alternations": 1},
    "learners": {"s4s": {"validation_pairs": 12, "epochs": 1},
                 "free": {"validation_pairs": 12, "batch_size": 8, "epochs": 2},
                 "gn": {"batch_size": 8, "epochs": 2}},
    "refine": {"pairs": 24, "validation_pairs": 12, "steps": 2},
    "gits": {"grid": 8, "noises": 20},
    "statistics": {"samples": 40, "grid": 10, "nfe": 4},
    "sample": {"count": 100},
    "run": {"batch_size": 16, "device": "cpu"},
}  # fmt: skip


def run(project, *command, ok=True):
    path = f"{quick_python.folder()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Coverage would more than double the time that DVC itself takes. The stages count in the quick python's server.
    environment = quick_python.uncounted(os.environ) | {"PATH": path} | GIT
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def ran(output):
    """The stages that a `dvc repro` ran (or would run, with --dry)."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")}


def edit(project, **blocks):
    """Change params.yaml: blocks are merged into what is there, key by key."""
    path = project / "params.yaml"
    YAML(typ="safe").dump(presets.merge(YAML(typ="safe").load(path), blocks), path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the files that git knows, with tiny parameters, after one `dvc repro`, which all processes share."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "clone"
    with FileLock(f"{shared}.lock"):
        if not (shared / "runs/digits/report/table.md").exists():
            shutil.rmtree(shared, ignore_errors=True)
            build(shared)
    return shutil.copytree(shared, tmp_path_factory.mktemp("project") / "clone")


def build(folder):
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, encoding="utf-8").splitlines():
        if (ROOT / name).exists() and not name.startswith("runs/digits/report/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name, follow_symlinks=False)
    prune(folder / "dvc.lock")
    run(folder, "git", "init", "-q")
    edit(folder, **TINY)
    # A fresh clone starts from the trained model.
    assert not ran(run(folder, "dvc", "repro")) & {"train_digits", "train_features@features", "reference@digits"}


def prune(path):
    """Leave out the entries that a tiny run replaces or has no use for: DVC reads them all for every stage."""
    lock = YAML(typ="safe").load(path)
    kept = ("train_digits", "train_features@features", "train_features@perceptual", "digits_images")
    kept += tuple(f"{name}@digits" for name in ("reference", "real", "prompts", "schedules"))
    lock["stages"] = {name: lock["stages"][name] for name in kept}
    YAML(typ="safe").dump(lock, path)


@pytest.fixture
def edited(project):
    """Edits params.yaml for one test, and leaves params.yaml and the results as they were: others use them next."""
    before, lock = (project / "params.yaml").read_text(encoding="utf-8"), (project / "dvc.lock").read_bytes()
    yield lambda **blocks: edit(project, **blocks)
    (project / "params.yaml").write_text(before, encoding="utf-8")
    if (project / "dvc.lock").read_bytes() != lock:
        run(project, "dvc", "repro", "-q")
