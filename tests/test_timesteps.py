import json
from itertools import product

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules
from hypothesis import given
from hypothesis import strategies as st
from support.problems import NOISES

from s4spipe.noise import VE
from s4spipe.runtime.errors import UserError
from s4spipe.solvers import registry, timesteps


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("name", timesteps.FORMULAS)
@given(nfe=st.integers(1, 60))
def test_times_fall_strictly_between_exact_ends(name, key, nfe):
    noise = NOISES[key]
    t = timesteps.build(name, noise, nfe)
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
        gaps = variable(timesteps.build(name, noise, 9)).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(9), rtol=1e-6, atol=1e-9)


def test_edm_steps_are_those_of_the_paper():
    """Karras et al. 2022, eq. 5, written out in numpy, down to its last nonzero sigma."""
    n, rho = 18, 7
    i = np.arange(n)
    expected = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(timesteps.build("edm", VE(), n - 1), expected, rtol=1e-12)


def test_vp_steps_on_a_vp_model_are_its_own_time():
    """The VP process that spans a VP-linear model's noise levels is that model."""
    noise = NOISES["vp_linear"]
    for ours, own in (("vp_uniform", "time_uniform"), ("vp_quadratic", "time_quadratic")):
        torch.testing.assert_close(
            timesteps.build(ours, noise, 7), timesteps.build(own, noise, 7), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize(("nfe", "name", "field"), [(5, "logsmr", "'logsnr'"), (0, "edm", "nfe")])
def test_mistakes_are_told(nfe, name, field):
    with pytest.raises(UserError, match=field):
        timesteps.build(name, VE(), nfe)


@pytest.mark.parametrize("levels", [(0.1, 1.0), (0.5, 2.0), (1.0, 1.2)])
def test_noise_levels_that_no_linear_vp_process_spans_are_told(levels):
    """Its beta would have to be negative at t = 1."""
    for name in ("vp_uniform", "vp_quadratic"):
        with pytest.raises(UserError, match="linear VP"):
            timesteps.build(name, VE(*levels), 5)


# -- Published schedules -----------------------------------------------------------------------------

SD = NOISES["vp_discrete"]
LISTS = AysSchedules  # of diffusers: timesteps to evaluate at, and sigmas that end in zero


@pytest.mark.parametrize(
    ("name", "key"), [pair for pair in product(timesteps.ALIGNED, NOISES) if pair != ("ays_svd", "vp_discrete")]
)
def test_published_times_fall_strictly_between_exact_ends(name, key):
    noise = NOISES[key]
    for n in range(1, 61):
        t = timesteps.build(name, noise, n)
        assert (len(t), t[0], t[-1]) == (n + 1, noise.T, noise.t_min)
        assert (t.diff() < 0).all()


def test_align_your_steps_are_the_published_lists():
    """Timesteps on SD's own noise schedule, sigmas on VE noise from 700; on other noise, the same sigma/alpha."""
    for name, key in (("ays_sd15", "StableDiffusion"), ("ays_sdxl", "StableDiffusionXL")):
        t = timesteps.build(name, SD, 10)
        np.testing.assert_allclose(t[:-1], LISTS[f"{key}Timesteps"], rtol=1e-10)
        np.testing.assert_allclose((SD.sigma(t) / SD.alpha(t))[:-1], LISTS[f"{key}Sigmas"][:-1], atol=0.004)
        for noise in NOISES.values():
            t_here = timesteps.build(name, noise, 10)
            torch.testing.assert_close(noise.lambda_(t_here)[1:-1], SD.lambda_(t)[1:-1], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(timesteps.build("ays_svd", VE(0.002, 700.0), 10)[:-1],
                               LISTS["StableDiffusionVideoSigmas"][:-1], rtol=1e-12)  # fmt: skip


@pytest.mark.parametrize("n", [1, 3, 4, 7, 10, 17, 20])
def test_other_numbers_of_steps_are_the_authors_interpolation(n):
    """Of log sigma, over the list with its last sigma above zero (0.002 for SVD), as the paper's page has it."""
    sigmas = [*LISTS["StableDiffusionVideoSigmas"][:-1], 0.002]
    expected = np.exp(np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, 11), np.log(sigmas)))
    np.testing.assert_allclose(timesteps.build("ays_svd", VE(0.002, 700.0), n), expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "noise"), [("ays_svd", SD), ("ays_svd", VE(0.035, 80.0)), ("ays_sd15", VE(0.2, 80.0)),
                                             ("ays_sdxl", VE(0.002, 6.0))])  # fmt: skip
def test_a_model_without_the_levels_of_a_published_schedule_is_refused(name, noise):
    with pytest.raises(UserError, match=f"^{name} has noise levels sigma/alpha of .* within those of the model, .* to"):
        timesteps.build(name, noise, 10)


def karras_end(points, cut, rho):
    """The noise level sigma/alpha of a point of the Karras grid of Stable Diffusion, by its formula in numpy."""
    low, high = (noise_level(SD, t) ** (1 / rho) for t in (0.0, 999.0))
    return np.linspace(high, low, points)[cut] ** rho


def noise_level(noise, t):
    return torch.exp(-noise.lambda_(torch.tensor(t, dtype=torch.float64))).item()


@pytest.mark.parametrize(("n", "points", "rho", "cut"), [(4, 8, 5, 5), (5, 8, 5, 6), (6, 8, 5, 6), (7, 12, 7, 9),
                                                         (8, 12, 7, 9)])  # fmt: skip
