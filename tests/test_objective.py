"""What a search minimises: each against what it is said to be, and a reward that cannot be won by ruin."""

import math

import pytest
import torch
from support.fits import NOISE, Net, pairs
from test_refinement import WEIGHTS, feature_fn

from s4spipe.features.base import frechet
from s4spipe.learning import distance
from s4spipe.learning.families import LMS, Times
from s4spipe.learning.objective import Frechet, Imitation, Rewarded, Samples
from s4spipe.learning.refinement import GUARD
from s4spipe.learning.reward import Settings, evolve_parameters
from s4spipe.learning.search import Settings as Search
from s4spipe.learning.search import evolve
from s4spipe.pipeline import cost, schema
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry

START = registry.make("ddim", "edm", NOISE, 4)


def samples(n=60, seed=1, size=7, condition=None):
    net = Net()
    return Samples(net, pairs(n, seed, net, condition), size)


def reward(x, condition):
    return (x * WEIGHTS[0]).sum(1) * (1 if condition is None else condition)


def student():
    return LMS("ipndm", NOISE, START.t, 3, Times(NOISE, START.t))


def test_imitation_is_the_mean_distance():
    given = samples()
    x = sample(given.denoiser, START, given.pairs.x_T)
    expected = distance.pseudo_huber(x, given.pairs.x_0).mean().item()
    assert Imitation(given, distance.pseudo_huber)(START) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_is_that_of_the_features_in_units_of_the_start():
    given = samples()
    two = Frechet(given, lambda x: [*feature_fn(x), x[:, :2]], START)
    assert two(START) == pytest.approx(2)
    table = registry.make("dpmpp_2m", "logsnr", NOISE, 4)
    expected = []
    for look in (lambda x: feature_fn(x)[0], lambda x: x[:, :2]):
        own, start = (look(sample(given.denoiser, t, given.pairs.x_T)).double() for t in (table, START))
        goal = look(given.pairs.x_0).double()
        expected.append(frechet.between(own, goal) / frechet.between(start, goal))
    assert [a / b for a, b in zip(two.distances(table), two.at_start, strict=True)] == pytest.approx(expected, rel=1e-6)
    assert two(table) == pytest.approx(sum(expected), rel=1e-6)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_how_many_are_in_memory_changes_nothing(size):
    condition = 0.5 + torch.arange(20).double() / 20
    given = samples(20, size=size, condition=condition)
    found = Rewarded(reward, Frechet(given, feature_fn, START))
    whole = sample(given.denoiser, START, given.pairs.x_T, condition)
    assert found(START) == pytest.approx(-reward(whole, condition).mean().item(), rel=1e-6)


def test_a_solver_beyond_the_guard_has_no_reward():
    guard = Frechet(samples(), feature_fn, registry.make("dpmpp_2m", "logsnr", NOISE, 4))
    assert guard(START) > GUARD
    assert Rewarded(reward, guard)(START) == math.inf
    assert Rewarded(lambda x, condition: x.sum(1) / 0, guard)(START) == math.inf


def test_a_start_that_is_the_teacher_is_no_unit():
    with pytest.raises(
        UserError, match=r"^the Fréchet distance of the start from the teacher must be finite and above"
    ):
        Frechet(samples(), lambda x: [0 * x], START)


def test_evolution_for_the_negative_distance_lowers_the_validation_loss(tmp_path):
    """A reward that is one minus the distance."""
    objectives = [Imitation(samples(40, seed), distance.l2) for seed in (1, 2)]
    chosen, learned = Settings(steps=12, pairs=6, spread=0.05), student()
    history = evolve_parameters(learned, *objectives, chosen, Scratch(tmp_path))
    assert min(row["validation"] for row in history) < 0.9 * history[0]["validation"]
    assert objectives[1](learned()) == min(row["validation"] for row in history)


@pytest.mark.parametrize("sign", [1, -1])
def test_evolution_cannot_win_a_reward_by_ruin(sign, tmp_path):
    def objective(seed, n=120):
        guard = Frechet(samples(n, seed, size=n), feature_fn, student()(), frechet.extrapolated)
        return Rewarded(lambda x, condition: sign * x.sum(1), guard)

    learned, judge = student(), objective(7, 600)

    def won():
        x = sample(judge.guard.samples.denoiser, learned(), judge.guard.samples.pairs.x_T)
        return sign * x.detach().sum(1).mean().item()

    before = won()
    history = evolve_parameters(learned, objective(1), objective(2), Settings(12, 6, 0.05), Scratch(tmp_path))
    assert min(row["validation"] for row in history) < history[0]["validation"]
    assert won() > before
    assert judge.guard(learned()) < 1.2 * GUARD  # of samples that no step was chosen by


def test_a_search_returns_what_other_noises_find_best(tmp_path):
    objectives = [Frechet(samples(25, seed, size=100), feature_fn, START) for seed in (1, 2)]
    chosen = Search(generations=3, candidates=8, seed=2)
    table, history = evolve(NOISE, 4, objectives[0], chosen, Scratch(tmp_path), objectives[1])
    judged = [row for row in history if "validation" in row]
    assert judged[0] is min((row for row in history if row["generation"] == 0), key=lambda row: row["value"])
    assert [row["value"] for row in judged] == sorted((row["value"] for row in judged), reverse=True)
    assert len(judged) >= 2
    assert objectives[1](table) == min(row["validation"] for row in judged)
    first, _ = evolve(NOISE, 4, objectives[0], chosen, Scratch(tmp_path / "plain"))
    assert objectives[0](first) == judged[-1]["value"]


@pytest.mark.parametrize("optimizer", ["search", "evolution"])
def test_the_estimate_counts_what_is_evaluated(optimizer, tmp_path):
    family = {"search": "genome", "evolution": "lms"}[optimizer]
    block = {"family": family, "learns": "joint", "optimizer": optimizer, "distance": "frechet", "pairs": 30,
             "validation_pairs": 20, "batch_size": 5, "epochs": 3}  # fmt: skip
    given = [samples(n, seed, size=100) for n, seed in ((30, 1), (20, 2))]
    for some in given:
        some.denoiser.rows = 0  # the teacher's
    objectives = [Frechet(some, feature_fn, START) for some in given]
    if optimizer == "search":
        _, history = evolve(NOISE, 4, objectives[0], Search(3, 5, seed=2), Scratch(tmp_path), objectives[1])
        spared = 4 - sum("validation" in row for row in history)  # generations without a new best
    else:
        evolve_parameters(student(), *objectives, Settings(3, 5), Scratch(tmp_path))
        spared = 0
    counted = sum(some.denoiser.rows for some in given) / 4
    assert cost._of_learner(schema.Learner(**block)) == counted + 20 * spared
