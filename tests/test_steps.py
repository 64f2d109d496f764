import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NOISES

from s4spipe import steps
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
    [("logsmr", 5, r"unknown schedule 'logsmr': did you mean 'logsnr'\? known are edm"), ("edm", 0, "at least 1")],
)
def test_mistakes_are_told(name, nfe, says):
    with pytest.raises(UserError, match=says):
        steps.build(name, VE(), nfe)
