"""Evolution: its rules keep what they must, it finds what is better, and it can be killed, resumed and divided."""

import json
import math
import re
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fits import NOISE, Killed, Net
from support.pipeline import ROOT
from support.problems import NOISES, Gaussian, march, noises

from s4spipe.learning.breeding import SEEDS, Decisions, Times, apart
from s4spipe.learning.genome import Genome, Step, of_classical
from s4spipe.learning.search import Settings, evolve, ranked
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry, timesteps
from s4spipe.solvers.best_schedules import USUAL

SETTINGS = Settings(generations=4, candidates=12, seed=3)
PROBLEM, X_T = Gaussian(NOISE), noises(8, scale=NOISE.sigma_T)
GOAL = PROBLEM.solution(X_T, NOISE.t_min)


def error(table):
    return (march(PROBLEM, table, X_T) - GOAL).square().mean().item()


def search(folder, objective=error, nfe=4, settings=SETTINGS):
    return evolve(NOISE, nfe, objective, settings, Scratch(folder))


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), key=st.sampled_from(sorted(NOISES)), nfe=st.integers(1, 8), solver=st.booleans())
def test_children_are_solvers_with_the_same_nfe(seed, key, nfe, solver):
    space = Times("dpmpp_2s", NOISES[key], nfe) if solver else Decisions(NOISES[key], nfe)
    draw, family = Random(seed), space.seeds()
    for _ in range(12):
        family.append(json.loads(json.dumps(space.child(draw, family))))
        table = space.tableau(family[-1], {})
        assert table.nfe == nfe
        assert table.t[0] == NOISES[key].T
        assert apart(NOISES[key], table.t.tolist())


def test_a_crossover_has_nothing_but_what_its_parents_have():
    space, draw = Decisions(NOISE, 5), Random(0)
    one, two = (
        of_classical(name, timesteps.build(s, NOISE, 5)) for name, s in (("ddim", "edm"), ("deis_log_3", "logsnr"))
    )
    whole = mixed = 0
    for _ in range(200):
        child = space.crossed(draw, one, two)
        assert child.t in (one.t, two.t)
        assert {step.order for step in child.steps} <= {1, 3}
        orders, forms = {step.order for step in child.steps}, {step.form for step in child.steps}
        if len(orders) == len(forms) == 1:
            whole += 1
        else:
            mixed += 1
    assert 70 < whole < 140  # half, and the few mixed ones that are of one kind by chance
    assert whole + mixed == 200


def test_mutations_are_as_frequent_as_the_paper_has_them():
    space, draw = Decisions(NOISE, 6), Random(0)
    parent = Genome(tuple(timesteps.build("edm", NOISE, 6).tolist()), (Step(2),) * 6)
    children = [space.mutated(draw, parent) for _ in range(4000)]
    steps = [step for child in children for step in child.steps]
    share = {
        "afs": (sum(child.afs for child in children) / 4000, 0.3 * 0.5),
        "end": (sum(child.t[-1] != NOISE.t_min for child in children) / 4000, 0.3),
        "form": (sum(step.form == "noise" for step in steps) / len(steps), 0.3 * 0.5),
        "corrects": (sum(step.corrects for step in steps) / len(steps), 0.3 * 0.5),
        "rho": (sum(step.rho != 0 for step in steps) / len(steps), 0.3),
        "exact": (sum(step.scale == "exact" for step in steps) / len(steps), 0.7 + 0.1),
        **{f"order {k}": (sum(step.order == k for step in steps) / len(steps), 0.7 * (k == 2) + 0.3 * p)
           for k, p in ((1, 0.2), (2, 0.4), (3, 0.3), (4, 0.1))},
    }  # fmt: skip
    for name, (found, expected) in share.items():
        assert found == pytest.approx(expected, abs=0.02), name
    spread = [step.rho for step in steps if step.rho]
    assert math.sqrt(sum(rho**2 for rho in spread) / len(spread)) == pytest.approx(0.03, rel=0.05)


