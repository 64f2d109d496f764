"""One fit of a solver for several numbers of evaluations, and its file."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import fits
from support.fits import NOISE, Dying, Killed, Net, pairs
from support.parameters import changed, mistake

from s4spipe import Tableau
from s4spipe.learning import distance, gauss_newton, span, starts
from s4spipe.learning.gauss_newton import Parameters, Problem
from s4spipe.models.noise import Flow
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau.lists import save_all
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry

NFES = (2, 3, 4, 6)
LEARNS = ("coefficients", "times")


def solvers(nfes=NFES, skip=0.1, name="dpmpp_3m", noise=NOISE):
    return [starts.late(registry.make(name, "edm", noise, nfe), skip) for nfe in nfes]


def shaken(student, seed=0, size=0.02):
    generator = torch.manual_seed(seed)
    with torch.no_grad():
        for p in student.parameters():
            p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return student


def learn(folder, net=None, steps=6):
    student = span.Span(solvers())
    task = fits.task(span.Member(student, NFES[-1]), folder, net=net)
    return student, span.fit(student, task, distance.l2, 40, steps)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m", "ipndm", "unipc_bh2"])
def test_it_starts_exactly_at_its_starts(name):
    given = solvers(name=name)
    student = span.Span(given[::-1])
    assert student.nfes == list(NFES)
    for table in given:
        assert replace(student(table.nfe, table.name), meta=table.meta).agrees(table)


@settings(deadline=None, max_examples=30)
@given(nfes=st.sets(st.integers(1, 20), min_size=2, max_size=8), first=st.integers(0, 3))
def test_functions_are_orthogonal_and_of_mean_square_one(nfes, first):
    of = span.functions(sorted(nfes), first)
    assert [len(rows) for rows in of.values()] == [max(nfe - first, 0) for nfe in sorted(nfes)]
    values = torch.cat(list(of.values()))
    if len(values):
        torch.testing.assert_close(values.T @ values / len(values), torch.eye(values.shape[1]).double())


def test_all_weights_of_few_steps_can_be_learned():
    """With two NFEs of so few steps, the functions are as many as the places, so nothing is lost to smoothness."""
    student = span.Span(solvers((2, 3)))
    entries = sum(len(rows) for rows in student.functions["kappa"].values())
    assert student.functions["kappa"][3].shape[1] == entries == 5


def test_numbers_do_not_grow_as_those_of_separate_solvers():
    few, many = (span.Span(solvers(range(4, most))).parameter_count for most in (13, 31))
    assert many < 1.1 * few
    assert few < 0.6 * sum(n * (n + 1) // 2 + 2 * n + 1 for n in range(4, 13))


def test_the_slope_is_that_of_finite_differences_of_the_mean_logarithm():
    net, student = Net(), shaken(span.Span(solvers()))
    some = pairs(7, 1, net)
    problem = span.Problems([Problem(Parameters(span.Member(student, nfe), LEARNS), net, distance.l2, 5)
                             for nfe in NFES])  # fmt: skip
    loss, slope, curvature = problem.linearised(some, 0)
    assert loss == pytest.approx(problem.loss(some), rel=1e-5)
    each = [member.loss(some) for member in problem.members]
    assert loss == pytest.approx(math.prod(each) ** (1 / len(each)), rel=1e-5)
    at, generator = problem.parameters.get(), torch.manual_seed(3)
    for _ in range(4):
        direction = torch.randn(len(at), generator=generator, dtype=at.dtype)
        sides = []
        for sign in (1, -1):
            problem.parameters.put(at + sign * 1e-4 * direction)
            sides.append(math.log(problem.loss(some)))
        problem.parameters.put(at)
        assert (sides[0] - sides[1]) / 2e-4 == pytest.approx((slope @ direction).item(), rel=2e-2, abs=1e-3)
    assert torch.linalg.eigvalsh(curvature).min() > -1e-9 * curvature.diag().max()


def test_one_fit_lowers_the_loss_at_every_nfe(tmp_path):
    student, history = learn(tmp_path)
    net = Net()
    unseen = pairs(200, 5, net)
    for table in solvers():
        before, after = (gauss_newton.mean_distance(t, net, unseen, distance.l2, 200)
                         for t in (table, student(table.nfe)))  # fmt: skip
        assert after < 0.7 * before
    losses = [row["validation"] for row in history]
    assert losses[-1] == min(losses)
    assert history[1]["evaluations"] > 40 * sum(NFES) * 5


def test_a_killed_fit_goes_on_to_the_same_solvers(tmp_path):
    whole = learn(tmp_path / "whole")[0]
    with pytest.raises(Killed):
        learn(tmp_path / "killed", Dying())
    again = learn(tmp_path / "killed")[0]
    torch.testing.assert_close(fits.parameters(again), fits.parameters(whole), rtol=1e-9, atol=1e-12)


def test_starts_are_on_one_schedule_and_skip_what_is_linear_in_one_over_nfe():
    skips, wanted = (0.0, 0.1, 0.3), {2: 0.3, 3: 0.1 / 2 + 0.3 / 2, 6: 0.1}

    def candidates(nfe):
        made = [registry.make("dpmpp_3m", schedule, NOISE, nfe) for schedule in ("edm", "logsnr")]
        return [starts.late(table, skip) for table in made for skip in skips]

    def loss(table):
        better = 0.5 if table.meta["schedule"] == "logsnr" else 1.0
        return better * math.exp(abs(table.meta["skip"] - wanted[table.nfe]))

    chosen = span.choose({nfe: candidates(nfe) for nfe in (2, 3, 6)}, loss)
    assert [table.meta["schedule"] for table in chosen] == ["logsnr"] * 3
    assert [table.meta["skip"] for table in chosen] == pytest.approx([0.3, 0.2, 0.1])
    assert chosen[0].agrees(starts.late(registry.make("dpmpp_3m", "logsnr", NOISE, 2), 0.3))


@pytest.mark.parametrize(("given", "says"), [
    (lambda: solvers((4,)), "two or more NFEs, each different, got 4"),
    (lambda: solvers((4, 4)), "each different, got 4, 4"),
    (lambda: [], "got none"),
    (lambda: [*solvers((4,)), registry.make("ddim", "edm", Flow(1e-3, 0.999), 5)], "one noise schedule"),
    (lambda: [*solvers((4,)), registry.make("sa_solver", "edm", NOISE, 5)], "fresh noise"),
])  # fmt: skip
def test_other_starts_are_refused(given, says):
    with pytest.raises(UserError, match=says):
        span.Span(given())


def test_only_late_starts_are_refused():
    with pytest.raises(UserError, match=r"needs 0.0 among the fractions to skip"):
        span.choose({nfe: solvers((nfe,)) for nfe in NFES}, lambda table: 1.0)


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    student = shaken(span.Span(solvers(noise=Flow(1e-3, 0.999))))
    save_all(tmp_path / "solvers.json", [student(nfe, "one").detached() for nfe in NFES])
    return student, tmp_path / "solvers.json"


def test_one_file_has_a_solver_for_every_nfe(file):
    student, path = file
    for nfe in NFES:
        assert Tableau.load(path, nfe).agrees(student(nfe, "one").detached())
        scheduler = S4SScheduler.from_tableau(path, nfe=nfe)
        scheduler.set_timesteps(nfe)
        assert len(scheduler.timesteps) == nfe


@pytest.mark.parametrize("nfe", [None, 5, "4"])
def test_the_nfes_of_a_file_are_named_to_who_asks_for_none_or_another(file, nfe):
    with pytest.raises(UserError, match=r"solvers.json: has solvers with 2, 3, 4, 6 evaluations: choose one of them"):
        Tableau.load(file[1], nfe)


def test_a_file_with_one_solver_can_be_asked_for_its_nfe(tmp_path):
    table = registry.make("ddim", "edm", NOISE, 3)
    table.save(tmp_path / "solver.json")
    assert Tableau.load(tmp_path / "solver.json", 3).agrees(table)
    with pytest.raises(UserError, match=r"has solvers with 3 evaluations: .* got 4"):
        Tableau.load(tmp_path / "solver.json", 4)


# -- in params.yaml ----------------------------------------------------------------------------------------------------

BLOCK = {"family": "free", "learns": "joint", "optimizer": "gauss_newton", "radius": 0.0}


def test_a_learner_can_span_all_nfes():
    said = mistake(changed(("spanning", ["gn"]), ("nfe", [4, 5])))
    assert said == "learners.gn.family: must be free for a solver in `spanning`, got gs"


@pytest.mark.parametrize(("more", "says"), [
    ([("learners.gn", BLOCK | {"optimizer": "adam", "warmup_epochs": 0})], "gn.optimizer: must be gauss_newton"),
    ([("learners.gn", BLOCK | {"bands": 3})], "learners.gn.bands: must be 1"),
    ([("learners.gn", BLOCK | {"distance": "mixed"})], "learners.gn.distance: must be l2 or pseudo_huber"),
    ([("learners.gn", BLOCK | {"late": False})], "learners.gn.late: must be left out"),
    ([("learners.gn", BLOCK | {"mean": "channels"})], "learners.gn.mean: must be left out"),
    ([("learners.gn", BLOCK), ("starts.gn.skip", [0.1])], "starts.gn.skip: .* needs 0.0 among"),
    ([("learners.gn", BLOCK), ("nfe", [5])], r"spanning: needs two or more NFEs, got nfe: \[5\]"),
    ([("learners.gn", BLOCK), ("refined", ["gn"])], "spanning: gn is in `refined` too"),
    ([("spanning", ["no"])], "spanning: unknown learner 'no'"),
    ([("spanning", ["gn", "gn"])], "spanning: every entry may appear only once"),
])  # fmt: skip
def test_what_cannot_span_is_named(more, says):
    with pytest.raises(UserError, match=says):
        raise UserError(mistake(changed(("nfe", [4, 5]), ("spanning", ["gn"]), *more)))
