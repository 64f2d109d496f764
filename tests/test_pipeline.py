"""The real pipeline, at a tiny size: what runs when, what it leaves, and how it fails."""

import json
import os
import subprocess
import sys
import time

import networkx
import pytest
from dvc.repo import Repo
from support.pipeline import ROOT, ran, run

from s4spipe.runtime.files import read_tensors
from s4spipe.sampling.tableau import Tableau

pytestmark = pytest.mark.slow
RUN = "runs/digits"


def cells(stages, solvers=("s4s-3", "s4s_alt-3", "free-3")):
    """The stages of sampling or evaluating learned solvers."""
    kind = {"free-3": "refined"}
    return {f"{stage}_{kind.get(solver, 'learned')}@digits-{solver}" for stage in stages for solver in solvers}


def test_results_hold_exactly_the_cells_that_params_name(project):
    report = project / RUN / "report"
    metrics = json.loads((report / "metrics.json").read_text())
    assert {solver: list(cells) for solver, cells in metrics.items()} == {
        "teacher": ["nfe6"],
        "ddim": ["nfe3"],
        "s4s": ["nfe3"],
        "s4s_alt": ["nfe3"],
        "free": ["nfe3"],
    }
    assert all(cell["fid"] > 0 for cells in metrics.values() for cell in cells.values())
    assert metrics["teacher"]["nfe6"]["teacher_distance"] == 0
    assert {path.name for path in (project / RUN / "solvers/s4s-3").iterdir()} == {"solver.json", "history.json"}
    page = (report / "report.html").read_text()
    assert all(name in page for name in ("ddim", "s4s_alt", "NFE 3"))
    assert "ipndm" not in page  # evaluated at other parameters, and in git, but not one of these cells
    figures = {path.name for path in (report / "figures").iterdir()}
    assert figures == {"fid.png", "loss-3.png", "samples-3.png", "coefficients-3.png"}
    assert not list((project / RUN / "tables").glob("ipndm*"))


def test_a_second_repro_runs_nothing(project):
    assert ran(run(project, "dvc", "repro")) == set()
    assert "up to date" in run(project, "dvc", "status")


def test_a_repetition_of_all_that_is_sampled_and_measured_leaves_git_clean(project):
    """Wall-clock times are kept apart from results, in files that git does not see."""
    timing = project / RUN / "timings/ddim-3.json"
    assert json.loads(timing.read_text())["seconds_per_sample"] > 0
    run(project, "git", "add", "-A")
    run(project, "git", "commit", "-q", "-m", "before")
    again = ["sample@digits-ddim-3", "evaluate@digits-ddim-3", "refine@digits-free-3", "tables@digits", "report@digits"]
    assert ran(run(project, "dvc", "repro", "-f", "-s", *again)) == set(again)
    assert run(project, "git", "status", "--porcelain") == ""


def test_temporary_files_of_a_stage_are_not_seen_by_git(project):
    for name in ("models/.digits.safetensors.tmp-0123abcd.safetensors", f"{RUN}/report/.table.md.tmp-0123abcd.md"):
        (project / name).touch()
        assert name not in run(project, "git", "status", "--porcelain", "-uall")
        (project / name).unlink()


