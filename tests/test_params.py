"""params.yaml: what is right, and which keys must go together."""

import json

import pytest
from support.parameters import DEFAULT, changed, mistake
from support.pipeline import ROOT

from s4spipe.learning.families import FAMILIES
from s4spipe.noise import VE
from s4spipe.pipeline import params, resolve, tables
from s4spipe.pipeline.layout import INPUT_SCHEDULES, NONE
from s4spipe.pipeline.schema import Params, Start
from s4spipe.runtime.errors import UserError
from s4spipe.solvers import timesteps

TIMES = [80, 10.5, 0.002]


def test_the_defaults_are_right_and_are_what_the_file_says():
    assert params.parse(DEFAULT, ROOT) == Params()
    assert params.load(ROOT / "params.yaml").nfe == [5]


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    assert text.count("learning_rate: 0.002") == 3
    (tmp_path / "params.yaml").write_text(text.replace("learning_rate: 0.002", "learning_rate: 2e-3"))
    assert params.load(tmp_path / "params.yaml").train_digits.learning_rate == 0.002


def test_a_start_spells_out_all_of_its_keys():
    """No default of the code decides where a solver starts from."""
    assert mistake(changed(("starts.s4s", {"schedules": ["edm"], "skip": []}))).startswith("starts.s4s.solver: missing")


def test_whole_numbers_are_numbers_too():
    assert params.parse(changed(("model.guidance", 2))).model.guidance == 2.0


def test_a_schedule_may_be_a_list_of_times():
    keys = ("teacher.schedule", "reference.schedule", "classical_schedules.ddim")
    found = params.parse(changed(*((key, TIMES) for key in keys), ("starts.s4s.schedules", ["edm", TIMES])))
    assert found.teacher.schedule == found.reference.schedule == found.classical_schedules["ddim"] == TIMES
    assert found.starts["s4s"].schedules == ["edm", TIMES]


def test_a_schedule_may_be_the_name_of_a_file(tmp_path):
    (tmp_path / INPUT_SCHEDULES).mkdir(parents=True)
    (tmp_path / INPUT_SCHEDULES / "mine.json").write_text(json.dumps(TIMES))
    for key in ("teacher.schedule", "reference.schedule", "classical_schedules.ddim"):
        params.parse(changed((key, "mine")), tmp_path)
        assert mistake(changed((key, "mine"))).startswith(f"{key}: unknown schedule 'mine'")
    params.parse(changed(("starts.s4s.schedules", ["mine"])), tmp_path)


@pytest.mark.parametrize("schedule", timesteps.BUILT_IN)
def test_a_built_in_schedule_may_be_used_anywhere_and_no_file_has_its_name(schedule, tmp_path):
    keys = ("teacher.schedule", "reference.schedule", "classical_schedules.ddim")
    data = changed(*((key, schedule) for key in keys), ("starts.s4s.schedules", [schedule]))
    assert params.parse(data).starts["s4s"].schedules == [schedule]
    (tmp_path / INPUT_SCHEDULES).mkdir(parents=True)
    (tmp_path / INPUT_SCHEDULES / f"{schedule}.json").write_text(json.dumps(TIMES))
    with pytest.raises(UserError, match=f"{schedule} is the name of a built-in schedule; rename the file"):
        params.parse(data, tmp_path)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [("ays_svd", "ays_svd has noise levels"), ("karras_cut", "karras_cut is published for 4 to 8 steps, got 10")],
)
def test_where_a_published_schedule_does_not_fit_its_key_is_told(schedule, said):
    found = params.parse(changed(("nfe", [10]), ("classical_schedules.ddim", schedule)))
    with pytest.raises(UserError, match=rf"^params\.yaml: classical_schedules\.ddim: {said}"):
        list(tables.tables(found, VE(0.002, 50.0), {}))


@pytest.mark.parametrize("schedule", ["gits", "dmn"])
def test_a_searched_schedule_may_be_used_where_it_is_searched_for(schedule):
    changes = [(f"{key}.schedule", schedule) for key in ("teacher", "reference")]
    changes += [("classical_schedules.ddim", schedule), ("starts.s4s.schedules", [schedule])]
    params.parse(changed(("searched", [schedule]), *changes))
    for key, value in changes:
        assert mistake(changed((key, value))).startswith(f"{key}: {schedule} has to be searched for")


def test_a_solver_with_statistics_of_the_model_needs_their_stage():
    changes = (("classical", ["ddim", "dpm_v3_2"]), ("classical_schedules.dpm_v3_2", "logsnr"))
    assert params.parse(changed(("statistics_for", ["dpm_v3"]), *changes)).classical[1] == "dpm_v3_2"
    assert mistake(changed(*changes)) == ("classical: dpm_v3_2 needs statistics of the model; add dpm_v3 to "
                                          "`statistics_for`")  # fmt: skip


def test_a_learners_block_says_what_differs_from_the_defaults():
    found = params.parse(changed(("learner_defaults.order", 2), ("learners.s4s.order", 4)))
    assert resolve.learner(found, "s4s").order == 4
    assert resolve.learner(found, "s4s").distance == "pseudo_huber"
    assert resolve.learner(found, "s4s_alt") == found.learner_defaults


