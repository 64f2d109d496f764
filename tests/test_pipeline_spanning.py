"""The real pipeline, at a tiny size, with one solver for all NFEs."""

import json

import pytest
from support.every_stage import SPANNING
from support.pipeline import ran, run

from s4spipe.sampling.tableau import Tableau

pytestmark = pytest.mark.slow

RUN = "runs/digits"


def test_one_fit_is_measured_at_every_nfe(project, edited):
    learned = {"learned": [], "refined": []}
    edited(**SPANNING, **learned)
    stages = ran(run(project, "dvc", "repro"))
    own = {
        f"{stage}@digits-one-{nfe}"
        for stage in ("take", "refine_spanning", "sample_spanning", "evaluate_spanning")
        for nfe in (3, 4)
    }
    assert stages > {"span@digits-one", "join@digits-one", *own}
    results = json.loads((project / RUN / "report/metrics.json").read_text())
    assert "one" in json.dumps(results)
    one = project / RUN / "spans/one.json"
    for nfe in (3, 4):
        table = Tableau.load(one, nfe)
        assert table.agrees(Tableau.load(project / RUN / f"solvers/one-{nfe}/solver.json"))
        assert (table.name, table.nfe, table.meta["spans"]) == ("one", nfe, [3, 4])
        assert table.meta["refined"]["steps"] == 2
    history = json.loads((project / RUN / "fits/one/history.json").read_text())
    assert history[-1]["validation"] < history[0]["validation"]
    assert not ran(run(project, "dvc", "repro"))
    edited(**{**SPANNING, "nfe": [3, 5]}, **learned)
    assert ran(run(project, "dvc", "repro")) >= {"span@digits-one", "take@digits-one-3", "take@digits-one-5"}
