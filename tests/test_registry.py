"""Classical solvers by name: how they spend their evaluations, from a name to a table, and mistakes."""

import re
from pathlib import Path

import pytest
import torch
from support.problems import NOISES

from s4spipe import classical as public
from s4spipe.learning.families import FAMILIES
from s4spipe.noise import VE
from s4spipe.runtime.errors import UserError
from s4spipe.solvers import registry, timesteps


@pytest.mark.parametrize(
    ("solver", "nfe", "expected"),
    [
        ("ipndm", 5, [1] * 5), ("ipndm_afs", 5, [1] * 6), ("heun", 5, [2, 2, 1]), ("dpm_2s", 4, [2, 2]),
        ("dpm_3s", 6, [3, 2, 1]), ("dpm_3s", 7, [3, 3, 1]), ("dpm_3s", 8, [3, 3, 2]), ("pndm", 8, [4, 4]),
        ("pndm", 14, [4, 4, 4, 1, 1]), ("plms", 4, [2, 1, 1]), ("parallel_midpoints", 5, [3, 2]),
        ("fdpm", 4, [2, 1, 1]), ("fdpm", 2, [2]), ("fdpm_afs", 1, [2]),
    ],
)  # fmt: skip
def test_nfe_is_spent_as_said(solver, nfe, expected):
    assert registry.evals_per_step(solver, nfe) == expected
    table = registry.build(solver, VE(), timesteps.build("edm", VE(), len(expected)), nfe=nfe)
    assert table.nfe == nfe


@pytest.mark.parametrize("name", registry.CLASSICAL)
def test_a_names_order_and_afs_are_parsed(name):
    solver, order, afs = registry.parse(name)
    assert (solver, order, afs) == (registry.CLASSICAL[name], solver.default, False)
    for order in solver.orders:
        assert registry.parse(f"{name}_{order}") == (solver, order, False)
        assert registry.parse(f"{name}_{order}_afs") == (solver, order, True)


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
@pytest.mark.parametrize("solver", ["ddim", "unipc_bh2", "ipndm_4_afs", "heun", "dpm_3s", "pndm", "parallel_midpoints"])
def test_make_builds_on_the_schedule_of_as_many_steps_as_the_nfe_buys(solver, key):
    noise, nfe = NOISES[key], 8
    table = registry.make(solver, "logsnr", noise, nfe)
    steps = len(registry.evals_per_step(solver, nfe))
    assert (table.nfe, len(table.t)) == (nfe, steps + 1)
    t = timesteps.build("logsnr", noise, steps)
    meta = {"solver": solver, "schedule": "logsnr"}
    assert table.to_dict() == registry.build(solver, noise, t, meta, nfe).to_dict()


def test_make_takes_times_and_named_schedules():
    times = [80.0, 5.0, 0.5, 0.002]
    for nfe, solver in ((3, "ipndm"), (6, "heun")):
        named = {"mine": {"3": times}}
        given, by_name = (registry.make(solver, schedule, VE(), nfe, named) for schedule in (times, "mine"))
        assert given.t.tolist() == by_name.t.tolist() == times
        assert (given.meta["schedule"], by_name.meta["schedule"]) == (times, "mine")
        assert torch.equal(given.W, by_name.W)


@pytest.mark.parametrize(
    ("name", "schedule", "nfe", "field"),
    [
        ("dpmpp_4m", "edm", 3, "'dpmpp_3m'"),
        ("ddim", "emd", 3, "'edm'"),
        ("ddim", "mine", 3, "'mine'"),
        ("ddim", [80.0, 0.002], 3, "4 times"),
        ("heun", [80.0, 10.0, 1.0, 0.002], 3, "3 times"),
        ("ddim", "edm", 0, "nfe"),
        ("pndm", "edm", 5, "NFE"),
    ],
)
def test_what_make_cannot_make_is_told(name, schedule, nfe, field):
    with pytest.raises(UserError, match=field):
        registry.make(name, schedule, VE(), nfe)


@pytest.mark.parametrize(
    ("name", "t", "field"),
    [
        ("dpmpp_4m", [80.0, 1.0, 0.002], "'dpmpp_3m'"),
        ("ipndm_5", [80.0, 1.0, 0.002], "order 1 or 2 or 3 or 4, got 5"),
        ("ddim_afs", [80.0, 0.002], "ddim_afs"),
        ("ddim", [80.0, 0.1, 0.2], "falling strictly"),
        ("ddim", [80.0], "at least two times"),
        ("ddim", [90.0, 1.0, 0.002], r"entry t .*\[0.002, 80\]"),
    ],
)
def test_mistakes_are_told(name, t, field):
    with pytest.raises(UserError, match=field):
        registry.build(name, VE(), torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "nfe", "field"),
    [
        ("pndm", 5, "NFE must be 4, 8, 12 or more, got 5"),
        ("plms", 1, "plms spends 2 .* NFE must be at least 2, got 1"),
        ("fdpm", 1, "fdpm spends 2 .* NFE must be at least 2, got 1"),
        ("ddim", 0, "nfe must be at least 1, got 0"),
        ("heun", 6, "3 steps, got 4"),
    ],
)
def test_an_nfe_that_a_solver_cannot_spend_is_told(name, nfe, field):
    with pytest.raises(UserError, match=field):
        registry.build(name, VE(), timesteps.build("edm", VE(), 4), nfe=nfe)


@pytest.mark.parametrize("name", ["heun", "fdpm", "pndm", "plms"])
def test_an_algorithm_has_no_coefficients(name):
    with pytest.raises(UserError, match=name):
        registry.coefficients(name, VE(), timesteps.build("edm", VE(), 4))


def test_the_page_of_solvers_names_them_all_and_tests_that_exist():
    (page,) = (path.read_text() for path in (Path(__file__).parent.parent / "docs").rglob("solvers.md"))
    names = set(re.findall(r"`([a-z0-9_]+)`", page))
    assert set(registry.CLASSICAL) | set(FAMILIES) <= names
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f"def {name}(" in tests for name in names if name.startswith("test_"))


def test_the_public_import_path_is_the_registry():
    assert all(getattr(public, name) is getattr(registry, name) for name in public.__all__)
    assert {"CLASSICAL", "build"} <= set(public.__all__)
