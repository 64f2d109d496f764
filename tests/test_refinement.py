from dataclasses import replace

import pytest
import torch
from support import fits
from support.fits import NOISE, Dying, Killed, Net, pairs
from support.problems import noises

from s4spipe.learning import adjoint, refinement
from s4spipe.learning.families import Free
from s4spipe.learning.gauss_newton import Parameters
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.starts import late
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry

ALL = ("coefficients", "times")
WEIGHTS = noises(3, 3, seed=9)


def feature_fn(x):
    return [torch.cat([x, torch.sin(3 * x @ WEIGHTS)], 1)]


def make(nfe=3, skip=0.2):
    return Free(late(registry.make("dpmpp_3m", "logsnr", NOISE, nfe), skip))


def problem_of(student, net, n, seed=1, micro_batch_size=20):
    return refinement.Problem(
        Parameters(student, ALL), net, pairs(n, seed, net), feature_fn, micro_batch_size, [(6, 1.0)]
    )


def refine(student, folder, steps=6, seeing=feature_fn, **options):
    options = {"training": 120, "validation": 60, "micro_batch_size": 50, **options}
    return refinement.refine(fits.task(student, folder, **options), seeing, steps)


def test_the_slope_by_parameters_is_that_of_finite_differences():
    student, net = make(), Net()
    problem = problem_of(student, net, 40, micro_batch_size=15)
    parameters = problem.parameters
    goal, x = problem.goal(), parameters.get()
    value, slope, _ = problem.value_and_slope(goal)
    assert value == pytest.approx(problem.values(goal).distance, rel=1e-9)
    along, h = noises(1, len(x), seed=3)[0], 1e-4
    values = []
    for sign in (1, -1):
        parameters.put(x + sign * h * along)
        values.append(problem.values(goal).distance)
    assert (slope @ along).item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-3)


def test_the_curvature_bounds_the_distance_from_above():
    """|f - T f|^2 with T held is the distance here, and above it elsewhere (the least over all T)."""
    student, net = make(), Net()
    problem = problem_of(student, net, 400, micro_batch_size=400)
    parameters = problem.parameters
    goal, x = problem.goal(), parameters.get()
    value, slope, curvature = problem.value_and_slope(goal, 0)
    step = -torch.linalg.solve(curvature + 1e-3 * torch.diag(curvature.diag() + curvature.diag().mean()), slope) / 20
    model = value + slope @ step + step @ curvature @ step / 2
    parameters.put(x + step)
    assert problem.values(goal).distance < value
    assert problem.values(goal).distance <= model.item() * 1.02


def test_it_brings_the_distribution_closer_and_never_ends_further(tmp_path):
    student = make()
    history = refine(student, tmp_path)
    assert min(row["validation"] for row in history) < 0.7 * history[0]["validation"]
    assert all(b["train"] <= a["train"] for a, b in zip(history, history[1:], strict=False))
    net = Net()
    held_out, before = (problem_of(s, net, 300, seed=7, micro_batch_size=100) for s in (student, make()))
    goal = held_out.goal()
    assert held_out.values(goal).distance < 0.7 * before.values(goal).distance


def test_it_keeps_the_start_where_nothing_is_better(tmp_path):
    student, net = make(), Net()
    table = student()
    x_T = pairs(60, 1, net).x_T
    same = Pairs(x_T, sample(net, table, x_T).detach(), None)
    history = refine(student, tmp_path, steps=3, training=same, validation=same)
    assert history[0]["train"] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(adjoint.entries(student()), adjoint.entries(table), rtol=0, atol=1e-3)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_trial_that_diverges_is_a_step_too_far(broken, tmp_path):
    """The first trial gives no numbers; the search goes on with a shorter step."""
    calls = []

    def seeing(x):
        calls.append(len(x))
        return [feature_fn(x)[0] * (broken if len(calls) == 14 else 1)]

    history = refine(make(), tmp_path, 3, seeing, training=60, validation=30, micro_batch_size=60)
    assert all(row["train"] < float("inf") for row in history)
    assert min(row["validation"] for row in history) < history[0]["validation"]


