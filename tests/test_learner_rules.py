"""Learners without gradients, and rewards, in params.yaml: what must go together."""

import pytest
from support.parameters import DEFAULT, changed, mistake

from s4spipe.pipeline import params, resolve

WITHOUT = {"learns": "joint", "distance": "frechet", "radius": 0.0}
SEARCH = {**WITHOUT, "family": "genome", "optimizer": "search"}
TIMES = {**SEARCH, "family": "fixed", "learns": "times"}
EVOLUTION = {**WITHOUT, "family": "gs", "optimizer": "evolution"}
NEWTON = {"family": "gs", "learns": "joint", "optimizer": "gauss_newton", "radius": 0.0}
REWARD = {"network": "digits", "weights": "models/perceptual.safetensors"}


def learner(block, **more):
    return changed(("learners.s4s", {**block, **more}))


@pytest.mark.parametrize(
    "block",
    [
        SEARCH,
        TIMES,
        EVOLUTION,
        {**SEARCH, "distance": "l2"},
        {**EVOLUTION, "family": "fixed", "learns": "times"},
        {**EVOLUTION, "learns": "coefficients"},
        {**EVOLUTION, "bands": 3},
        {**EVOLUTION, "reward": REWARD},
        {**SEARCH, "reward": REWARD},
        {"radius": 0.0, "reward": REWARD},
        {**SEARCH, "reward": {"network": "callable", "source": "own:reward", "weight": 2.0}},
    ],
)
def test_these_are_learners(block):
    found = resolve.learner(params.parse(learner(block)), "s4s")
    assert found.model_dump(exclude_none=True).items() >= {k: v for k, v in block.items() if k != "reward"}.items()


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"distance": "frechet"}, "distance: frechet is only for the optimizers search and evolution, not adam"),
        ({"family": "genome"}, "family: genome is only for the optimizers search and evolution, not adam; choose from"),
        (
            {"family": "adasde", "learns": "joint", "radius": 0.0},
            "optimizer: the family adasde adds fresh noise, which",
        ),
        ({**EVOLUTION, "family": "adasde", "bands": 2}, "bands: the family adasde has no weights by frequency"),
        ({"reward": REWARD}, "radius: must be 0 with a reward, got 0.02"),
        ({**NEWTON, "reward": REWARD}, "reward: only for the optimizers adam, search and evolution, not gauss_newton"),
        ({**SEARCH, "radius": 0.1}, "radius: must be 0 for the optimizer search, got 0.1"),
        ({**SEARCH, "family": "gs"}, "family: a search is among genomes, or among the times of a solver"),
        ({**SEARCH, "learns": "times"}, "learns: must be joint for the optimizer search and the family genome"),
        ({**TIMES, "learns": "joint"}, "learns: must be times for the optimizer search and the family fixed"),
        ({**SEARCH, "bands": "auto"}, "bands: not for the optimizer search, got auto; make it 1"),
        ({**SEARCH, "gaussian": True}, "gaussian: not for the optimizer search, got True; make it false"),
        ({**EVOLUTION, "family": "genome"}, "family: genome has no numbers to change, but decisions"),
        ({**EVOLUTION, "learns": "alternating"}, "learns: must be joint for the optimizer evolution"),
        ({**EVOLUTION, "family": "gss"}, "family: unknown family 'gss'"),
        ({**EVOLUTION, "reward": {**REWARD, "network": "digit"}}, "reward.network: unknown reward 'digit'"),
        ({**EVOLUTION, "reward": {**REWARD, "network": "clip"}}, "reward.network: clip needs a model whose model.cond"),
        ({**EVOLUTION, "reward": {**REWARD, "height": 3}}, "reward.height: "),
    ],
)
def test_a_learner_that_cannot_be_is_told(block, says):
    assert mistake(learner(block)).startswith(f"learners.s4s.{says}")


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ({"network": "clip", "weights": "models/clip"}, "network: clip needs a model whose model.condition is prompts"),
        ({"network": "callable", "weights": "w.pt"}, "source: must be module:function if refine.reward.network is"),
        ({**REWARD, "source": "own:reward"}, "source: must be module:function if refine.reward.network is callable"),
        ({"network": "classifier"}, "weights: must name the file or folder of the network, got inputs/none.txt"),
        ({"weights": "w"}, "network: missing"),
        ({**REWARD, "weight": 0}, "weight: must be greater than 0"),
        ({**REWARD, "weights": "https://host/file"}, "weights: must be a local path"),
    ],
)
def test_a_reward_that_cannot_be_is_told(reward, says):
    assert mistake(changed(("refine.reward", reward))).startswith(f"refine.reward.{says}")


def test_without_a_reward_there_is_none():
    assert params.parse(DEFAULT).refine.reward is None
    assert params.parse(changed(("refine.reward", REWARD))).refine.reward.weight == 1
