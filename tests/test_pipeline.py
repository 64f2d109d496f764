"""The real pipeline, at a tiny size, in a clone of its own."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import networkx
import pytest
import stage_process
from dvc.repo import Repo
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
TINY = {
    "nfe": [3],
    "classical": ["ddim"],
    "learned": [],
    "teacher": {"nfe": 6, "train": 24, "validation": 12},
    "s4s": {"pairs": 24, "validation_pairs": 12, "batch_size": 8, "epochs": 1},
    "s4s_alt": {"pairs": 24, "validation_pairs": 12, "batch_size": 8, "warmup_epochs": 1, "alternations": 1},
    "sample": {"count": 100},
    "run": {"batch_size": 16, "device": "cpu"},
}
pytestmark = pytest.mark.slow


def run(project, *command, ok=True):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
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
    """A copy of the files that git knows, with tiny parameters, after one `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    run(folder, "git", "init", "-q")
    edit(folder, **TINY)
    output = run(folder, "dvc", "repro")
    # A fresh clone starts from the trained model.
    assert not ran(output) & {"train_digits", "train_features"}
    return folder


@pytest.fixture
def edited(project):
    """Edits params.yaml for one test."""
    before = (project / "params.yaml").read_text()
    yield lambda **blocks: edit(project, **blocks)
    (project / "params.yaml").write_text(before)


def test_results_hold_exactly_the_cells_that_params_name(project):
    metrics = json.loads((project / "results/metrics.json").read_text())
    assert {solver: list(cells) for solver, cells in metrics.items()} == {
        "teacher": ["nfe6"],
        "ddim": ["nfe3"],
        "s4s": ["nfe3"],
        "s4s_alt": ["nfe3"],
    }
    assert all(
        cell["fid"] > 0 and cell["seconds_per_sample"] > 0 for cells in metrics.values() for cell in cells.values()
    )
    assert metrics["teacher"]["nfe6"]["teacher_distance"] == 0
    figures = {path.name for path in (project / "results/figures").iterdir()}
    assert figures == {"fid.png", "loss-3.png", "samples-3.png", "coefficients-3.png"}


def test_a_second_repro_runs_nothing(project):
    assert ran(run(project, "dvc", "repro")) == set()
    assert "up to date" in run(project, "dvc", "status")


CHANGES = {
    "s4s_alt": ({"s4s_alt": {"learning_rate": 0.07}}, {"refine_s4s_alt@3"},
                {"sample_learned@s4s_alt-3", "evaluate_fid_learned@s4s_alt-3", "report"}),
    "s4s": ({"s4s": {"radius": 0.5}}, {"fit_s4s@3"},
            {"sample_learned@s4s-3", "evaluate_fid_learned@s4s-3", "report"}),
    "schedule": ({"classical_steps": {"ddim": "vp_uniform"}}, {"classical@ddim-3"},
                 {"sample@ddim-3", "evaluate_fid@ddim-3", "report"}),
    "fid": ({"fid": {"count": 80}}, {"evaluate_fid_teacher", "evaluate_fid@ddim-3", *(
        f"evaluate_fid_learned@{solver}-3" for solver in ("s4s", "s4s_alt"))}, {"report"}),
    "report": ({"report": {"sheet_columns": 5}}, {"report"}, set()),
    "run": ({"run": {"batch_size": 50}}, set(), set()),
}  # fmt: skip


@pytest.mark.parametrize(("change", "first", "after"), CHANGES.values(), ids=CHANGES)
def test_a_change_runs_what_it_touches_and_nothing_else(change, first, after, project, edited):
    """The stages that a changed parameter makes out of date, and those that depend on them."""
    edited(**change)
    assert ran(run(project, "dvc", "repro", "--dry")) == first
    index = Repo(str(project)).index
    stages = {stage.name: stage for stage in index.stages}
    assert {s.name for name in first for s in networkx.ancestors(index.graph, stages[name])} == after


ADDITIONS = {
    "an NFE": ({"nfe": [3, 4]},
               {"classical@ddim-4", "sample@ddim-4", "evaluate_fid@ddim-4", "fit_s4s@4", "refine_s4s_alt@4", "report",
                *(f"{stage}_learned@{s}-4" for stage in ("sample", "evaluate_fid") for s in ("s4s", "s4s_alt"))}),
    "an arm": ({"learned": ["gs"]}, {"learn_arm@gs-3", "sample_arm@gs-3", "evaluate_fid_arm@gs-3", "report"}),
    "a solver": ({"classical": ["ddim", "ipndm"]},
                 {"classical@ipndm-3", "sample@ipndm-3", "evaluate_fid@ipndm-3", "report"}),
}  # fmt: skip


@pytest.mark.parametrize(("change", "stages"), ADDITIONS.values(), ids=ADDITIONS)
def test_an_addition_runs_its_own_cells_and_dropped_again_it_is_in_no_result(change, stages, project, edited):
    results = [project / "results" / name for name in ("metrics.json", "fid.csv", "table.md")]
    fids = {path: path.read_text() for path in results}
    edited(**change)
    assert ran(run(project, "dvc", "repro")) == stages
    assert all(path.read_text() != fids[path] for path in results)
    edited(**{key: TINY[key] for key in change})
    assert ran(run(project, "dvc", "repro")) == {"report"}
    assert {path: path.read_text() for path in results} == fids
    assert not list((project / "results/figures").glob("*-4.png"))


# Every stage, where it can be killed: its module and arguments, its outs, and what makes it short.
STAGES = {
    "train_digits": (["train_digits"], ["tiny/model.safetensors"],
                     {"model": {"weights": "tiny/model.safetensors"}, "train_digits": {"steps": 20, "batch_size": 16}}),
    "train_features": (["train_features"], ["tiny/features.safetensors"],
                       {"fid": {"features": "tiny/features.safetensors"}, "train_features": {"epochs": 3}}),
    "reference": (["reference"], ["tiny/reference.safetensors"],
                  {"fid": {"reference": "tiny/reference.safetensors"}, "reference": {"count": 100, "nfe": 4}}),
    "teacher": (["classical", "teacher", "6"], ["solvers/teacher/6.json"], {}),
    "teacher_pairs": (["teacher_pairs"], ["pairs/train.safetensors", "pairs/validation.safetensors"], {}),
    "classical": (["classical", "ddim", "3"], ["solvers/ddim/3.json"], {}),
    "fit_s4s": (["fit_s4s", "3"], ["solvers/s4s/3.json", "solvers/s4s/3.history.json"], {"s4s": {"epochs": 2}}),
    "refine_s4s_alt": (["refine_s4s_alt", "3"], ["solvers/s4s_alt/3.json", "solvers/s4s_alt/3.history.json"], {}),
    "sample": (["sample", "ddim", "3"], ["samples/ddim-3.npy"], {}),
    "evaluate_fid": (["evaluate_fid", "ddim", "3"], ["evaluations/ddim-3.json"], {}),
    "report": (["report"], ["results/metrics.json", "results/fid.csv", "results/table.md", *(
        f"results/figures/{name}.png" for name in ("fid", "loss-3", "samples-3", "coefficients-3"))], {}),
}  # fmt: skip
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload([f"stages.{arguments[0]}" for arguments, _, _ in STAGES.values()])


@pytest.mark.parametrize(("command", "outs", "short"), STAGES.values(), ids=STAGES)
def test_killed_anywhere_and_run_again_a_stage_ends_the_same(command, outs, short, project, edited):
    """Files change by renames alone, so dying before each of some renames covers every moment between them."""
    edited(**short)
    outs = [project / out for out in outs]

    def start(die_before=None):
        for out in outs:
            out.unlink(missing_ok=True)  # as DVC does
        process = FORK.Process(target=stage_process.run, args=(project, *command), kwargs={"die_before": die_before})
        process.start()
        process.join()
        return process.exitcode

    assert start() == 0
    undisturbed = [out.read_bytes() for out in outs]
    renames = int((project / stage_process.COUNT).read_text())
    for die_before in sorted({1, renames // 2 + 1, renames}):
        assert start(die_before) == -signal.SIGKILL
        standing = [(out.read_bytes(), whole) for out, whole in zip(outs, undisturbed, strict=True) if out.exists()]
        assert all(found == whole for found, whole in standing)
        assert start() == 0
        assert [out.read_bytes() for out in outs] == undisturbed
        assert int((project / stage_process.COUNT).read_text()) <= renames
        assert not any((project / ".s4spipe").iterdir())
    for out in outs:
        assert not list(out.parent.glob(".*.tmp*"))


MISTAKES = {
    "misspelt key": ({"s4s": {"lerning_rate": 1.0}}, "fit_s4s@3", "did you mean 'learning_rate'?"),
    "unknown schedule": ({"s4s_alt": {"steps": "logsn"}}, "refine_s4s_alt@3", "did you mean 'logsnr'?"),
    "unknown solver": (
        {"classical": ["ddmi"], "classical_steps": {"ddmi": "edm"}},
        "classical",
        "did you mean 'ddim'?",
    ),
    "order above NFE": ({"s4s": {"order": 4}}, "fit_s4s@3", "s4s.order: must not exceed the smallest NFE"),
    "no CUDA": (
        {"run": {"device": "cuda:7"}, "s4s": {"seed": 7}},
        "fit_s4s@3",
        "run.device: 'cuda:7' is not available",
    ),
}


@pytest.mark.parametrize(("change", "stage", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_the_pipeline_with_one_sentence(change, stage, says, project, edited):
    edited(**change)
    output = run(project, "dvc", "repro", "-s", stage, ok=False)
    assert says in output
    assert "Traceback" not in output


def test_a_stage_ends_with_the_process_that_started_it(project):
    """A killed `dvc repro` leaves no stage behind."""
    script = "import os, time; from s4spipe import stage; stage._follow_parent(); print(os.getpid(), flush=True); "
    script += "time.sleep(60)"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(50):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the stage outlived its parent")
