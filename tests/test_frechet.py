import pytest
import torch
from problems import noises
from test_fit import NOISE, Net, pairs

from s4spipe import fid, steps
from s4spipe.distill import adjoint, frechet
from s4spipe.distill.gauss_newton import Parameters
from s4spipe.families import Free, late
from s4spipe.files import Scratch
from s4spipe.pairs import Pairs
from s4spipe.sampling import sample

ALL = ("coefficients", "times")
WEIGHTS = noises(3, 3, seed=9)


def see(x):
    return torch.cat([x, torch.sin(3 * x @ WEIGHTS)], 1)


def make(nfe=3, share=0.2):
    return Free(late("dpmpp_3m", NOISE, steps.build("logsnr", NOISE, nfe), share))


def refine(student, folder, steps_=6, net=None, n=120):
    teacher = Net()
    return frechet.refine(
        student, teacher if net is None else net, pairs(n, 1, teacher), pairs(60, 2, teacher), see,
        at_once=50, steps=steps_, seed=0, scratch=Scratch(folder),
    )  # fmt: skip


def features(n, d, seed, scale=1.0):
    mix = noises(d, d, seed=seed)
    return scale * noises(n, d, seed=seed + 1) @ mix + 0.3


@pytest.mark.parametrize(("n", "d"), [(50, 4), (300, 20), (10, 15)])
def test_the_distance_is_that_of_fid(n, d):
    ours, theirs = features(n, d, 1), features(400, d, 5)
    goal = frechet.statistics(theirs)
    known = fid.frechet_distance(*(v.numpy() for v in (*frechet.statistics(ours), *goal)))
    assert frechet.distance(ours, goal)[0] == pytest.approx(known, rel=1e-6, abs=1e-6)
    assert frechet.distance(theirs, goal)[0] == pytest.approx(0, abs=1e-6)


def test_its_slope_is_that_of_finite_differences():
    ours, goal = features(40, 5, 1), frechet.statistics(features(60, 5, 5))
    _, slope = frechet.distance(ours, goal)
    along, h = noises(40, 5, seed=3), 1e-5
    up, down = (frechet.distance(ours + sign * h * along, goal)[0] for sign in (1, -1))
    assert (slope * along).sum().item() / len(ours) == pytest.approx((up - down) / (2 * h), rel=1e-5)


def test_the_slope_by_parameters_is_that_of_finite_differences():
    student, net = make(), Net()
    parameters = Parameters(student, ALL)
    problem = frechet.Problem(parameters, net, pairs(40, 1, net), see, 15)
    goal, x = problem.goal(), parameters.get()
    value, slope, _ = problem.value_and_slope(goal)
    assert value == pytest.approx(problem.value(goal), rel=1e-9)
    along, h = noises(1, len(x), seed=3)[0], 1e-4
    values = []
    for sign in (1, -1):
        parameters.put(x + sign * h * along)
        values.append(problem.value(goal))
    assert (slope @ along).item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-3)


def test_the_curvature_bounds_the_distance_from_above():
    """|f - T f|^2 with T held is the distance here, and above it elsewhere (the least over all T)."""
    student, net = make(), Net()
    parameters = Parameters(student, ALL)
    problem = frechet.Problem(parameters, net, pairs(400, 1, net), see, 400)
    goal, x = problem.goal(), parameters.get()
    value, slope, curvature = problem.value_and_slope(goal, 0)
    step = -torch.linalg.solve(curvature + 1e-3 * torch.diag(curvature.diag() + curvature.diag().mean()), slope) / 20
    model = value + slope @ step + step @ curvature @ step / 2
    parameters.put(x + step)
    assert problem.value(goal) < value
    assert problem.value(goal) <= model.item() * 1.02