CHANGES = {
    "s4s_alt": ({"learners": {"s4s_alt": {"learning_rate": 0.07}}}, {"learn@digits-s4s_alt-3"},
                {*cells(["sample", "evaluate"], ["s4s_alt-3"]), "report@digits"}),
    "s4s": ({"learners": {"s4s": {"radius": 0.5}}}, {"learn@digits-s4s-3"},
            {*cells(["sample", "evaluate"], ["s4s-3"]), "report@digits"}),
    "free": ({"learners": {"free": {"epochs": 1}}}, {"fit@digits-free-3"},
             {"refine@digits-free-3", *cells(["sample", "evaluate"], ["free-3"]), "report@digits"}),
    "a learner that is not used": ({"learners": {"gs": {"epochs": 1}}}, set(), set()),
    "all learners": ({"learner_defaults": {"seed": 1}},
                     {"learn@digits-s4s-3", "learn@digits-s4s_alt-3", "fit@digits-free-3"},
                     {"refine@digits-free-3", *cells(["sample", "evaluate"]), "report@digits"}),
    "refine": ({"refine": {"steps": 1}}, {"refine@digits-free-3"},
               {*cells(["sample", "evaluate"], ["free-3"]), "report@digits"}),
    "fid": ({"fid": {"count": 80}},
            {"evaluate_teacher@digits-teacher-6", "evaluate@digits-ddim-3", *cells(["evaluate"])}, {"report@digits"}),
    "report": ({"report": {"sheet_columns": 5}}, {"report@digits"}, set()),
    "run": ({"run": {"batch_size": 50}}, set(), set()),
}  # fmt: skip


@pytest.mark.parametrize(("change", "first", "after"), CHANGES.values(), ids=CHANGES)
def test_a_change_runs_what_it_touches_and_nothing_else(change, first, after, project, edited):
    """The stages that a changed parameter makes out of date, and those that depend on them."""
    edited(**change)
    assert ran(run(project, "dvc", "repro", "--dry")) == first
    index = Repo(str(project)).index
    stages = {stage.name: stage for stage in index.stages}
    assert {s.name for name in first for s in networkx.ancestors(index.graph, stages[name])} == after - first


TABLES = {"tables@digits"}


