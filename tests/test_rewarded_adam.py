"""Fits by Adam that raise a reward beside imitating."""

import pytest
import torch
from support import fits
from support.fits import NOISE, Dying, Killed, Net, pairs, parameters

from s4spipe.learning import adam, distance
from s4spipe.learning.families import LMS, Times
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.solvers import timesteps


def large(x, condition):
    return x.mean(1)


def learn(folder, of=large, weight=1.0, epochs=8, net=None):
    t = timesteps.build("logsnr", NOISE, 4)
    student = LMS("ipndm", NOISE, t, 3, Times(NOISE, t))
    task = fits.task(student, folder, net=net)
    reward = None if of is None else adam.Reward(of, weight)
    return student, adam.fit(task, adam.joint(epochs, 2), distance.l2, adam.Adam(20, 0.02), reward)


def kept(history):
    """The row of the parameters that were kept."""
    best = history[0]
    for i, row in enumerate(history):
        least = min(past["distance"] for past in history[:i] or history[:1])
        if row["validation"] < best["validation"] and row["distance"] <= adam.GUARD * least:
            best = row
    return best


def test_the_loss_is_the_distance_less_the_reward_in_its_units(tmp_path):
    student, history = learn(tmp_path, weight=3.0, epochs=4)
    of_teacher = large(pairs(30, 2, Net()).x_0, None)
    for row in history:
        reward = 3 * row["reward"] / of_teacher.std().item()
        assert row["validation"] == pytest.approx(row["distance"] - history[0]["distance"] * reward, rel=1e-5)
    some = pairs(30, 2, Net())
    x = sample(Net(), student(), some.x_T)
    best = kept(history)
    assert best["reward"] == pytest.approx(large(x, None).mean().item(), rel=1e-4)
    assert best["distance"] == pytest.approx(distance.l2(x, some.x_0).mean().item(), rel=1e-4)


def test_a_reward_rises_on_noises_that_were_not_learned_from(tmp_path):
    unseen = pairs(300, 9, Net())
    means = []
    for of in (None, large):
        student, _ = learn(tmp_path / str(of), of, weight=3.0)
        means.append(large(sample(Net(), student(), unseen.x_T), None).mean().item())
    assert means[1] > means[0] + 0.01


def test_a_reward_is_not_won_by_ruin(tmp_path):
    """With a weight by which images would be ruined, the distance stays within the guard of the least."""
    history = learn(tmp_path, weight=1e3, epochs=10)[1]
    best = kept(history)
    least = min(row["distance"] for row in history[: history.index(best) + 1])
    assert best["distance"] <= adam.GUARD * least
    assert max(row["distance"] for row in history) > adam.GUARD * least  # such were tried, and undone


@pytest.mark.parametrize("of", [lambda x, c: torch.ones(len(x)), lambda x, c: x.mean(1) / 0])
def test_a_reward_that_is_the_same_for_all_or_not_finite_is_refused(of, tmp_path):
    with pytest.raises(UserError, match="reward of the teacher's samples is not finite, or the same for all"):
        learn(tmp_path, of)


def test_a_killed_fit_goes_on_to_the_same_solver(tmp_path):
    whole = learn(tmp_path / "whole", weight=3.0)[0]
    with pytest.raises(Killed):
        learn(tmp_path / "killed", weight=3.0, net=Dying())
    again = learn(tmp_path / "killed", weight=3.0)[0]
    torch.testing.assert_close(parameters(again), parameters(whole), rtol=1e-9, atol=1e-12)