def test_a_learner_that_is_not_learned_may_ask_for_what_this_run_has_not(tmp_path):
    """Its schedules, its pairs and its order are of no matter until it is named in `learned` or `refined`."""
    unused = (("starts.ld3.schedules", ["gits"]), ("learners.ld3.pairs", 10**6), ("learners.s4s_pc.order", 9))
    params.parse(changed(*unused))
    assert mistake(changed(*unused, ("learned", ["ld3"]))).startswith("starts.ld3.schedules: ")
    assert mistake(changed(*unused[1:], ("learned", ["ld3"]))).startswith("learners.ld3.pairs: ")
    assert mistake(changed(*unused, ("refined", ["s4s_pc"]))).startswith("learners.s4s_pc.order: ")


def test_without_refined_solvers_their_refinement_needs_no_pairs():
    few = [("teacher.train", 100), ("learned", []), ("refine.pairs", 600)]
    params.parse(changed(*few, ("refined", [])))
    fits = (("learners.free.pairs", 100), ("learners.free_bands.pairs", 100))
    assert mistake(changed(*few, *fits)).startswith("refine.pairs: ")


# -- what must go together --------------------------------------------------------------------------------------------


def test_prompts_and_the_models_condition_go_together():
    diffusers, prompted = ("model.kind", "diffusers"), ("model.condition", "prompts")
    schedules = ("classical_schedules", dict.fromkeys(DEFAULT["classical"], "edm"))
    params.parse(changed(diffusers, prompted, ("prompts", "mine.txt"), ("fid.clip", "a/clip"), schedules))
    assert mistake(changed(diffusers, prompted, schedules)).startswith("prompts: must name a file")
    assert mistake(changed(prompted, ("prompts", "mine.txt"))).startswith("model.condition: ")


def test_real_images_are_needed_to_measure_against_them():
    params.parse(changed(("reference.source", "real")))
    params.parse(changed(("fid.real", NONE)))
    assert mistake(changed(("reference.source", "real"), ("fid.real", NONE))).startswith("reference.source: ")


def test_the_best_schedules_are_those_of_the_embedded_model():
    other = ("model.kind", "edm")
    assert mistake(changed(other)).startswith("classical_schedules.ddim: the best schedules are known only for")
    params.parse(changed(other, ("classical_schedules", dict.fromkeys(DEFAULT["classical"], "edm"))))
    params.parse(changed(other, ("classical", ["heun"]), ("classical_schedules", {"heun": "edm", "ddim": "best"})))


def test_every_learner_has_a_start_and_every_start_a_learner():
    data = changed(("learners.mine", {}))
    assert mistake(data).startswith("starts.mine: missing; name the solver")
    data["starts"]["mine"] = {"solver": "ipndm", "schedules": ["edm"], "skip": []}
    assert params.parse(data).starts["mine"].solver == "ipndm"
    del data["learners"]["mine"]
    assert mistake(data).startswith("starts: unknown learner 'mine'")


@pytest.mark.parametrize("name", ["ipndm", "ddim", "teacher", "reference"])
def test_a_learner_has_a_name_of_its_own(name):
    assert mistake(changed((f"learners.{name}", {}))).startswith(f"learners.{name}: ")
    assert mistake(changed((("learners", "My solver"), {}))).startswith("learners.My solver: must be ")


@pytest.mark.parametrize(("family", "option"), [(f, o) for f in sorted(FAMILIES) for o in ("consistent", "shared")])
def test_options_are_for_the_families_that_have_them(family, option):
    learns = {"fixed": "times", "free": "joint"}.get(family, "coefficients")
    start = Start().model_dump()
    data = changed(("learners.mine", {"family": family, "learns": learns, option: True}), ("starts.mine", start))
    if option in FAMILIES[family].options:
        params.parse(data)
    else:
        assert mistake(data).startswith(f"learners.mine.{option}: not for the family {family}")


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"radius": 0.1, "learns": "joint"}, "optimizer"),
        ({"radius": 0.0, "learns": "alternating"}, "learns"),
    ],
)
def test_gauss_newton_goes_with_some_settings_only(block, key):
    right = {"optimizer": "gauss_newton", "radius": 0.0, "distance": "l2", "learns": "coefficients"}
    params.parse(changed(("learners.s4s", right)))
    assert mistake(changed(("learners.s4s", right | block))).startswith(f"learners.s4s.{key}: ")


@pytest.mark.parametrize(
    "bands", [{"bands": 3}, {"bands": "auto"}, {"channels": "own"}, {"channels": "own", "bands": 1}]
)
def test_weights_by_frequency_go_with_families_that_have_weights(bands):
    key, got = next(iter(bands.items()))
    params.parse(changed(("learners.s4s", bands)))
    assert mistake(changed(("learners.s4s", {"gaussian": True, **bands}))).startswith(f"learners.s4s.{key}: must be ")
    said = mistake(changed(("learners.ld3", {"family": "fixed", "learns": "times", **bands})))
    assert said.startswith(f"learners.ld3.{key}: the family fixed has no weights of its own, got {got}")


def test_the_history_is_no_longer_than_the_smallest_nfe_for_the_families_that_have_one():
    data = changed(("nfe", [5, 2]))
    assert mistake(data).startswith("learners.s4s.order: must not exceed the smallest NFE, which is 2, got 3")
    params.parse(data | {"learned": []})  # free has no order


@pytest.mark.parametrize("name", ["edm", "best", "gits"])
def test_a_schedules_file_has_a_name_of_its_own(name, tmp_path):
    (tmp_path / INPUT_SCHEDULES).mkdir(parents=True)
    file = tmp_path / INPUT_SCHEDULES / f"{name}.json"
    file.write_text("[80, 1]")
    assert mistake(DEFAULT, tmp_path).startswith(f"{file}: ")