@pytest.mark.parametrize(("change", "expected"), {
    "a classical schedule": ({"classical_schedules": {"ddim": "vp_uniform"}},
                             {"sample@digits-ddim-3", "evaluate@digits-ddim-3", "report@digits"}),
    "a learner's start": ({"starts": {"s4s": {"schedules": ["logsnr"]}}},
                          {"learn@digits-s4s-3", *cells(["sample", "evaluate"], ["s4s-3"]), "report@digits"}),
    "a start that gives the same": ({"starts": {"gs": {"schedules": ["logsnr"]}}}, set()),
}.items(), ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_a_change_of_tables_runs_the_cells_whose_table_changed(change, expected, project, edited):
    """The tables take seconds, and are made together; a table that stays the same re-runs nothing."""
    blocks, cells_of_it = expected
    edited(**blocks)
    assert ran(run(project, "dvc", "repro", "tables")) == TABLES
    dry = ran(run(project, "dvc", "repro", "--dry"))
    graph = Repo(str(project)).index.graph
    stages = {stage.name: stage for stage in graph.nodes}
    whole = dry | {s.name for name in dry for s in networkx.ancestors(graph, stages[name])}
    assert whole == cells_of_it


def test_a_schedule_file_more_runs_the_tables_and_no_fit(project, edited):
    path = project / "inputs/schedules/mine.json"
    path.write_text("[80, 1, 0.1, 0.002]")
    try:
        assert ran(run(project, "dvc", "repro")) == {"schedules@digits", *TABLES}
        edited(classical_schedules={"ddim": "mine"})
        changed = {"sample@digits-ddim-3", "evaluate@digits-ddim-3", "report@digits"}
        assert ran(run(project, "dvc", "repro")) == {*TABLES, *changed}
        assert json.loads((project / RUN / "tables/ddim-3.json").read_text())["t"] == [80, 1, 0.1, 0.002]
    finally:
        path.unlink()


def test_a_searched_schedule_serves_whoever_names_it(project, edited):
    edited(searched=["gits"], classical_schedules={"ddim": "gits"})
    changed = {"sample@digits-ddim-3", "evaluate@digits-ddim-3", "report@digits"}
    assert ran(run(project, "dvc", "repro")) == {"search@digits-gits", *TABLES, *changed}
    times = json.loads((project / RUN / "schedules/gits.json").read_text())["3"]
    assert json.loads((project / RUN / "tables/ddim-3.json").read_text())["t"] == times


def test_a_classical_solver_with_statistics_of_the_model_is_measured_like_the_others(project, edited):
    edited(statistics_for=["dpm_v3"], classical=["ddim", "dpm_v3"], classical_schedules={"dpm_v3": "logsnr"})
    changed = {"sample@digits-dpm_v3-3", "evaluate@digits-dpm_v3-3", "report@digits"}
    assert ran(run(project, "dvc", "repro")) == {"statistics@digits-dpm_v3", *TABLES, *changed}
    found, settings = read_tensors(project / RUN / "schedules/statistics.safetensors", "l", "mean", "power")
    assert (settings["samples"], settings["grid"]) == (40, 10)
    assert found["l"].shape == (10, *found["mean"].shape)
    table = Tableau.load(project / RUN / "tables/dpm_v3-3.json")
    assert table.basis.shape == found["power"].shape
    assert "dpm_v3" in (project / RUN / "report/table.md").read_text()
    edited(statistics={"seed": 1})
    assert ran(run(project, "dvc", "repro")) == {"statistics@digits-dpm_v3", *TABLES, *changed}
    assert len(list((project / RUN / "tables").glob("*.safetensors"))) == 1  # the older weights are gone


def test_two_models_stand_side_by_side(project, edited):
    """Results of both stay whole, and back at the first nothing runs."""
    before = snapshot(project / RUN)
    text = (project / "params.yaml").read_text()
    edited(model={"name": "other", "condition": "none"}, reference={"count": 100}, sample={"count": 70})
    done = ran(run(project, "dvc", "repro"))
    assert {"teacher_pairs@other", "learn@other-s4s-3", "reference@other", "report@other"} <= done
    assert not any("digits-" in name or name.endswith("@digits") for name in done)
    other = snapshot(project / "runs/other")
    assert {"report/report.html", "solvers/free-3/solver.json", "pairs/train.safetensors"} <= set(other)
    assert snapshot(project / RUN) == before
    (project / "params.yaml").write_text(text)
    assert ran(output := run(project, "dvc", "repro")) == set()
    assert "is cached" not in output
    assert snapshot(project / "runs/other") == other


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MISTAKES = {
    "schedule of the wrong length": (
        {"classical_schedules": {"ddim": [80, 1, 0.002]}},
        "tables",
        ["params.yaml: classical_schedules.ddim: ", "4 times, got 3"],
    ),
    "misspelt key": (
        {"learners": {"s4s": {"lerning_rate": 1.0}}},
        "learn@digits-s4s-3",
        ["learners.s4s.lerning_rate", "did you mean 'learning_rate'?"],
    ),
    "unknown schedule": (
        {"starts": {"s4s_alt": {"schedules": ["logsn"]}}},
        "tables",
        ["starts.s4s_alt", "did you mean 'logsnr'?"],
    ),
    "unknown solver": (
        {"classical": ["ddmi"], "classical_schedules": {"ddmi": "edm"}},
        "tables",
        ["classical", "did you mean 'ddim'?"],
    ),
    "order above NFE": ({"learners": {"s4s": {"order": 4}}}, "learn@digits-s4s-3", ["learners.s4s.order"]),
    "no CUDA": (
        {"run": {"device": "cuda:7"}, "learners": {"s4s": {"seed": 7}}},
        "learn@digits-s4s-3",
        ["run.device: 'cuda:7' is not available"],
    ),
}


@pytest.mark.parametrize(("change", "stage", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_the_pipeline_with_one_sentence(change, stage, says, project, edited):
    edited(**change)
    output = run(project, "dvc", "repro", "-s", stage, ok=False)
    assert all(part in output for part in says)
    assert "Traceback" not in output


def test_a_stage_ends_with_the_process_that_started_it(project):
    """A killed `dvc repro` leaves no stage behind."""
    script = "import os, time; from s4spipe.pipeline import stage; stage._follow_parent(); "
    script += "print(os.getpid(), flush=True); time.sleep(60)"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"],
        cwd=ROOT, env=os.environ | {"DVC_STAGE": "sample"}, stdout=subprocess.PIPE, text=True,
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
