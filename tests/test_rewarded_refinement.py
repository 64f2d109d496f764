"""A refinement that is also for a reward: its gradient, that the reward rises, and that it cannot be won by ruin."""

from dataclasses import replace

import pytest
import torch
from support import fits
from support.fits import Dying, Killed, Net, pairs
from support.problems import noises
from test_refinement import ALL, WEIGHTS, feature_fn, make

from s4spipe.learning import refinement
from s4spipe.learning.families import Free
from s4spipe.learning.gauss_newton import Parameters
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample

LABELS = torch.tensor([0.7, 1.0, 1.3])


def reward(x, condition):
    """What a sample shows of a direction that depends on its condition."""
    towards = WEIGHTS[0] if condition is None else torch.outer(condition, WEIGHTS[0]) + WEIGHTS[1]
    return torch.tanh(-0.5 * (x * towards).sum(1))


def conditional(n, seed):
    return pairs(n, seed, Net(), LABELS.double()[torch.arange(n) % 3])


def problem_of(student, some, rewarded=reward):
    own = refinement.Problem(Parameters(student, ALL), Net(), some, feature_fn, 15, (), rewarded, 2.0)
    return own.scaled()


def refined(student, folder, steps=6, rewarded=reward, weight=1.0, net=None):
    task = fits.task(student, folder, conditional(120, 1), conditional(60, 2), net, micro_batch_size=50)
    return refinement.refine(task, feature_fn, steps, rewarded, weight)


def seen(student, seed=7):
    """The mean reward and the distance of samples from other noises."""
    some = conditional(600, seed)
    x = sample(Net(), student(), some.x_T, some.condition).detach()
    (own,), (goal,) = feature_fn(x), feature_fn(some.x_0)
    return reward(x, some.condition).mean().item(), refinement.frechet.between(own.double(), goal.double())


def test_the_slope_by_parameters_is_that_of_finite_differences():
    student = make()
    problem = problem_of(student, conditional(40, 1))
    parameters = problem.parameters
    goal, x = problem.goal(), parameters.get()

    def objective():
        found = problem.values(goal)
        return found.distance - problem.rate * (found.reward - problem.base)

    value, slope, curvature = problem.value_and_slope(goal, 0)
    assert value == pytest.approx(1, abs=1e-6)
    assert value == pytest.approx(objective(), abs=1e-9)
    along, h, values = noises(1, len(x), seed=3)[0], 1e-4, []
    for sign in (1, -1):
        parameters.put(x + sign * h * along)
        values.append(objective())
    assert (slope @ along).item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-3)
    parameters.put(x)
    unrewarded = replace(problem, reward=None)
    _, without, same = unrewarded.value_and_slope(unrewarded.goal(), 0)
    assert (slope - without).norm() > 0.1 * without.norm()
    torch.testing.assert_close(curvature, same)  # that of the distance


def test_a_reward_is_scaled_by_its_spread_over_the_teachers_samples():
    some = conditional(40, 1)
    problem = problem_of(make(), some)
    rewards = problem.goal()[:, -1]
    assert rewards.std().item() == pytest.approx(2.0, rel=1e-6)
    x = sample(Net(), make()(), some.x_T, some.condition).detach()
    assert problem.base == pytest.approx(reward(x, some.condition).mean().item(), rel=1e-6)
    assert problem.values(problem.goal()).reward == pytest.approx(problem.base, rel=1e-6)


def test_the_reward_rises_and_the_distance_is_guarded(tmp_path):
    before, plain, rewarded = make(), make(), make()
    refined(plain, tmp_path / "plain", rewarded=None)
    history = refined(rewarded, tmp_path / "rewarded")
    assert history[-1]["reward"] > history[0]["reward"] + 0.05
    (start, distance), (without, _), (won, after) = map(seen, (before, plain, rewarded))
    assert won > max(start, without) + 0.015
    assert after < refinement.GUARD * distance


@pytest.mark.parametrize("sign", [1, -1])
def test_a_reward_cannot_be_won_by_ruin(sign, tmp_path):
    """Brighter and brighter, or darker: with a weight that nothing outweighs."""
    before, student = make(), make()
    history = refined(student, tmp_path, 8, lambda x, condition: sign * x.sum(1), weight=1e4)
    assert history[-1]["reward"] > history[0]["reward"]
    assert seen(student)[1] < 1.2 * refinement.GUARD * seen(before)[1]  # of samples that no step was chosen by


def test_a_killed_refinement_goes_on_where_it_was(tmp_path):
    whole, student = make(), make()
    history = refined(whole, tmp_path / "whole", steps=4)
    with pytest.raises(Killed):
        refined(make(), tmp_path / "killed", steps=4, net=Dying())
    assert refined(student, tmp_path / "killed", steps=4) == history
    assert torch.equal(Parameters(student, ALL).get(), Parameters(whole, ALL).get())


def test_a_reward_that_is_the_same_for_all_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^refine\.reward: it is the same for all of the teacher's samples"):
        refined(make(), tmp_path, rewarded=lambda x, condition: 0 * x.sum(1) + 3)


@pytest.mark.parametrize("teachers", [True, False])
def test_a_reward_that_is_not_finite_is_refused(teachers, tmp_path):
    calls = []

    def broken(x, condition):
        calls.append(len(x))
        return reward(x, condition) / ((len(calls) > 3) if teachers else (len(calls) <= 3))

    with pytest.raises(UserError, match=r"^refine\.reward: it is not finite for the samples of the teacher or of"):
        refined(make(), tmp_path, rewarded=broken)


def test_its_family_may_have_any_start(tmp_path):
    student = Free(make()())
    assert refined(student, tmp_path, steps=0)[0]["validation"] == pytest.approx(1, abs=0.2)
