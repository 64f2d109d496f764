"""Random damage to the files of a project: each is read, or refused in one sentence; and what is read can be used.

The everyday tests damage the same way every time. The slow ones draw a new seed and print it; to repeat a run, set
S4SPIPE_FUZZ_SEED to it. `S4SPIPE_FUZZ_COUNT` sets how many tries a test makes.
"""

import contextlib
import copy
import json
import os
import random
from collections import Counter

import pytest
import torch
from ruamel.yaml import YAML
from support import damage, finished
from support.parameters import DEFAULT
from support.pipeline import ROOT
from support.problems import NOISES

from s4spipe.commands import compare, show
from s4spipe.noise import VE
from s4spipe.pipeline import cost, params, render, resolve, stage
from s4spipe.report import page
from s4spipe.runtime.errors import LONGEST, UserError
from s4spipe.runtime.files import read_tensors, write_json, write_tensors
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.lists import load_all
from s4spipe.solvers import registry, timesteps

SEED = os.environ.get("S4SPIPE_FUZZ_SEED") or str(random.SystemRandom().randrange(10**9))
REQUIRED = 0.005  # of the tries, at least, are to be read: else the use of what is read is not tried


def tried(name, count, seed, attempt):
    """Try `attempt(rng)` `count` times, each with damage of its own. Any error but a UserError is a failure."""
    counts = Counter()
    for number in range(count):
        try:
            attempt(random.Random(f"{name} {seed} {number}"))
            counts["read"] += 1
        except UserError as error:
            counts["refused"] += 1
            counts["unreadable"] += len(str(error)) > LONGEST or not str(error).isprintable()
        except Exception as error:
            raise AssertionError(f"{name}: try {number} of S4SPIPE_FUZZ_SEED={seed}") from error
    print(f"{name}: {count} tries of seed {seed}: {counts['read']} read, {counts['refused']} refused in a sentence")
    assert counts["unreadable"] == 0
    assert counts["refused"] > 0
    assert count < 100 or counts["read"] >= REQUIRED * count
    return counts


# -- params.yaml ------------------------------------------------------------------------------------------------------


def use_params(settings):
    """What every stage does with parameters, before it computes anything."""
    stage.layout(settings)
    stage.model_settings(settings)
    for cell in resolve.cells(settings):
        assert str(stage.layout(settings).table(cell)).startswith(f"runs/{settings.model.name}/tables/")
    cost.network_evaluations(settings)
    cost.gpu_hours(settings, 10.0)
    cost.sample_bytes(settings, [3, 64, 64])
    values = settings.model_dump(exclude_none=True)
    json.dumps(values, sort_keys=True)
    return values


def params_data(rng):
    values = use_params(params.parse(damage.data(rng, DEFAULT, damage.yaml_value), ROOT))
    if rng.random() < 0.1:  # it takes a while
        assert (
            params.parse(YAML(typ="safe").load(render.params_yaml(values)), ROOT).model_dump(exclude_none=True)
            == values
        )


def params_text(path):
    whole = (ROOT / "params.yaml").read_bytes()

    def attempt(rng):
        path.write_bytes(damage.text(rng, whole))
        use_params(params.load(path))

    return attempt


# -- solvers ----------------------------------------------------------------------------------------------------------


def solvers():
    """Solver files of every noise, schema and description of a table, as data."""
    found = [registry.make(name, "logsnr", noise, nfe).to_dict()
             for noise in NOISES.values() for name, nfe in (("ipndm", 4), ("heun_afs", 5), ("ddim", 1))]  # fmt: skip
    found += [json.loads((ROOT / f"runs/digits/solvers/{name}-5/solver.json").read_text(encoding="utf-8"))
              for name in ("s4s", "s4s_alt", "free")]  # fmt: skip
    old = dict(found[0], schema=1)
    del old["steps"], old["c_0"]
    short = {"name": "vp_discrete", "alphas_cumprod": [0.9, 0.5, 0.1], "t_min": 0.0}
    table = registry.make("ddim", [2.0, 1.0, 1e-9], VE(1e-9, 2.0), 2).to_dict()
    return [*found, old, table | {"noise": short}]


SOLVERS = solvers()
OTHER = Tableau.from_dict(SOLVERS[0])


def use_solver(table):
    """What is done with a solver: it runs, is written and read again, and is shown."""
    x_T = torch.ones(2, 3, dtype=torch.float64)
    for i in range(table.nfe + 1):
        assert table.state(i, x_T, [x_T] * i).shape == x_T.shape
    assert sum(map(len, table.stages)) == table.nfe
    text = json.dumps(table.to_dict())
    assert json.dumps(Tableau.from_dict(json.loads(text)).to_dict()) == text
    for said in (show.describe(table, 80), compare.differences(table, OTHER, 80)):
        assert said.replace("\n", "").isprintable()


def solver_data(rng):
    use_solver(Tableau.from_dict(damage.data(rng, rng.choice(SOLVERS))))


