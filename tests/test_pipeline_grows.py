"""The real pipeline, at a tiny size, when it is given more to do, and less again."""

import pytest
from support.pipeline import ran, run

pytestmark = pytest.mark.slow

NEW_NFE = {
    f"{stage}{kind}@digits-{solver}-4"
    for stage in ("sample", "evaluate")
    for kind, solver in (("", "ddim"), ("_learned", "s4s"), ("_learned", "s4s_alt"), ("_refined", "free"))
}
ADDITIONS = {
    "an NFE": ({"nfe": [3, 4]}, {*NEW_NFE, "learn@digits-s4s-4", "learn@digits-s4s_alt-4", "fit@digits-free-4",
                                 "refine@digits-free-4", "tables@digits", "report@digits"}),
    "a solver and a learner": ({"classical": ["ddim", "ipndm"], "learned": ["s4s", "s4s_alt", "gn"]},
                               {"sample@digits-ipndm-3", "evaluate@digits-ipndm-3", "learn@digits-gn-3",
                                "sample_learned@digits-gn-3", "evaluate_learned@digits-gn-3", "tables@digits",
                                "report@digits"}),
}  # fmt: skip
BEFORE = {"nfe": [3], "classical": ["ddim"], "learned": ["s4s", "s4s_alt"]}


@pytest.mark.parametrize(("change", "stages"), ADDITIONS.values(), ids=ADDITIONS)
def test_an_addition_runs_its_own_cells_and_dropped_again_it_is_in_no_result(change, stages, project, edited):
    report = project / "runs/digits/report"
    results = [report / name for name in ("metrics.json", "fid.csv", "fid.json", "table.md", "report.html")]
    fids = {path: path.read_text() for path in results}
    edited(**change)
    assert ran(run(project, "dvc", "repro")) == stages
    assert all(path.read_text() != fids[path] for path in results)
    edited(**{key: BEFORE[key] for key in change})
    assert ran(run(project, "dvc", "repro")) == {"tables@digits", "report@digits"}
    assert {path: path.read_text() for path in results} == fids
    assert not list((report / "figures").glob("*-4.png"))
