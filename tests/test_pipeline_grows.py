"""The real pipeline, at a tiny size, when it is given more to do, and less again."""

import pytest
from pipeline import TINY, ran, run

pytestmark = pytest.mark.slow

ADDITIONS = {
    "an NFE": ({"nfe": [3, 4]},
               {"classical@ddim-4", "sample@ddim-4", "evaluate_fid@ddim-4", "fit_s4s@4", "refine_s4s_alt@4", "fit@4",
                "refine@4", "report", "start@s4s-4", "start@s4s_alt-4",
                *(f"{stage}@{s}-4" for stage in ("sample_learned", "evaluate_fid_learned")
                  for s in ("s4s", "s4s_alt", "free"))}),
    "a solver and an arm": ({"classical": ["ddim", "ipndm"], "learned": ["gn"]},
                            {"classical@ipndm-3", "sample@ipndm-3", "evaluate_fid@ipndm-3", "start_arm@gn-3",
                             "learn_arm@gn-3", "sample_arm@gn-3", "evaluate_fid_arm@gn-3", "report"}),
}  # fmt: skip


@pytest.mark.parametrize(("change", "stages"), ADDITIONS.values(), ids=ADDITIONS)
def test_an_addition_runs_its_own_cells_and_dropped_again_it_is_in_no_result(change, stages, project, edited):
    results = [
        project / "results" / name for name in ("metrics.json", "fid.csv", "fid.json", "table.md", "report.html")
    ]
    fids = {path: path.read_text() for path in results}
    edited(**change)
    assert ran(run(project, "dvc", "repro")) == stages
    assert all(path.read_text() != fids[path] for path in results)
    edited(**{key: TINY[key] for key in change})
    assert ran(run(project, "dvc", "repro")) == {"report"}
    assert {path: path.read_text() for path in results} == fids
    assert not list((project / "results/figures").glob("*-4.png"))
