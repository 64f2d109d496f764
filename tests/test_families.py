import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NOISES, Gaussian, noises, wavy

from s4spipe import classical, steps
from s4spipe.errors import UserError
from s4spipe.families import FAMILIES, GS, LMS, SS, Times, late
from s4spipe.noise import VE, Flow
from s4spipe.sampling import sample
from s4spipe.tableau import Tableau

# family -> the solvers it can start from
STARTS = {
    "lms": [
        "ddim",
        "euler",
        "dpmpp_2m",
        "dpmpp_3m",
        "ipndm",
        "deis_tab",
        "deis_rhoab",
        "deis_log",
        "unip_bh2",
        "dpm_3m",
        "ipndm_afs",
    ],
    "pc": ["unipc_bh1", "unipc_bh2", "unipc_bh1_2", "unipc_bh2_eps", "unipc_bh2_afs"],
    "dss": ["euler", "ddim", "euler_afs"],
    "ss": ["dpm_2s", "dpm_3s", "dpmpp_2s", "dpm_2s_afs"],
    "epd": ["parallel_midpoints", "parallel_midpoints_afs"],
    "gs": ["dpmpp_3m", "ddim", "dpmpp_3m_afs"],
    "bns": ["ddim", "unipc_bh2", "ipndm", "heun", "dpm_3s", "ipndm_afs"],
    "fixed": ["unipc_bh2", "dpmpp_3m", "dpm_2s", "ipndm", "ipndm_afs"],
    "free": ["ddim", "unipc_bh2", "dpmpp_3m", "ipndm_afs"],
}
CASES = [(family, init) for family, starts in STARTS.items() for init in starts]
# Solvers whose network times are not their steps': an unrestricted table cannot learn times with them.
FIXED_TIMES = {("bns", "heun"), ("bns", "dpm_3s"), ("bns", "ipndm_afs")}
TIMELESS = {*FIXED_TIMES, *(case for case in CASES if case[0] == "free")}  # no learned schedule


def build(family, init, noise, nfe, schedule="logsnr", learn_times=False, order=3, consistent=False):
    t = steps.build(schedule, noise, len(classical.costs(init, nfe)))
    times = Times(noise, t) if learn_times else None
    return FAMILIES[family](init, noise, t, nfe, order, times, consistent), t


def test_every_family_is_tested():
    assert set(STARTS) == set(FAMILIES)


@pytest.mark.parametrize("learn_times", [False, True])
@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize(("family", "init"), CASES)
def test_untouched_it_is_the_classical_solver(family, init, key, learn_times):
    """PC is UniPC with its corrector, SS DPM-Solver-2S and -3S, DSS Euler, GS DPM-Solver++(3M)."""
    if learn_times and (family, init) in FIXED_TIMES:
        with pytest.raises(UserError, match="other network times than the steps', which learned times need"):
            build(family, init, NOISES[key], 4, learn_times=True)
        return
    noise = NOISES[key]
    for nfe, schedule in ((3, "time_uniform"), (4, "logsnr"), (5, "time_quadratic"), (10, "edm")):
        student, t = build(family, init, noise, nfe, schedule, learn_times, consistent=nfe == 5)
        learned, known = student(), classical.build(init, noise, t, nfe=nfe)
        assert learned.nfe == student.nfe == nfe
        for entry in ("t", "t_c", "c_0", "c", "W"):
            a, b = getattr(learned, entry), getattr(known, entry)
            assert (a - b).abs().max() <= 1e-12 * b.abs().max().clamp(min=1), (schedule, entry)


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
@pytest.mark.parametrize(("family", "init"), CASES)
def test_gradients_of_every_parameter_match_finite_differences(family, init, key):
    """On Gaussian data, where D is linear in x; away from the start and from the kinks of times."""
    noise = NOISES[key] if key != "flow" else Flow(0.01, 0.95)  # nearer to 1 finite differences are all rounding
    learn_times = (family, init) not in TIMELESS
    student, _ = build(family, init, noise, 4, "edm", learn_times=learn_times, consistent=family == "lms")
    problem, x_T = Gaussian(noise), noises(2, scale=noise.sigma_T)
    with torch.no_grad():
        for name, p in student.named_parameters():
            p += 0.01 * noises(p.numel(), 1, seed=3).view_as(p) if name != "times.xi_c" else 0
        if learn_times:
            student.times.xi_c += torch.linspace(-0.2, 0.5, len(student.times.xi_c), dtype=torch.float64)
    names, parameters = zip(*student.named_parameters(), strict=True)

    def end_point(*values):
        table = torch.func.functional_call(student, dict(zip(names, values, strict=True)), ())
        return sample(problem, table, x_T)

    assert torch.autograd.gradcheck(end_point, parameters, eps=1e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("family", "init"), CASES)
