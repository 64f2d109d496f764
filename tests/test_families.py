import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.problems import NOISES, Gaussian, noises, wavy

from s4spipe.learning import families, starts
from s4spipe.learning.families import FAMILIES, GS, LMS, SS, Banded, Times
from s4spipe.learning.task import TIMES, kind
from s4spipe.noise import VE, Flow
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN, Bands
from s4spipe.solvers import registry, timesteps

# family -> the solvers it can start from
STARTS = {
    "lms": ["ddim", "euler", "dpmpp_2m", "dpmpp_3m", "ipndm", "deis_tab", "deis_rhoab", "deis_log", "unip_bh2",
            "dpm_3m", "ipndm_afs"],
    "pc": ["unipc_bh1", "unipc_bh2", "unipc_bh1_2", "unipc_bh2_eps", "unipc_bh2_afs"],
    "dss": ["euler", "ddim", "euler_afs"],
    "ss": ["dpm_2s", "dpm_3s", "dpmpp_2s", "dpm_2s_afs"],
    "epd": ["parallel_midpoints", "parallel_midpoints_afs"],
    "gs": ["dpmpp_3m", "ddim", "dpmpp_3m_afs"],
    "bns": ["ddim", "unipc_bh2", "ipndm", "heun", "dpm_3s", "ipndm_afs"],
    "fixed": ["unipc_bh2", "dpmpp_3m", "dpm_2s", "ipndm", "ipndm_afs"],
    "free": ["ddim", "unipc_bh2", "dpmpp_3m", "ipndm_afs"],
    "adasde": ["dpm_2s"],
    "bezier": ["euler", "ipndm_v", "ipndm_v_2", "ipndm_v_afs"],
}  # fmt: skip
CASES = [(family, init) for family, starts in STARTS.items() for init in starts]
# Solvers whose network times are not their steps': an unrestricted table cannot learn times with them.
FIXED_TIMES = {("bns", "heun"), ("bns", "dpm_3s"), ("bns", "ipndm_afs")}
TIMELESS = {*FIXED_TIMES, *(case for case in CASES if case[0] == "free")}  # no learned schedule


def build(family, init, noise, nfe, schedule="logsnr", learn_times=False, order=3, **switches):
    """The family and the classical solver that it starts at. Of the switches, those that the family has."""
    start = registry.make(init, schedule, noise, nfe)
    times = Times(noise, start.t) if learn_times else None
    own = {name: on for name, on in switches.items() if name in FAMILIES[family].options}
    return families.make(family, start, times, order=order, **own), start


def shaken(student, by=0.1, seed=7):
    """With all its parameters moved."""
    with torch.no_grad():
        for p in student.parameters():
            p += by * noises(p.numel(), 1, seed=seed).view_as(p)
    return student


def fresh(table, x_T):
    """The fresh noises that a solver adds, if it adds some."""
    return [noises(*x_T.shape, seed=20 + k) for k in range(table.draws)]


def test_every_family_is_tested():
    assert set(STARTS) == set(FAMILIES)


@pytest.mark.parametrize("learn_times", [False, True])
@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize(("family", "init"), CASES)
def test_untouched_it_is_the_classical_solver(family, init, key, learn_times):
    """PC is UniPC with its corrector, SS DPM-Solver-2S and -3S, DSS Euler, GS DPM-Solver++(3M)."""
    if learn_times and (family, init) in FIXED_TIMES:
        with pytest.raises(UserError, match=f"'{init}'.*network times"):
            build(family, init, NOISES[key], 4, learn_times=True)
        return
    noise = NOISES[key]
    for nfe, schedule in ((3, "time_uniform"), (4, "logsnr"), (5, "time_quadratic"), (10, "edm")):
        student, known = build(family, init, noise, nfe, schedule, learn_times, consistent=nfe == 5)
        learned = student()
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
        return sample(problem, table, x_T, z=fresh(table, x_T))

    assert torch.autograd.gradcheck(end_point, parameters, eps=1e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("family", "init"), CASES)
def test_every_coefficient_matters_where_it_should(family, init):
    """As many entries of the parameters move the sample as `parameter_count` says."""
    student, _ = build(family, init, VE(), 5, "edm", learn_times=family == "fixed")
    x_T = noises(3, scale=80.0)
    if family == "adasde":  # noise of weight 0 is not drawn
        shaken(student, by=0.01)
    table = student()
    sample(lambda x, t, c: wavy(x, t), table, x_T, z=fresh(table, x_T)).square().sum().backward()
    moving = sum(int((p.grad.abs() > 0).sum()) for p in student.parameters() if p.grad is not None)
    if family in ("fixed", "dss"):  # shares of a whole: one entry, or one a row, follows from the others
        assert moving >= student.parameter_count
    else:
        assert moving == student.parameter_count


CONSISTENT = [c for c in CASES if c[0] in ("lms", "pc", "dss", "ss", "epd") and not c[1].endswith("_afs")]


