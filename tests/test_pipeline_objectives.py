"""The real pipeline, at a tiny size, with learners without gradients, by what a network sees, and with rewards."""

import json

import pytest
from support.pipeline import ran, run

from s4spipe.sampling.tableau import Tableau

pytestmark = pytest.mark.slow

REWARD = {"network": "digits", "weights": "models/perceptual.safetensors"}
WITHOUT = {"learns": "joint", "distance": "frechet", "radius": 0.0, "batch_size": 3, "epochs": 2}
NEWTON = {"learns": "joint", "optimizer": "gauss_newton", "radius": 0.0, "batch_size": 20, "epochs": 1}
LEARNERS = {
    "usf": {**WITHOUT, "family": "genome", "optimizer": "search"},
    "autodiffusion": {**WITHOUT, "family": "fixed", "optimizer": "search", "learns": "times"},
    "evolved": {**WITHOUT, "family": "gs", "optimizer": "evolution", "reward": REWARD},
    "adasde": {**WITHOUT, "family": "adasde", "optimizer": "evolution"},
    "mixed": {**NEWTON, "family": "free", "distance": "mixed"},
    "seeing": {**NEWTON, "family": "gs", "distance": "perceptual_huber"},
    "rewarded": {"family": "bezier", "learns": "joint", "radius": 0.0, "epochs": 1, "reward": REWARD},
}
START = {"solver": "dpmpp_3m", "schedules": ["edm"], "skip": []}


def test_searched_and_evolved_solvers_are_sampled_and_measured_like_others(project, edited):
    starts = dict.fromkeys(LEARNERS, START) | {"rewarded": START | {"solver": "ipndm_v_2"}}
    starts |= {"adasde": START | {"solver": "dpm_2s"}}
    edited(learners=LEARNERS, starts=starts, learned=["s4s", "s4s_alt", *LEARNERS])
    cells = {f"{stage}@digits-{name}-3" for name in LEARNERS
             for stage in ("learn", "sample_learned", "evaluate_learned")}  # fmt: skip
    assert ran(run(project, "dvc", "repro")) == {*cells, "tables@digits", "report@digits"}
    results = json.loads((project / "runs/digits/report/metrics.json").read_text())
    for name in LEARNERS:
        folder = project / "runs/digits/solvers" / f"{name}-3"
        table, history = Tableau.load(folder / "solver.json"), json.loads((folder / "history.json").read_text())
        assert (table.name, table.nfe, len(history)) == (name, 3, 3)
        assert name in json.dumps(results)
        lines = (
            (folder / "candidates.jsonl").read_text().splitlines()
            if LEARNERS[name].get("optimizer") == "search"
            else []
        )
        candidates = [json.loads(line) for line in lines]
        judged = [row["validation"] for row in candidates if "validation" in row]
        if candidates:
            assert len(candidates) > 2 * 3  # and those of the start
            assert min(judged) == min(row["validation"] for row in history)
    assert not ran(run(project, "dvc", "repro"))


def test_a_refinement_is_for_a_reward(project, edited):
    file = project / "runs/digits/solvers/free-3/history.json"
    assert "reward" not in json.loads(file.read_text())[0]
    edited(refine={"reward": REWARD})
    assert ran(run(project, "dvc", "repro")) == {
        *(f"{stage}@digits-free-3" for stage in ("refine", "sample_refined", "evaluate_refined")),
        "report@digits",
    }
    history = json.loads(file.read_text())
    assert all(row["reward"] < 0 for row in history)  # log-probabilities
    about = Tableau.load(file.with_name("solver.json")).meta["refined"]["reward"]
    assert about == {**REWARD, "source": "none", "weight": 1.0}
    edited(refine={"reward": {"network": "classifier", "weights": "no/such"}})
    output = run(project, "dvc", "repro", "-s", "refine@digits-free-3", ok=False)
    assert "no/such: no such file" in output
    assert "Traceback" not in output