def test_every_coefficient_matters_where_it_should(family, init):
    """As many entries of the parameters move the sample as `parameter_count` says."""
    student, _ = build(family, init, VE(), 5, "edm", learn_times=family == "fixed")
    x_T = noises(3, scale=80.0)
    sample(lambda x, t, c: wavy(x, t), student(), x_T).square().sum().backward()
    moving = sum(int((p.grad.abs() > 0).sum()) for p in student.parameters() if p.grad is not None)
    if family in ("fixed", "dss"):  # shares of a whole: one entry, or one a row, follows from the others
        assert moving >= student.parameter_count
    else:
        assert moving == student.parameter_count


CONSISTENT = [c for c in CASES if c[0] in ("lms", "pc", "dss", "ss", "epd") and not c[1].endswith("_afs")]


@pytest.mark.parametrize(("family", "init"), CONSISTENT)
def test_consistent_rows_keep_the_sum(family, init):
    """So a denoiser that is constant is solved exactly, whatever is learned (Euler in t on VE: its form is noise's)."""
    student, t = build(family, init, VE(), 6, "edm", consistent=True)
    with torch.no_grad():
        for p in student.parameters():
            p += noises(p.numel(), 1, seed=5).view_as(p)
    x_T = noises(scale=80.0)
    exact = 0.7 + t[-1] * (x_T - 0.7) / t[0]
    y = sample(lambda x, t, c: torch.full_like(x, 0.7), student(), x_T)
    torch.testing.assert_close(y, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("family", "init"), CASES)