@pytest.mark.parametrize(("family", "init"), CONSISTENT)
def test_consistent_rows_keep_the_sum(family, init):
    """So a denoiser that is constant is solved exactly, whatever is learned (Euler in t on VE: its form is noise's)."""
    student, start = build(family, init, VE(), 6, "edm", consistent=True)
    shaken(student, by=1, seed=5)
    x_T = noises(scale=80.0)
    exact = 0.7 + start.t[-1] * (x_T - 0.7) / start.t[0]
    y = sample(lambda x, t, c: torch.full_like(x, 0.7), student(), x_T)
    torch.testing.assert_close(y, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("family", "init"), CASES)
def test_its_file_is_small_and_loads_to_the_same_solver(family, init, tmp_path):
    student, _ = build(family, init, VE(), 10, learn_times=(family, init) not in TIMELESS)
    table = shaken(student)("any", {"family": family, **student.metadata()})
    table.save(tmp_path / "a.json")
    again = Tableau.load(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").stat().st_size < 20_000
    x_T = noises(scale=80.0)
    assert torch.equal(
        *(sample(lambda x, t, c: wavy(x, t), solver, x_T, z=fresh(solver, x_T)) for solver in (table, again))
    )


def test_network_times_of_a_free_table_stay_within_the_noises():
    student, _ = build("free", "ddim", VE(), 4)
    with torch.no_grad():
        student.x += torch.tensor([-50.0, 50.0, 0.0, 50.0])
    student.clip()
    table = student()
    assert table.t_c[0].item() == pytest.approx(80.0)
    assert table.t_c[1].item() == pytest.approx(0.002)
    assert student.x.abs().max() < 12


@pytest.mark.parametrize("basis", [PLAIN, Bands((0.5, 1.0), 2)], ids=["plain", "bands"])
def test_a_free_table_may_keep_its_first_state(basis):
    """By late: false, also where it goes on in bands."""
    start = registry.make("dpmpp_2m", "edm", VE(), 4)
    student = Banded.of("free", start, None, basis, late=False, order=3, consistent=False)
    learned = shaken(student)()
    assert (learned.c_0 == 1).all()
    assert learned.c[0].tolist() != start.c[0].tolist()
    usual = Banded.of("free", start, None, basis, late=True)
    assert usual.parameter_count - student.parameter_count == (basis.shape or (1,))[0]
    assert (shaken(usual)().c_0 != 1).all()
    wider = Banded.around(shaken(families.make("free", start, late=False)), Bands((0.5, 1.0), 2))
    assert (shaken(wider)().c_0 == 1).all()


@pytest.mark.parametrize("basis", [PLAIN, Bands((0.5, 1.0), 2)], ids=["plain", "bands"])
@pytest.mark.parametrize("late", [True, False])
def test_a_free_table_learns_how_much_of_a_constant_its_states_have(late, basis):
    start = starts.with_constant(registry.make("dpmpp_2m", "edm", VE(), 4), torch.ones(3, 1, 1).double())
    student = Banded.of("free", start, None, basis, late=late, order=3, consistent=False)
    assert student().agrees(replace(start.over(basis), name="free", meta={}))
    plain = Banded.of("free", registry.make("dpmpp_2m", "edm", VE(), 4), None, basis, late=late)
    numbers = (4 + late) * (basis.shape or (1,))[0]
    assert student.parameter_count - plain.parameter_count == numbers
    assert {"of_beta.u"} == {name for name, _ in student.named_parameters()} - dict(plain.named_parameters()).keys()
    learned = shaken(student)()
    assert (learned.beta[1:] != start.over(basis).beta[1:]).all()
    assert bool(learned.beta[0].any()) == late
    assert torch.equal(learned.m, start.m)
    wider = Banded.around(student, Bands((0.5, 1.0), 2)) if not basis.shape else student
    assert wider().beta.shape == (5, 3)


def test_other_families_refuse_a_constant():
    start = starts.with_constant(registry.make("dpmpp_2m", "edm", VE(), 4), torch.ones(3, 1, 1).double())
    with pytest.raises(UserError, match="adds a constant to its states, which only the family free learns"):
        families.make("bns", start)


def test_the_middle_points_of_epd_run_side_by_side():
    student, _ = build("epd", "parallel_midpoints", VE(), 6)
    table = shaken(student)()
    assert (table.nfe, table.depth) == (6, 4)


def test_the_number_of_parameters_is_the_papers():
    t = timesteps.build("edm", VE(), 5)
    assert LMS("ipndm", VE(), t, 3).parameter_count == 12
    assert LMS("ipndm", VE(), t, 3, consistent=True).parameter_count == 7
    assert LMS("euler", VE(), t, None, consistent=True).parameter_count == 10  # DSS: c_ij, j < i
    assert GS("dpmpp_3m", VE(), t).parameter_count == 30
    assert SS("dpm_2s", VE(), timesteps.build("edm", VE(), 3), 5).parameter_count == 2 * (3 + 1) + 1


@pytest.mark.parametrize(("family", "init", "count"), [("lms", "ipndm", 3), ("pc", "unipc_bh2", 7)])
def test_shared_corrections_are_the_same_for_all_steps(family, init, count):
    student, known = build(family, init, VE(), 5, "edm", shared=True)
    torch.testing.assert_close(student().W, known.W, rtol=1e-12, atol=1e-12)
    assert student.parameter_count == count
    with torch.no_grad():
        student.of_b.u += torch.tensor([0.1, -0.2, 0.3])
    added = student.b - student.of_b.start
    assert torch.equal(added[2:], added[2].expand(3, 3))
    torch.testing.assert_close(added[0], torch.tensor([0.1, 0.0, 0.0]).double())


def test_gaussian_coefficients_are_normal_and_the_seeds_own():
    t = timesteps.build("edm", VE(), 10)
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
    times = Times(noise, timesteps.build("logsnr", noise, 5))
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
        student.of_r[0] += torch.tensor(values)
    r = torch.cat(student.learned().r)
    assert ((r > 0) & (r < 1)).all()


@pytest.mark.parametrize(("family", "init"), CASES)
def test_metadata_is_the_coefficients_and_where_they_started(family, init):
    student, start = build(family, init, VE(), 4)
    before = json.loads(json.dumps(student.metadata()))
    after = json.loads(json.dumps(shaken(student).metadata()))
    assert set(before) == set(after)
    assert all(after[key] == value for key, value in before.items() if key.endswith("_start"))
    if isinstance(student, LMS):
        known = registry.coefficients(init, VE(), start.t)
        torch.testing.assert_close(torch.tensor(before["b_start"]).double()[:, : known.b.shape[1]], known.b[:, :3])
        assert before["b"] == before["b_start"] != after["b"]
        assert student.b.tolist() == after["b"]
        assert ("corrector" in after) == (known.corrector is not None)


@pytest.mark.parametrize(("family", "init"), CASES)
def test_coefficients_come_before_times_among_the_parameters(family, init):
    learn_times = (family, init) not in TIMELESS
    student, _ = build(family, init, VE(), 4, learn_times=learn_times)
    kinds = [kind(name) for name, _ in student.named_parameters()]
    assert kinds == sorted(kinds)
    assert (TIMES in kinds) == learn_times


MISTAKES = [
    ("lms", "ipndm", {"order": 0}, "order .*got 0"),
    ("lms", "ipndm", {"order": 6}, r"order .*\(5\), got 6"),
    ("lms", "dpmpp_3m", {"order": 2}, "'dpmpp_3m'.* order 2"),
    ("lms", "unipc_bh2", {}, "'unipc_bh2'.* corrector.* adams_bashforth, ddim"),
    ("pc", "ipndm", {}, "'ipndm'.* corrector.* unipc_bh1"),
    ("lms", "ipmdn", {}, "'ipndm'"),
    ("lms", "dpm_2s", {}, "'dpm_2s'.* ss"),
    ("ss", "ipndm", {}, "'ipndm'.* dpm_2s"),
    ("epd", "dpm_3s", {}, "'dpm_3s'.* parallel_midpoints"),
    ("gs", "ipndm", {}, "'ipndm'.* dpmpp_3m"),
    ("fixed", "heun", {}, "heun"),
]


@pytest.mark.parametrize(("family", "init", "change", "field"), MISTAKES)
def test_mistakes_are_told(family, init, change, field):
    with pytest.raises(UserError, match=field):
        build(family, init, VE(), 5, **change)


# -- The registry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["consistent", "shared"])
@pytest.mark.parametrize("family", STARTS)
def test_a_family_takes_its_own_switches_and_refuses_the_others_by_name(family, switch):
    start = registry.make(STARTS[family][0], "edm", VE(), 4)
    families.make(family, start, order=3, **{switch: False})
    if switch in FAMILIES[family].options:
        families.check_options(family, {switch: True, "order": 3})
        families.make(family, start, order=3, **{switch: True})
        return
    with pytest.raises(UserError, match=f"^{switch}: .*{family}") as error:
        families.check_options(family, {switch: True, "order": 3})
    assert all(name in str(error.value) for name, entry in FAMILIES.items() if switch in entry.options)
    with pytest.raises(UserError, match=f"^{switch}: .*{family}"):
        families.make(family, start, order=3, **{switch: True})


def test_an_order_is_for_those_that_have_one_and_nothing_to_the_others():
    start = registry.make("dpmpp_3m", "edm", VE(), 5)
    for family in ("gs", "bns", "free", "fixed"):
        a, b = (families.make(family, start, order=order)() for order in (1, 7))
        assert a.to_dict() == b.to_dict()
    assert families.make("lms", start, order=4).b.shape == (5, 4)
    assert families.make("lms", start, order=None).b.shape == (5, 5)
    assert families.make("dss", registry.make("euler", "edm", VE(), 5), order=2).b.shape == (5, 5)


def test_an_unknown_family_is_told():
    start = registry.make("ddim", "edm", VE(), 3)
    for refuse in (lambda: families.check_options("lsm", {}), lambda: families.make("lsm", start)):
        with pytest.raises(UserError, match="'lms'"):
            refuse()
