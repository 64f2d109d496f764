import copy

import pytest
import torch
from ruamel.yaml import YAML

from s4spipe import params
from s4spipe.errors import UserError

DEFAULT = YAML(typ="safe").load(open("params.yaml"))


def load(tmp_path, data):
    path = tmp_path / "params.yaml"
    YAML(typ="safe").dump(data, path)
    return params.load(path)


def test_the_defaults_are_valid():
    assert params.load("params.yaml").nfe == [5]


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    (tmp_path / "params.yaml").write_text(
        open("params.yaml").read().replace("learning_rate: 0.002", "learning_rate: 2e-3")
    )
    assert params.load(tmp_path / "params.yaml").train_digits.learning_rate == 0.002


MISTAKES = {
    "nfe": [([0], r"nfe.0: must be greater than or equal to 1, got 0"), ([], "nfe: "),
            (5, "nfe: must be a list, got 5"),
            (["5"], "nfe.0: must be an integer, got '5'"), ([5, 5], "every entry must stand once"),
            ([5, 2], r"s4s.order: must not exceed the smallest NFE, which is 2, got 3")],
    "classical": [(["ddmi"], r"unknown classical solver 'ddmi': did you mean 'ddim'\? known are adams_bashforth, ddim"),
                  (["ddim", "ddim"], "every entry must stand once")],
    "classical_steps.ddim": [("emd", r"unknown schedule 'emd': did you mean 'edm'\? known are best, dmn, edm")],
    "run.batch_size": [(0, "greater than or equal to 1"), (2.5, "run.batch_size: must be an integer")],
    "model.condition": [("label", "model.condition: must be 'labels', 'prompts' or 'none', got 'label'")],
    "model.guidance": [("high", "model.guidance: must be a number, got 'high'"), (-1, "greater than or equal to 0")],
    "teacher.solver": [("unipc", "unknown classical solver 'unipc'"), ("ddim_2", "ddim has order 1, got 2 in 'ddim_2'"),
                       ("ipndm_7", "ipndm has order 1 or 2 or 3 or 4, got 7 in 'ipndm_7'")],
    "teacher.steps": [("logsrn", "unknown schedule 'logsrn'")],
    "s4s.init": [("ipmdn", r"s4s.init: unknown classical solver 'ipmdn': did you mean 'ipndm'\?")],
    "s4s.order": [(0, "s4s.order: must be greater than or equal to 1, got 0"), (6, "must not exceed the smallest NFE"),
                  (True, "must be an integer"), ("3", "s4s.order: must be an integer, got '3'")],
    "s4s.radius": [(-0.1, "s4s.radius: must be greater than or equal to 0, got -0.1"), (float("nan"), "s4s.radius")],
    "s4s.distance": [("lpips", "unknown distance 'lpips': known are l2, perceptual, pseudo_huber")],
    "s4s.pairs": [(10**6, "s4s.pairs: must be at most teacher.train"), (0, "s4s.pairs")],
    "s4s_alt.validation_pairs": [(10**6, "must be at most teacher.validation")],
    "s4s_alt.joint": [("yes", "s4s_alt.joint: must be a boolean, got 'yes'")],
    "s4s_alt.decoupling": [(0.7, "less than or equal to 0.5")],
    "s4s_alt.ordr": [(3, r"s4s_alt.ordr: unknown key 'ordr': did you mean 'order'\?")],
    "s4z": [({}, r"s4z: unknown key 's4z': did you mean 's4s'\?")],
    "learned": [(["ld4"], r"learned: unknown arm 'ld4': did you mean 'ld3'\?"),
                (["gs", "gs"], "learned: every entry must stand once")],
    "arms.ld3": [({"family": "fixt"}, r"arms.ld3.family: unknown family 'fixt': did you mean 'fixed'\?"),
                 ({"lerns": "times"}, r"arms.ld3.lerns: unknown key 'lerns': did you mean 'learns'\?"),
                 ({"radius": -1.0}, "arms.ld3.radius: must be greater than or equal to 0, got -1.0"),
                 ({"family": "gs", "consistent": True}, "arms.ld3.consistent: not for the family gs; lms, pc"),
                 ({"family": "fixed", "shared": True}, "arms.ld3.shared: for the families lms and pc alone, not fixed"),
                 ({"family": "fixed", "gaussian": True}, "arms.ld3.gaussian: for the families lms and pc alone"),
                 ({"optimizer": "gauss_newton"}, "arms.ld3.optimizer: gauss_newton is for the distances l2 and "
                                                 "pseudo_huber and the radius 0, got l2 and 0.02")],
    "arms.s4s": [({}, "arms.s4s: give it another name")],
    "arms.ipndm": [({}, "arms.ipndm: give it another name")],
    "searched": [(["git"], r"searched.0: unknown searched schedule 'git': did you mean 'gits'\?")],
    "gits.grid": [(1, "gits.grid: must be greater than or equal to 2, got 1")],
    "dmn.start": [("logsn", "dmn.start: unknown schedule 'logsn'")],
    "s4s.steps": [("gits", "s4s.steps: gits is searched for first: name it in `searched` too"),
                  ([80.0, 1.0, 2.0], r"s4s.steps: the times of a schedule .* fall strictly, got \[80.0, 1.0, 2.0\]"),
                  ([80.0], "s4s.steps: the times of a schedule are at least two"),
                  ([80.0, "1"], "s4s.steps: a schedule is a name or a list of times"),
                  (5, "s4s.steps: a schedule is a name or a list of times, got 5"),
                  ("best", "s4s.steps: unknown schedule 'best'")],
    "sample.count": [(0, "sample.count")],
    "fid.count": [(10**9, "fid.count: must be at most sample.count"), ("most", "fid.count")],
    "s4s": [(None, "s4s: must be a")],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "says"), [(k, v, says) for k, cases in MISTAKES.items() for v, says in cases])
def test_a_mistake_is_told_in_one_sentence_with_file_and_key(key, value, says, tmp_path):
    data = copy.deepcopy(DEFAULT)
    *blocks, last = key.split(".")
    block = data
    for name in blocks:
        block = block[name]
    block[last] = value
    with pytest.raises(UserError, match=f"params.yaml: .*{says}") as error:
        load(tmp_path, data)
    assert "\n" not in str(error.value)


def test_a_schedule_may_be_a_list_of_times(tmp_path):
    data = copy.deepcopy(DEFAULT)
    data["s4s"]["steps"] = [80, 10.5, 0.002]
    assert load(tmp_path, data).start("s4s") == ("s4s.steps", "ipndm", [80, 10.5, 0.002])


def test_a_missing_key_is_told(tmp_path):
    data = copy.deepcopy(DEFAULT)
    del data["s4s"]["order"]
    with pytest.raises(UserError, match="s4s.order: missing"):
        load(tmp_path, data)
    del data["classical_steps"]["ddim"]
    data["s4s"]["order"] = 3
    with pytest.raises(UserError, match="classical_steps.ddim: missing"):
        load(tmp_path, data)


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_mapping_is_told(text, tmp_path):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match="params.yaml: (not valid YAML|must be a mapping)"):
        params.load(tmp_path / "params.yaml")


def test_devices():
    assert params.device("cpu") == torch.device("cpu")
    assert params.device("auto").type in ("cpu", "cuda")
    for absent in ("cuda:99", "gpu"):
        with pytest.raises(UserError, match=f"run.device: '{absent}' is not available.* use auto or cpu"):
            params.device(absent)