def test_its_file_is_small_and_loads_to_the_same_solver(family, init, tmp_path):
    student, _ = build(family, init, VE(), 10, learn_times=(family, init) not in TIMELESS)
    with torch.no_grad():
        for p in student.parameters():
            p += 0.1 * noises(p.numel(), 1, seed=7).view_as(p)
    table = student("any", {"family": family, **student.table()})
    table.save(tmp_path / "a.json")
    again = Tableau.load(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").stat().st_size < 20_000
    x_T = noises(scale=80.0)
    assert torch.equal(*(sample(lambda x, t, c: wavy(x, t), solver, x_T) for solver in (table, again)))


@pytest.mark.parametrize("key", NOISES)
def test_a_start_that_crosses_no_share_is_the_classical_solver(key):
    noise = NOISES[key]
    t = steps.build("edm", noise, 4)
    table, known = late("dpmpp_3m", noise, t, 0.0), classical.build("dpmpp_3m", noise, t)
    for entry in ("t", "t_c", "c_0", "c", "W"):
        a, b = getattr(table, entry), getattr(known, entry)
        assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp(min=1), entry


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_what_a_start_crosses_is_a_step_of_ddim_that_predicts_nothing(key, share):
    """So with a denoiser of 0 it ends where the classical solver does, and its evaluations are made after the share."""
    noise = NOISES[key]
    t = steps.build("logsnr", noise, 4)
    table, x_T = late("dpmpp_3m", noise, t, share), noises(2, scale=noise.sigma_T)
    nothing, crossed = (lambda x, t, c: torch.zeros_like(x)), noise.lambda_(table.t_c[0]) - noise.lambda_(t[0])
    known = sample(nothing, classical.build("dpmpp_3m", noise, t), x_T)
    torch.testing.assert_close(sample(nothing, table, x_T), known, rtol=1e-9, atol=1e-12)
    assert crossed.item() == pytest.approx(share * (noise.lambda_(t[-1]) - noise.lambda_(t[0])).item())
    assert table.t[-1] == t[-1]


def test_network_times_of_a_free_table_stay_within_the_noises():
    student, _ = build("free", "ddim", VE(), 4)
    with torch.no_grad():
        student.x += torch.tensor([-50.0, 50.0, 0.0, 50.0])
    student.clip()
    table = student()
    assert table.t_c[0].item() == pytest.approx(80.0)
    assert table.t_c[1].item() == pytest.approx(0.002)
    assert student.x.abs().max() < 12


def test_the_middle_points_of_epd_run_side_by_side():
    student, _ = build("epd", "parallel_midpoints", VE(), 6)
    with torch.no_grad():
        student.u += 0.1
    table = student()
    assert (table.nfe, table.depth) == (6, 4)


def test_the_number_of_parameters_is_the_papers():
    t = steps.build("edm", VE(), 5)
    assert LMS("ipndm", VE(), t, 3).parameter_count == 12
    assert LMS("ipndm", VE(), t, 3, consistent=True).parameter_count == 7
    assert LMS("euler", VE(), t, None, consistent=True).parameter_count == 10  # DSS: c_ij, j < i
    assert GS("dpmpp_3m", VE(), t).parameter_count == 30
    assert SS("dpm_2s", VE(), steps.build("edm", VE(), 3), 5).parameter_count == 2 * (3 + 1) + 1


@pytest.mark.parametrize(("family", "init", "count"), [("lms", "ipndm", 3), ("pc", "unipc_bh2", 7)])
def test_shared_corrections_are_the_same_for_all_steps(family, init, count):
    t = steps.build("edm", VE(), 5)
    student = FAMILIES[family](init, VE(), t, 5, 3, None, False, True)
    known = classical.build(init, VE(), t)
    torch.testing.assert_close(student().W, known.W, rtol=1e-12, atol=1e-12)
    assert student.parameter_count == count
    with torch.no_grad():
        student.u += torch.tensor([0.1, -0.2, 0.3])
    added = student.b - student.b_start
    assert torch.equal(added[2:], added[2].expand(3, 3))
    torch.testing.assert_close(added[0], torch.tensor([0.1, 0.0, 0.0]).double())


def test_gaussian_coefficients_are_normal_and_the_seeds_own():
    t = steps.build("edm", VE(), 10)
    drawn = []
    for seed in (0, 0, 1):
        student = LMS("ipndm", VE(), t, 3)
        student.randomise(seed)
        drawn.append(student.b)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    entries = drawn[0][drawn[0] != 0]
    assert len(entries) == LMS("ipndm", VE(), t, 3).parameter_count
    assert abs(entries.mean()) < 0.6
    assert 0.5 < entries.std() < 1.6


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


@given(values=st.lists(st.floats(-8, 8), min_size=3, max_size=3))
def test_any_nodes_stay_within_their_step(values):
    student, _ = build("ss", "dpm_3s", VE(), 5)
    with torch.no_grad():
        student.nodes += torch.tensor(values)
    r = torch.cat(student.learned().r)
    assert ((r > 0) & (r < 1)).all()


MISTAKES = [
    ("lms", "ipndm", {"order": 0}, "order must be between 1 and the NFE"),
    ("lms", "ipndm", {"order": 6}, r"order must be between 1 and the NFE \(5\), got 6"),
    ("lms", "dpmpp_3m", {"order": 2}, "looks back further than order 2"),
    ("lms", "unipc_bh2", {}, "has a corrector.* has not: use one of adams_bashforth, ddim"),
    ("pc", "ipndm", {}, "has no corrector.* use one of unipc_bh1"),
    ("lms", "ipmdn", {}, "did you mean 'ipndm'"),
    ("lms", "dpm_2s", {}, "no multistep method"),
    ("ss", "ipndm", {}, "no exponential single-step method"),
    ("epd", "dpm_3s", {}, "middle points that need one another"),
    ("gs", "ipndm", {}, "data form"),
    ("fixed", "heun", {}, "neither a multistep nor"),
]


@pytest.mark.parametrize(("family", "init", "change", "says"), MISTAKES)
def test_mistakes_are_told(family, init, change, says):
    with pytest.raises(UserError, match=says):
        build(family, init, VE(), 5, **change)
