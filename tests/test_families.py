import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NOISES, Gaussian, noises

from s4spipe import classical, steps
from s4spipe.errors import UserError
from s4spipe.families import LMS, Times
from s4spipe.noise import VE
from s4spipe.sampling import sample

WITHOUT_CORRECTOR = ["ddim", "dpmpp_2m", "dpmpp_3m", "ipndm"]


@pytest.mark.parametrize("learn_times", [False, True])
@pytest.mark.parametrize("nfe", [3, 4, 5, 10])
@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("init", WITHOUT_CORRECTOR)
def test_untouched_it_is_the_classical_solver(init, key, nfe, learn_times):
    noise = NOISES[key]
    for schedule in ("logsnr", "edm", "time_uniform", "time_quadratic"):
        t = steps.build(schedule, noise, nfe)
        learned = LMS(init, noise, t, 3, Times(noise, t) if learn_times else None)()
        known = classical.build(init, noise, t)
        for entry in ("t", "t_c", "c", "W"):
            a, b = getattr(learned, entry), getattr(known, entry)
            assert (a - b).abs().max() <= 1e-12 * b.abs().max().clamp(min=1), (schedule, entry)


@given(values=st.lists(st.floats(-5, 5), min_size=12, max_size=12))
def test_any_parameters_give_a_valid_schedule(values):
    noise = VE()
    times = Times(noise, steps.build("logsnr", noise, 5))
    with torch.no_grad():
        times.xi += torch.tensor(values[:6])
        times.xi_c += torch.tensor(values[6:11])
    t, t_c = times()
    assert (t[0], t[-1]) == (80.0, 0.002)
    assert (t.diff() < 0).all()
    assert t_c[0] == t[0]
    lam, lam_c = noise.lambda_(t), noise.lambda_(t_c)
    assert ((lam_c - lam[:-1]).abs() <= 0.5 * lam.diff().min() + 1e-9).all()


@pytest.mark.parametrize("init", WITHOUT_CORRECTOR)
@pytest.mark.parametrize("key", ["ve", "vp_linear", "vp_discrete"])
def test_gradients_of_every_parameter_match_finite_differences(init, key):
    noise = NOISES[key]
    t = steps.build("edm", noise, 4)  # no two gaps equal: their minimum has a kink where they are
    student, problem, x_T = LMS(init, noise, t, 3, Times(noise, t)), Gaussian(noise), noises(2, scale=noise.sigma_T)
    with torch.no_grad():
        student.times.xi_c += torch.tensor([0.0, 0.3, -0.2, 0.5])  # off the kink of the clip
    names, parameters = zip(*student.named_parameters(), strict=True)

    def run(*values):
        return torch.func.functional_call(student, dict(zip(names, values, strict=True)), ())

    def end_point(*values):
        return sample(problem, run(*values), x_T)

    assert {"u", "times.xi", "times.xi_c"} == set(names)
    assert torch.autograd.gradcheck(end_point, parameters, rtol=1e-6, atol=1e-8)


def test_the_number_of_parameters_is_the_papers():
    t = steps.build("edm", VE(), 5)
    assert LMS("ipndm", VE(), t, 3).parameter_count == 12


@pytest.mark.parametrize(
    ("init", "order", "says"),
    [
        ("ipndm", 0, "order must be between 1 and the NFE"),
        ("ipndm", 6, r"order must be between 1 and the NFE \(5\), got 6"),
        ("dpmpp_3m", 2, "looks back further than order 2"),
        ("unipc_bh2", 3, "has a corrector.* ddim, dpmpp_2m, dpmpp_3m, ipndm"),
        ("ipmdn", 3, "did you mean 'ipndm'"),
    ],
)
def test_mistakes_are_told(init, order, says):
    with pytest.raises(UserError, match=says):
        LMS(init, VE(), steps.build("edm", VE(), 5), order)
