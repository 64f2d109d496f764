"""The real pipeline, at a tiny size: what runs when, what it leaves, and how it fails."""

import json
import os
import subprocess
import sys
import time

import networkx
import pytest
from dvc.repo import Repo
from pipeline import ROOT, ran, run

pytestmark = pytest.mark.slow


def test_results_hold_exactly_the_cells_that_params_name(project):
    metrics = json.loads((project / "results/metrics.json").read_text())
    assert {solver: list(cells) for solver, cells in metrics.items()} == {
        "teacher": ["nfe6"],
        "ddim": ["nfe3"],
        "s4s": ["nfe3"],
        "s4s_alt": ["nfe3"],
        "free": ["nfe3"],
    }
    assert all(
        cell["fid"] > 0 and cell["seconds_per_sample"] > 0 for cells in metrics.values() for cell in cells.values()
    )
    assert metrics["teacher"]["nfe6"]["teacher_distance"] == 0
    assert {path.name for path in (project / "fits/s4s").glob("*.json")} == {"3.json", "3.history.json", "3.start.json"}
    page = (project / "results/report.html").read_text()
    assert all(name in page for name in ("ddim", "s4s_alt", "NFE 3"))
    assert "ipndm" not in page  # evaluated at other parameters, and in git, but not one of these cells
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
    "fit": ({"fit": {"steps": 1}}, {"fit@3"},
            {"refine@3", "sample_learned@free-3", "evaluate_fid_learned@free-3", "report"}),
    "refine": ({"refine": {"steps": 1}}, {"refine@3"},
               {"sample_learned@free-3", "evaluate_fid_learned@free-3", "report"}),
    "schedule": ({"classical_steps": {"ddim": "vp_uniform"}}, {"classical@ddim-3"},
                 {"sample@ddim-3", "evaluate_fid@ddim-3", "report"}),
    "fid": ({"fid": {"count": 80}}, {"evaluate_fid_teacher", "evaluate_fid@ddim-3", *(
        f"evaluate_fid_learned@{solver}-3" for solver in ("s4s", "s4s_alt", "free"))}, {"report"}),
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


def test_a_searched_schedule_serves_whoever_names_it(project, edited):
    edited(searched=["gits"], classical_steps={"ddim": "gits"})
    stages = {"search@gits", "teacher", "classical@ddim-3"}
    assert ran(run(project, "dvc", "repro", *stages)) == stages
    times = json.loads((project / "schedules/gits.json").read_text())["3"]
    assert json.loads((project / "solvers/ddim/3.json").read_text())["t"] == times
    # The others that might read the new file are made again, which takes a moment; the teacher came out the same.
    again = {"reference_solver", "start@s4s-3", "start@s4s_alt-3", "fit@3"}
    assert ran(run(project, "dvc", "repro", "--dry")) == {*again, "sample@ddim-3", "evaluate_fid@ddim-3", "report"}


def test_a_schedule_may_be_a_file_of_the_users(project, edited):
    (project / "schedules/mine.json").write_text("[80, 1, 0.1, 0.002]")
    edited(classical_steps={"ddim": "mine"})
    run(project, "dvc", "repro", "-s", "classical@ddim-3")
    assert json.loads((project / "solvers/ddim/3.json").read_text())["t"] == [80, 1, 0.1, 0.002]
    (project / "schedules/mine.json").unlink()


MISTAKES = {
    "schedule of the wrong length": (
        {"classical_steps": {"ddim": [80, 1, 0.002]}},
        "classical@ddim-3",
        "params.yaml: classical_steps.ddim: a schedule of 3 steps is 4 times, got 3",
    ),
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