@pytest.mark.parametrize("solver", [None, "ipndm_3"])
def test_it_begins_with_classical_solvers_and_finds_a_better_one(solver, tmp_path):
    chosen = replace(SETTINGS, solver=solver)
    table, history = search(tmp_path, settings=chosen)
    names = SEEDS if solver is None else [solver]
    first = [row["value"] for row in history if row["generation"] == 0]
    assert first == pytest.approx([error(registry.make(n, s, NOISE, 4)) for n in names for s in USUAL], rel=1e-6)
    assert len(history) == len(first) + 4 * 12
    assert error(table) == ranked(history)[0]["value"] == table.meta["value"]
    assert error(table) < 0.9 * min(first)
    assert json.loads(json.dumps(history)) == history


def test_parents_are_the_best_so_far(tmp_path):
    """With one parent, a mutant keeps three quarters of its times, a crossover all, and the rest none."""
    chosen = Settings(generations=1, candidates=300, parents=1, solver="ddim", seed=1)
    _, history = search(tmp_path, nfe=9, settings=chosen)
    best = ranked(history[:4])[0]["candidate"]["t"]
    shared = [len(set(best[1:-1]) & set(row["candidate"]["t"])) / 8 for row in history[4:]]
    assert sum(shared) / 300 == pytest.approx(0.5 * 0.75 + 0.3 * 1, abs=0.06)


@pytest.mark.parametrize("solver", [None, "dpmpp_2m"])
def test_a_killed_search_goes_on_where_it_was(solver, tmp_path):
    chosen = replace(SETTINGS, solver=solver)
    whole, calls = search(tmp_path / "whole", settings=chosen), []

    def dying(table):
        calls.append(table)
        if len(calls) == (20 if solver is None else 4) + 30:
            raise Killed
        return error(table)

    with pytest.raises(Killed):
        search(tmp_path / "killed", dying, settings=chosen)
    assert Scratch(tmp_path / "killed").load("search")["history"][-1]["generation"] == 2
    resumed = search(tmp_path / "killed", settings=chosen)
    assert resumed[1] == whole[1]
    assert resumed[0].to_dict() == whole[0].to_dict()


def test_the_seed_alone_decides(tmp_path):
    runs = [search(tmp_path / str(k), settings=replace(SETTINGS, seed=k // 2)) for k in range(3)]
    assert runs[0][1] == runs[1][1] != runs[2][1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_the_best(bad, tmp_path):
    table, history = search(tmp_path, lambda table: bad if table.W[0, 0] < 0.5 else error(table))
    assert 0 < sum(row["value"] is None for row in history) < len(history)
    assert table.W[0, 0] >= 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"candidates": 0}, "candidates of a search must be at least 1"),
        ({"generations": -1}, "generations of a search must be at least 0"),
        ({"parents": 1.5}, "parents of a search must be a whole number"),
        ({"solver": "dpmpp_2m_sde"}, "the times of dpmpp_2m_sde cannot be searched"),
        ({"solver": "dpm_v3"}, "the times of dpm_v3 cannot be searched"),
        ({"solver": "dpm_9"}, "unknown classical solver"),
    ],
)
def test_mistakes_are_named(change, says, tmp_path):
    with pytest.raises(UserError, match=says):
        search(tmp_path, settings=replace(SETTINGS, **change))


def test_an_objective_that_is_never_finite_is_refused(tmp_path):
    with pytest.raises(UserError, match="^search: the objective was not finite for any of the classical solvers"):
        search(tmp_path, lambda table: float("nan"))


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs/reference/solvers.md").read_text(encoding="utf-8")
    (program,) = (block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "evolve(" in block)
    for there, here in {"generations=10, candidates=50": "generations=2, candidates=6", "steps=50": "steps=2"}.items():
        assert there in program
        program = program.replace(there, here)
    monkeypatch.chdir(tmp_path)
    names = {"denoiser": Net(), "features": lambda x: torch.cat([x, x**2], 1), "noise": NOISE}
    names |= {"x_T": X_T, "others": noises(8, scale=NOISE.sigma_T, seed=1)}
    exec(program, names)
    assert Tableau.load(tmp_path / "searched.json").nfe == 5
    assert names["losses"][-1]["evaluations"] == 1 + 2 * 33