def test_karras_cut_is_the_papers_grid(n, points, rho, cut):
    """It ends at the noise level of a Karras grid, and its times are those of a Karras grid in t, with rho 1.2."""
    t = timesteps.build("karras_cut", SD, n)
    assert t[0] == SD.T
    assert noise_level(SD, t[-1].item()) == pytest.approx(karras_end(points, cut, rho), rel=1e-9)
    expected = np.linspace(999 ** (1 / 1.2), t[-1].item() ** (1 / 1.2), n + 1) ** 1.2
    np.testing.assert_allclose(t, expected, rtol=1e-12)


def test_the_end_of_karras_cut_is_a_noise_level_of_diffusers():
    """Its exponent is 7, as for 8 steps; in float32."""
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                                 use_karras_sigmas=True)  # fmt: skip
    scheduler.set_timesteps(12)
    end = timesteps.build("karras_cut", SD, 8)[-1].item()
    assert noise_level(SD, end) == pytest.approx(scheduler.sigmas[9].item(), rel=1e-5)


@pytest.mark.parametrize("key", NOISES)
def test_karras_cut_goes_with_any_noise_schedule(key):
    """Its times are spaced in the noise schedule's own time."""
    noise = NOISES[key]
    for n in timesteps.CUTS:
        t = timesteps.build("karras_cut", noise, n)
        assert t[0] == noise.T
        assert t[-1] > noise.t_min
        gaps = (t ** (1 / 1.2)).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(n), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 9, 20])
def test_karras_cut_has_no_rule_for_other_numbers_of_steps(n):
    with pytest.raises(UserError, match=f"published for 4 to 8 steps, got {n}"):
        timesteps.build("karras_cut", SD, n)


# -- Schedules of the user's own ---------------------------------------------------------------------

TIMES = [80.0, 10.0, 1.0, 0.002]


@pytest.mark.parametrize("content", [TIMES, {"3": TIMES, "1": [80, 0.002]}, {"t": TIMES, "nfe": 3, "W": []}])
def test_times_may_be_given_in_a_list_or_a_file(content):
    """The file as its parsed content, by name."""
    assert timesteps.build(TIMES, VE(), 3).tolist() == TIMES
    assert timesteps.build("mine", VE(), 3, {"mine": content}).tolist() == TIMES
    timesteps.check("mine", {"mine": content})
    timesteps.check_file(content, "mine.json")


def test_a_file_may_hold_a_schedule_for_each_number_of_steps():
    named = {"mine": {"1": [80, 0.002], "3": TIMES}}
    for n, times in named["mine"].items():
        assert timesteps.build("mine", VE(), int(n), named).tolist() == times


def test_a_solvers_file_is_a_schedule(tmp_path):
    table = registry.build("ipndm", VE(), timesteps.build("edm", VE(), 5))
    table.save(tmp_path / "mine.json")
    content = json.loads((tmp_path / "mine.json").read_text())
    timesteps.check_file(content, "mine.json")
    assert torch.equal(timesteps.build("mine", VE(), 5, {"mine": content}), table.t)


def test_a_formulas_name_means_the_formula():
    assert torch.equal(timesteps.build("edm", VE(), 3, {"edm": TIMES}), timesteps.build("edm", VE(), 3))


def test_no_file_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "schedules", tmp_path / "inputs/schedules"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mine.json").write_text(json.dumps(TIMES))
    with pytest.raises(UserError, match="'mine'"):
        timesteps.build("mine", VE(), 3)


def test_ends_are_made_exact_and_may_lie_above_t_min():
    t = timesteps.build([80.00000001, 1, 0.0019999999], VE(), 2)
    assert (t[0], t[-1]) == (80, 0.002)
    assert timesteps.build([80, 1, 0.01], VE(), 2)[-1] == 0.01


# Content that can be no schedule at all, and content that is none for 3 steps on this noise; what the error names.
NEVER = [
    ([80, 1, 2, 0.002], "fall strictly"),
    ({"3": [80, 1, 1, 0.002]}, "fall strictly"),
    ({"3": "edm"}, "list of times"),
    ({"t": "edm"}, "list of times"),
    ([80, True, 0.1, 0.002], "list of times"),
    ([80, float("nan"), 0.1, 0.002], "list of times"),
    ([80], "at least two"),
    (3, "list of times"),
    (None, "list of times"),
]
NOT_HERE = [
    (TIMES[:-1], "4 times, got 3"),
    ({"4": [80, 3, 2, 1, 0.002]}, "3 steps, only of 4"),
    ([79, 10, 1, 0.002], "80"),
    ([80, 10, 1, 0.001], "0.002"),
]


@pytest.mark.parametrize(("content", "field"), NEVER + NOT_HERE)
def test_a_bad_schedule_is_told_by_its_name(content, field):
    with pytest.raises(UserError, match=f"^mine: .*{field}"):
        timesteps.build("mine", VE(), 3, {"mine": content})


@pytest.mark.parametrize(("content", "field"), NEVER)
def test_a_file_that_holds_no_schedule_is_told_by_its_path(content, field):
    with pytest.raises(UserError, match=rf"^inputs/mine\.json: .*{field}"):
        timesteps.check_file(content, "inputs/mine.json")


@pytest.mark.parametrize("schedule", ["mime", 3, None, [80, 1, 2], [1.0], [80, "1"]])
def test_what_can_be_no_schedule_of_any_model_is_refused(schedule):
    with pytest.raises(UserError):
        timesteps.check(schedule, ["mine", "gits"])
    for fine in ("mine", "gits", "edm", TIMES, [1, 0]):
        timesteps.check(fine, ["mine", "gits"])