def test_it_brings_the_distribution_closer_and_never_ends_further(tmp_path):
    student = make()
    history = refine(student, tmp_path)
    assert min(row["validation"] for row in history) < 0.7 * history[0]["validation"]
    assert all(b["train"] <= a["train"] for a, b in zip(history, history[1:], strict=False))
    net = Net()
    held_out = frechet.Problem(Parameters(student, ALL), net, pairs(300, 7, net), see, 100)
    before = frechet.Problem(Parameters(make(), ALL), net, pairs(300, 7, net), see, 100)
    goal = held_out.goal()
    assert held_out.value(goal) < 0.7 * before.value(goal)


def test_it_keeps_the_start_where_nothing_is_better(tmp_path):
    student, net = make(), Net()
    table = student()
    x_T = pairs(60, 1, net).x_T
    same = Pairs(x_T, sample(net, table, x_T).detach(), None)
    history = frechet.refine(student, net, same, same, see, at_once=50, steps=3, seed=0, scratch=Scratch(tmp_path))
    assert history[0]["train"] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(adjoint.entries(student()), adjoint.entries(table), rtol=0, atol=1e-3)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_trial_that_diverges_is_a_step_too_far(broken, tmp_path):
    """The first trial gives no numbers; the search goes on with a shorter step."""
    calls = []

    def seeing(x):
        calls.append(len(x))
        return see(x) * (broken if len(calls) == 12 else 1)

    student, teacher = make(), Net()
    some = pairs(60, 1, teacher), pairs(30, 2, teacher)
    history = frechet.refine(student, teacher, *some, seeing, at_once=60, steps=3, seed=0, scratch=Scratch(tmp_path))
    assert all(row["train"] < float("inf") for row in history)
    assert min(row["validation"] for row in history) < history[0]["validation"]


def test_evaluations_are_counted(tmp_path):
    """Of a trial that is rejected, those of its samples alone."""

    calls, net, teacher = [], Net(), Net()

    def seeing(x):
        calls.append(len(x))
        return see(x) * (float("nan") if len(calls) == 6 else 1)  # the first trial's

    history = frechet.refine(make(), net, pairs(60, 1, teacher), pairs(30, 2, teacher), seeing, at_once=60, steps=2,
                             seed=0, scratch=Scratch(tmp_path))  # fmt: skip
    backward = 60 * 3 * (2 + 1 + 1)  # at the start for the slope and a probe, then for a slope a step
    assert history[-1]["evaluations"] == net.rows - 30 * 3 + backward
    assert history[1]["evaluations"] - history[0]["evaluations"] == 60 * 3 * (1 + 3) + 30 * 3


def test_nothing_but_the_distance_is_computed_where_it_is_not_below():
    student, net = make(), Net()
    problem = frechet.Problem(Parameters(student, ALL), net, pairs(20, 1, net), see, 20)
    goal = problem.goal()
    value, slope, _ = problem.value_and_slope(goal)
    assert slope.any()
    same, nothing, _ = problem.value_and_slope(goal, below=value)
    assert same == value
    assert not nothing.any()


def test_parameters_that_are_no_solver_are_infinitely_far():
    student, net = make(), Net()
    problem = frechet.Problem(Parameters(student, ALL), net, pairs(20, 1, net), see, 20)
    goal = problem.goal()
    with torch.no_grad():
        student.u.fill_(float("nan"))
    assert problem.value(goal) == float("inf")
    assert problem.value_and_slope(goal)[0] == float("inf")


def test_a_killed_refinement_goes_on_where_it_was(tmp_path):
    class Killed(Exception):
        pass

    class Dying(Net):
        def forward(self, x, t, condition=None):
            if self.calls == 60:
                raise Killed
            return super().forward(x, t, condition)

    whole, student = make(), make()
    history = refine(whole, tmp_path / "whole", steps_=4)
    with pytest.raises(Killed):
        refine(make(), tmp_path / "killed", steps_=4, net=Dying())
    assert 1 <= len(Scratch(tmp_path / "killed").load("refine")["history"]) < 5
    assert refine(student, tmp_path / "killed", steps_=4) == history
    assert torch.equal(Parameters(student, ALL).get(), Parameters(whole, ALL).get())
