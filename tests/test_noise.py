import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.problems import NOISES

from s4spipe import noise
from s4spipe.runtime.errors import UserError

shares = st.floats(0, 1)


@pytest.mark.parametrize("schedule", NOISES.values(), ids=NOISES)
class TestEverySchedule:
    @given(share=shares)
    def test_inverse_undoes_lambda(self, schedule, share):
        t = torch.tensor(schedule.t_min + share * (schedule.T - schedule.t_min), dtype=torch.float64)
        lam = schedule.lambda_(t)
        torch.testing.assert_close(schedule.lambda_(schedule.inverse(lam)), lam, rtol=1e-10, atol=1e-10)

    @given(share=shares)
    def test_lambda_is_the_log_ratio(self, schedule, share):
        t = torch.tensor(schedule.t_min + share * (schedule.T - schedule.t_min), dtype=torch.float64)
        ratio = (schedule.alpha(t) / schedule.sigma(t)).log()
        torch.testing.assert_close(schedule.lambda_(t), ratio, rtol=1e-9, atol=1e-9)

    def test_lambda_falls_strictly(self, schedule):
        t = torch.linspace(schedule.t_min, schedule.T, 1001, dtype=torch.float64)
        assert (schedule.lambda_(t).diff() < 0).all()

    def test_gradients_through_lambda_and_its_inverse_match_finite_differences(self, schedule):
        t = torch.tensor([0.31, 0.62], dtype=torch.float64) * schedule.T
        lam = schedule.lambda_(t)
        assert torch.autograd.gradcheck(schedule.lambda_, t.requires_grad_())
        assert torch.autograd.gradcheck(schedule.inverse, lam.detach().requires_grad_())

    def test_description_round_trips(self, schedule):
        assert noise.from_description(noise.describe(schedule)) == schedule


def test_a_long_table_is_described_shortly():
    """By its rule where there is one; any other bit for bit."""
    rule = noise.describe(NOISES["vp_discrete"])["alphas_cumprod"]
    assert rule == {"betas": "scaled_linear", "first": 0.00085, "last": 0.012, "count": 1000}
    linear = noise.VPDiscrete(noise.alphas_cumprod("linear", 1e-4, 0.02, 1000))
    assert noise.describe(linear)["alphas_cumprod"]["betas"] == "linear"
    other = noise.VPDiscrete(tuple(value**1.01 for value in NOISES["vp_discrete"].alphas_cumprod))
    for schedule in (linear, other, noise.VPDiscrete(other.alphas_cumprod[:20], t_min=1.0)):
        description = json.loads(json.dumps(noise.describe(schedule)))
        assert noise.from_description(description) == schedule
        assert len(json.dumps(description)) < 12_000


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine", "vp_discrete"])
@given(share=shares)
def test_variance_is_preserved(name, share):
    schedule = NOISES[name]
    t = torch.tensor(schedule.t_min + share * (schedule.T - schedule.t_min), dtype=torch.float64)
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1, abs=1e-12)


def test_vp_linear_integrates_its_betas():
    schedule = noise.VPLinear(0.1, 20.0)
    s = torch.linspace(0, 0.7, 100_001, dtype=torch.float64)
    integral = torch.trapezoid(0.1 + s * 19.9, s)
    assert schedule.alpha(torch.tensor(0.7, dtype=torch.float64)) == pytest.approx(math.exp(-integral / 2), rel=1e-9)


def test_vp_discrete_is_its_table_at_whole_times():
    schedule = NOISES["vp_discrete"]
    t = torch.tensor([0.0, 1.0, 500.0, 999.0], dtype=torch.float64)
    table = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)[t.long()]
    torch.testing.assert_close(schedule.alpha(t) ** 2, table, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({"name": "veee"}, "unknown noise schedule 'veee': did you mean 've'?"),
        ({"name": "ve", "sigma_mim": 1}, "did you mean 'sigma_min'?"),
        ({"name": "ve", "sigma_min": 1.0, "sigma_max": 0.5}, "0 < sigma_min < sigma_max"),
        ({"name": "ve", "sigma_min": "low"}, "needs a number for 'sigma_min'"),
        ({"name": "vp_linear", "beta_min": -1.0}, "0 < beta_min"),
        ({"name": "vp_linear", "t_min": 2.0}, "0 < t_min < T"),
        ({"name": "vp_discrete", "alphas_cumprod": [0.5, 0.6]}, "strictly falling"),
        ({"name": "vp_discrete"}, "strictly falling"),
        ({"name": "vp_discrete", "alphas_cumprod": ["a", "b"]}, "needs a number for 'alphas_cumprod'"),
        ({"name": "vp_discrete", "alphas_cumprod": 3}, "as a list of numbers, as float64 in base64, or as betas"),
        ({"name": "vp_discrete", "alphas_cumprod": "AAA"}, "as float64 in base64"),
        (
            {"name": "vp_discrete", "alphas_cumprod": {"betas": "cosine", "first": 0.1, "last": 0.2, "count": 3}},
            "betas (linear or scaled_linear)",
        ),
    ],
)
def test_mistakes_are_told(description, says):
    with pytest.raises(UserError, match=re.escape(says)):
        noise.from_description(description)