def solver_text(path):
    wholes = [json.dumps(data, indent=1).encode() for data in SOLVERS]

    def attempt(rng):
        path.write_bytes(damage.text(rng, rng.choice(wholes)))
        use_solver(Tableau.load(path))

    return attempt


def several_solvers(path):
    def attempt(rng):
        data = damage.data(rng, rng.sample(SOLVERS, 2))
        path.write_text(json.dumps(data), encoding="utf-8")
        for table in load_all(path):
            use_solver(table)

    return attempt


# -- schedules --------------------------------------------------------------------------------------------------------

VE_80 = NOISES["ve"]
SCHEDULES = [[80.0, 10.0, 1.0, 0.002], {"3": [80, 10, 1, 0.002], "5": [80.0, 40.0, 10.0, 1.0, 0.1, 0.002]}, SOLVERS[0]]


def schedule(rng):
    content = damage.data(rng, rng.choice(SCHEDULES))
    timesteps.check_file(content, "mine.json")
    for nfe in (3, 4, 5):
        with contextlib.suppress(UserError):
            registry.make("ddim", "mine", VE_80, nfe, {"mine": content})


# -- what a run has left ----------------------------------------------------------------------------------------------


class Left:
    """A finished run, of which one file after another is damaged and then made whole again."""

    def __init__(self, folder):
        self.run = finished.make(folder, classical=["ddim"], learned=["s4s"], refined=[])
        places = self.run.places
        names = ("*/*/*.json", "*/*.json")
        self.files = sorted({path for name in names for path in places.run.glob(name) if "starts" not in path.parts})
        self.whole = {path: path.read_bytes() for path in self.files}

    def __call__(self, rng):
        path = rng.choice(self.files)
        try:
            if rng.random() < 0.3:
                path.write_bytes(damage.text(rng, self.whole[path]))
            else:
                write_json(path, damage.data(rng, json.loads(self.whole[path])))
            page.report(type(self.run)(self.run.root, self.run.params))
        finally:
            path.write_bytes(self.whole[path])


def weights(folder):
    """The description in a file of tensors, of a network of each kind that s4spipe writes."""
    from support import standins

    from s4spipe.features.digits import load as load_features
    from s4spipe.models import load
    from s4spipe.models.diffusers.prompts import Prompts

    def prompts(path):
        there = Prompts(path)
        assert there.rows(torch.arange(len(there)), torch.empty(0))["embeds"].shape == (3, 2, 4)

    known = {
        "digits": lambda path: load({"weights": str(path)}),
        "features": lambda path: load_features(str(path), ""),
        "edm": lambda path: load({"kind": "edm", "weights": str(path), "condition": "none"}),
        "prompts": prompts,
    }
    whole = {name: read_tensors(ROOT / f"models/{name}.safetensors") for name in ("digits", "features")}
    whole["edm"] = read_tensors(standins.edm(folder / "whole.safetensors"))
    whole["prompts"] = (
        {"embeds": torch.randn(4, 2, 4)},
        {"guided": True, "prompts": ["a", "b", "c"], "model": {"kind": "diffusers"}},
    )

    def attempt(rng):
        name = rng.choice(list(known))
        tensors, about = copy.deepcopy(whole[name])
        if rng.random() < 0.2:
            del tensors[rng.choice(list(tensors))]
        write_tensors(folder / f"{name}.safetensors", tensors, damage.data(rng, about))
        known[name](folder / f"{name}.safetensors")

    return attempt


# -- the tests --------------------------------------------------------------------------------------------------------

# What is damaged: how it is tried, how often every day, and how often in the slow suite.
KINDS = {
    "params.yaml as data": (lambda folder: params_data, 200, 5000),
    "params.yaml as text": (lambda folder: params_text(folder / "params.yaml"), 20, 100),
    "solvers as data": (lambda folder: solver_data, 200, 5000),
    "solvers as text": (lambda folder: solver_text(folder / "solver.json"), 100, 2000),
    "several solvers": (lambda folder: several_solvers(folder / "starts.json"), 50, 1000),
    "schedules": (lambda folder: schedule, 300, 5000),
    "a finished run": (Left, 2, 10),
    "descriptions of weights": (weights, 10, 200),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_in_a_sentence_or_does_no_harm(kind, tmp_path):
    attempt, count, _ = KINDS[kind]
    tried(kind, count, "every day", attempt(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_new_damage_is_told_in_a_sentence_or_does_no_harm(kind, tmp_path, record_property):
    attempt, _, count = KINDS[kind]
    counts = tried(kind, int(os.environ.get("S4SPIPE_FUZZ_COUNT", count)), SEED, attempt(tmp_path))
    record_property("seed", f"S4SPIPE_FUZZ_SEED={SEED}")
    for outcome in ("read", "refused"):
        record_property(f"damaged {kind}, {outcome}", counts[outcome])
