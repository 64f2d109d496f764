"""Evolution strategies for a reward without gradient, where the reward is the distance to a teacher's samples."""

import math
from dataclasses import replace

import pytest
import torch
from support.fits import NOISE, Killed, Net, pairs, parameters

from s4spipe.learning.distance import l2
from s4spipe.learning.families import LMS, Free, Times
from s4spipe.learning.gauss_newton import mean_distance
from s4spipe.learning.reward import Settings, evolve_parameters, ranks
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch
from s4spipe.solvers import registry, timesteps

NET = Net()
TRAINING, VALIDATION, HELD_OUT = pairs(60, 1, NET), pairs(40, 2, NET), pairs(100, 3, NET)
SETTINGS = Settings(steps=8, pairs=6, seed=1)


def distance(given):
    return lambda table: mean_distance(table, NET, given, l2, 100)


def make(family="lms"):
    t = timesteps.build("logsnr", NOISE, 4)
    if family == "lms":
        return LMS("ipndm", NOISE, t, 3, Times(NOISE, t))
    return Free(registry.make("dpmpp_3m", "logsnr", NOISE, 4))


def evolve(student, folder, objective=None, validation=None, settings=SETTINGS):
    given = objective or distance(TRAINING), validation or distance(VALIDATION)
    return evolve_parameters(student, *given, settings, Scratch(folder))


@pytest.mark.parametrize("family", ["lms", "free"])
def test_a_reward_raises_the_likeness_to_the_teacher(family, tmp_path):
    student = make(family)
    before = distance(HELD_OUT)(student())
    history = evolve(student, tmp_path, settings=replace(SETTINGS, steps=20, pairs=12))
    least = min(row["validation"] for row in history)
    assert least < 0.5 * history[0]["validation"]
    assert distance(VALIDATION)(student()) == pytest.approx(least, rel=1e-12)
    assert distance(HELD_OUT)(student()) < 0.6 * before


def test_a_step_is_the_formula(tmp_path):
    """One step written out, with ranks counted by sorting."""
    student, start = make(), parameters(make())
    settings = Settings(steps=1, pairs=5, spread=0.01, seed=7)
    evolve(student, tmp_path, settings=settings)
    e = torch.randn(5, len(start), dtype=start.dtype, generator=torch.Generator().manual_seed(7 * 100_003))
    trial, values = make(), {}
    for i in range(5):
        for sign in (1, -1):
            torch.nn.utils.vector_to_parameters(start + sign * 0.01 * e[i], trial.parameters())
            trial.clip()
            values[i, sign] = distance(TRAINING)(trial())
    order = sorted(values, key=values.get)
    w = torch.tensor([float(order.index((i, 1)) - order.index((i, -1))) for i in range(5)]).double()
    torch.nn.utils.vector_to_parameters(start - 0.01 * (w @ e) / w.square().sum().sqrt(), trial.parameters())
    trial.clip()
    assert distance(VALIDATION)(trial()) < distance(VALIDATION)(make()())
    torch.testing.assert_close(parameters(student), parameters(trial), rtol=1e-12, atol=1e-12)


def test_only_the_order_of_the_objective_counts(tmp_path):
    plain, bent = make(), make()
    evolve(plain, tmp_path / "plain")
    evolve(bent, tmp_path / "bent", lambda table: math.log(distance(TRAINING)(table)) - 100)
    assert torch.equal(parameters(plain), parameters(bent))


def test_ranks_are_those_of_sorting_and_what_is_equal_shares_them():
    values = torch.tensor([3.0, 1.0, math.inf, 1.0, math.inf]).double()
    assert ranks(values, values).tolist() == [2.5, 1.0, 4.0, 1.0, 4.0]


def test_it_keeps_the_start_where_nothing_is_better(tmp_path):
    student, spread = make(), SETTINGS.spread
    history = evolve(student, tmp_path, validation=lambda table: 1.0)
    assert torch.equal(parameters(student), parameters(make()))
    assert [row["spread"] for row in history[1:]] == pytest.approx([spread * 0.8**k for k in range(8)])


def test_values_that_are_not_finite_do_not_stop_it(tmp_path):
    calls = []

    def objective(table):
        calls.append(table)
        return float("nan") if len(calls) % 3 == 0 else distance(TRAINING)(table)

    student = make()
    history = evolve(student, tmp_path, objective, settings=replace(SETTINGS, steps=15))
    assert distance(VALIDATION)(student()) < 0.8 * history[0]["validation"]


def test_evaluations_are_counted(tmp_path):
    calls = []

    def counting(given):
        def of(table):
            calls.append(table)
            return distance(given)(table)

        return of

    history = evolve(make(), tmp_path, counting(TRAINING), counting(VALIDATION))
    assert history[-1]["evaluations"] == len(calls) == 1 + 8 * (2 * 6 + 1)


def test_a_killed_evolution_goes_on_where_it_was(tmp_path):
    whole, student, calls = make(), make(), []
    history = evolve(whole, tmp_path / "whole")

    def dying(table):
        calls.append(table)
        if len(calls) == 45:
            raise Killed
        return distance(TRAINING)(table)

    with pytest.raises(Killed):
        evolve(make(), tmp_path / "killed", dying)
    assert len(Scratch(tmp_path / "killed").load("evolve_parameters")["history"]) == 1 + 3
    assert evolve(student, tmp_path / "killed") == history
    assert torch.equal(parameters(student), parameters(whole))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": -1}, "steps of an evolution must be at least 0"),
        ({"pairs": 0}, "pairs of an evolution must be at least 1"),
        ({"seed": "a"}, "seed of an evolution must be a whole number"),
        ({"spread": 0.0}, "spread of an evolution must be a number above 0"),
        ({"spread": float("nan")}, "spread of an evolution must be a number above 0"),
        ({"shrink": 1.5}, "shrink of an evolution must be above 0 and at most 1"),
    ],
)
def test_mistakes_are_named(change, says, tmp_path):
    with pytest.raises(UserError, match=says):
        evolve(make(), tmp_path, settings=replace(SETTINGS, **change))


def test_a_validation_that_is_never_finite_is_refused(tmp_path):
    with pytest.raises(UserError, match="the validation loss was never finite, so nothing was learned"):
        evolve(make(), tmp_path, validation=lambda table: float("nan"))