@pytest.mark.parametrize(("nfe", "steps"), [(1, 18), (2, 9), (3, 6), (4, 4), (5, 3), (6, 3), (8, 3), (50, 3)])
def test_fewer_evaluations_get_more_steps(nfe, steps):
    assert refinement.steps_at(3, nfe) == steps
    assert refinement.steps_at(0, nfe) == 0


def test_evaluations_are_counted(tmp_path):
    """Of a trial that is rejected, those of its samples alone."""

    calls, net = [], Net()

    def seeing(x):
        calls.append(len(x))
        return [feature_fn(x)[0] * (float("nan") if len(calls) == 8 else 1)]  # the first trial's

    history = refine(make(), tmp_path, 2, seeing, net=net, training=60, validation=30, micro_batch_size=60)
    backward = 60 * 3 * (2 + 1 + 1)  # at the start for the slope and a probe, then for a slope a step
    assert history[-1]["evaluations"] == net.rows - 30 * 3 + backward
    assert history[1]["evaluations"] - history[0]["evaluations"] == 60 * 3 * (1 + 3) + 30 * 3


def test_nothing_but_the_distance_is_computed_where_it_is_not_below():
    student, net = make(), Net()
    problem = problem_of(student, net, 20)
    goal = problem.goal()
    value, slope, _ = problem.value_and_slope(goal)
    assert slope.any()
    same, nothing, _ = problem.value_and_slope(goal, below=value)
    assert same == value
    assert not nothing.any()


def test_parameters_that_are_no_solver_are_infinitely_far():
    student, net = make(), Net()
    problem = problem_of(student, net, 20)
    goal = problem.goal()
    with torch.no_grad():
        student.of_table.u.fill_(float("nan"))
    assert problem.values(goal).distance == float("inf")
    assert problem.value_and_slope(goal)[0] == float("inf")


def test_a_killed_refinement_goes_on_where_it_was(tmp_path):
    whole, student = make(), make()
    history = refine(whole, tmp_path / "whole", steps=4)
    with pytest.raises(Killed):
        refine(make(), tmp_path / "killed", steps=4, net=Dying())
    assert 1 <= len(Scratch(tmp_path / "killed").load("refine")["history"]) < 5
    assert refine(student, tmp_path / "killed", steps=4) == history
    assert torch.equal(Parameters(student, ALL).get(), Parameters(whole, ALL).get())


def test_each_network_starts_at_a_distance_of_1():
    student, net = make(), Net()

    def two(x):
        return [feature_fn(x)[0], 1e-3 * x[:, :1]]

    problem = refinement.Problem(Parameters(student, ALL), net, pairs(40, 1, net), two, 15).scaled()
    assert [width for width, _ in problem.networks] == [6, 1]
    found = problem.values(problem.goal())
    assert found.distances == pytest.approx([1, 1])
    assert found.reward is None
    assert found.distance > 2  # no map suits both better than its own suits each
    for k in range(2):
        alone = replace(problem, feature_fn=lambda x, k=k: [two(x)[k]], networks=[problem.networks[k]])
        found = alone.values(alone.goal())
        assert [found.distance, *found.distances] == pytest.approx([1, 1])


@pytest.mark.parametrize("narrow", [lambda x: x[:, :1].square(), lambda x: (60 * x).cos()])
def test_a_network_that_sees_little_harms_alone_and_not_beside_another(narrow, tmp_path):
    def distance(student):
        held_out = problem_of(student, Net(), 300, seed=7)
        return held_out.values(held_out.goal()).distance

    alone, beside, before = make(), make(), distance(make())
    refine(alone, tmp_path / "alone", 8, lambda x: [narrow(x)])
    refine(beside, tmp_path / "beside", 8, lambda x: [narrow(x), *feature_fn(x)])
    assert distance(alone) > 3 * before
    assert distance(beside) <= before


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_features_that_are_all_the_same_are_refused(value, tmp_path):
    with pytest.raises(UserError, match=r"^perceptual\.network: its features are the same whatever the solver"):
        refine(make(), tmp_path, seeing=lambda x: [0 * x + value, x])
