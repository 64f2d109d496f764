import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NOISES

from s4spipe import classical, steps
from s4spipe.errors import UserError
from s4spipe.noise import VE

EVERY = [(name, key) for name in steps.STEPS for key in NOISES if not (name.startswith("vp_") and key == "vp_cosine")]


@pytest.mark.parametrize(("name", "key"), EVERY)
@given(nfe=st.integers(1, 60))
def test_times_fall_strictly_between_exact_ends(name, key, nfe):
    noise = NOISES[key]
    t = steps.build(name, noise, nfe)
    assert t.dtype == torch.float64
    assert len(t) == nfe + 1
    assert (t[0], t[-1]) == (noise.T, noise.t_min)
    assert (t.diff() < 0).all()


@pytest.mark.parametrize("key", NOISES)
def test_each_schedule_is_uniform_in_its_own_variable(key):
    noise = NOISES[key]
    variables = {
        "time_uniform": lambda t: t,
        "time_quadratic": lambda t: t.sqrt(),
        "logsnr": noise.lambda_,
        "edm": lambda t: (noise.sigma(t) / noise.alpha(t)) ** (1 / 7),
    }
    for name, variable in variables.items():
        gaps = variable(steps.build(name, noise, 9)).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(9), rtol=1e-6, atol=1e-9)


def test_edm_steps_are_those_of_the_paper():
    """Karras et al. 2022, eq. 5, written out in numpy, down to its last nonzero sigma."""
    n, rho = 18, 7
    i = np.arange(n)
    expected = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(steps.build("edm", VE(), n - 1), expected, rtol=1e-12)


def test_vp_steps_on_a_vp_model_are_its_own_time():
    """The VP process that spans a VP-linear model's noise levels is that model."""
    noise = NOISES["vp_linear"]
    for ours, own in (("vp_uniform", "time_uniform"), ("vp_quadratic", "time_quadratic")):
        torch.testing.assert_close(steps.build(ours, noise, 7), steps.build(own, noise, 7), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "nfe", "says"),
    [
        ("logsmr", 5, r"unknown schedule 'logsmr': did you mean 'logsnr'\? known are dmn, edm"),
        ("edm", 0, "at least 1"),
    ],
)
def test_mistakes_are_told(name, nfe, says):
    with pytest.raises(UserError, match=says):
        steps.build(name, VE(), nfe)


TIMES = [80.0, 10.0, 1.0, 0.002]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "FOLDER", tmp_path)
    return lambda value: (tmp_path / "mine.json").write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize("content", [TIMES, {"3": TIMES, "1": [80, 0.002]}, {"t": TIMES, "nfe": 3, "W": []}])
def test_times_may_be_given_in_a_list_or_a_file(content, folder):
    folder(content)
    for schedule in (TIMES, "mine"):
        assert steps.build(schedule, VE(), 3).tolist() == TIMES


def test_a_solvers_file_is_a_schedule(folder, tmp_path):
    table = classical.build("ipndm", VE(), steps.build("edm", VE(), 5))
    table.save(tmp_path / "mine.json")
    assert torch.equal(steps.build("mine", VE(), 5), table.t)


def test_ends_are_made_exact_and_may_lie_above_t_min():
    t = steps.build([80.00000001, 1, 0.0019999999], VE(), 2)
    assert (t[0], t[-1]) == (80, 0.002)
    assert steps.build([80, 1, 0.01], VE(), 2)[-1] == 0.01


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (TIMES[:-1], "mine.json: a schedule of 3 steps is 4 times, got 3"),
        ([80, 1, 2, 0.002], "mine.json: the times of a schedule .* fall strictly"),
        ({"4": [80, 3, 2, 1, 0.002]}, "mine.json: has no schedule of 3 steps, only of 4"),
        ({"3": "edm"}, "mine.json: a schedule is a name or a list of times, got 'edm'"),
        ([80, True, 0.1, 0.002], "mine.json: a schedule is a name or a list of times"),
        ([79, 10, 1, 0.002], "mine.json: a schedule for this model starts at 80"),
        ([80, 10, 1, 0.001], "ends at 0.002 or above"),
        ("[80, 1,", "mine.json: not valid JSON"),
        (3, "mine.json: a schedule is a name or a list of times, got 3"),
    ],
)
def test_a_bad_file_is_told(content, says, folder):
    folder(content)
    with pytest.raises(UserError, match=says):
        steps.build("mine", VE(), 3)
