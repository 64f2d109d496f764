import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.problems import NOISES, constants, noises, wavy
from support.tables import drawn

from s4spipe.noise import VE
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.lists import load_all, save_all
from s4spipe.solvers import registry, timesteps

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def tableaux(draw):
    n = draw(st.integers(1, 10))
    inner = draw(st.lists(st.floats(0.01, 79), min_size=n - 1, max_size=n - 1, unique=True))
    t = [80.0, *sorted(inner, reverse=True), 0.002]
    table = torch.tensor(draw(st.lists(numbers, min_size=n * n, max_size=n * n)), dtype=torch.float64).view(n, n)
    c = torch.tensor(draw(st.lists(numbers, min_size=n, max_size=n)), dtype=torch.float64)
    t_c = torch.tensor(draw(st.lists(st.floats(0.002, 80), min_size=n, max_size=n)), dtype=torch.float64)
    c_0 = torch.tensor(draw(numbers), dtype=torch.float64)
    t = torch.tensor(t, dtype=torch.float64)
    return Tableau(t, t_c, c, table.tril(), VE(), "any", {"note": draw(st.text())}, c_0)


@given(tableau=tableaux())
def test_saved_and_loaded_it_is_the_same_to_the_bit_and_byte(tableau, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tableau")
    tableau.save(folder / "a.json")
    again = Tableau.load(folder / "a.json")
    for key in ("t", "t_c", "c_0", "c", "W"):
        assert torch.equal(getattr(again, key), getattr(tableau, key))
    assert (again.noise, again.name, again.meta) == (tableau.noise, tableau.name, tableau.meta)
    again.save(folder / "b.json")
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("solver", registry.CLASSICAL)
def test_loaded_it_samples_identically(solver, key, tmp_path):
    noise = NOISES[key]
    t = timesteps.build("logsnr", noise, 10)
    tableau = registry.build(f"{solver}_afs", noise, t, statistics=constants(noise))
    tableau.save(tmp_path / "solver.json")
    x_T, z = noises(), drawn(tableau.draws, 4, 3)
    a, b = (
        sample(lambda x, t, c: wavy(x, t), table, x_T, z=z)
        for table in (tableau, Tableau.load(tmp_path / "solver.json"))
    )
    assert torch.equal(a, b)


def test_a_file_of_the_first_schema_loads(tmp_path):
    tableau = registry.build("dpmpp_2m", VE(), timesteps.build("edm", VE(), 4))
    tableau.save(tmp_path / "new.json")
    data = json.loads((tmp_path / "new.json").read_text()) | {"schema": 1}
    del data["steps"], data["c_0"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    Tableau.load(tmp_path / "old.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "new.json").read_text()


@pytest.mark.parametrize("key", NOISES)
def test_a_file_of_ten_evaluations_is_small(key, tmp_path):
    noise = NOISES[key]
    registry.build("unipc_bh2", noise, timesteps.build("edm", noise, 10)).save(tmp_path / "solver.json")
    assert (tmp_path / "solver.json").stat().st_size < 20_000


def broken(change):
    def edit(data):
        change(data)
        return data

    return edit


RULES = {
    "another schema": (broken(lambda d: d.update(schema=99)), "schema must be 1, 2 or 3, got 99"),
    "no schema": (broken(lambda d: d.pop("schema")), "schema must be 1, 2 or 3, got None"),
    "missing key": (broken(lambda d: d.pop("t_c")), "entry t_c is missing"),
    "misspelt key": (broken(lambda d: d.update(t_x=[])), "unknown entry 't_x': did you mean"),
    "wrong nfe": (broken(lambda d: d.update(nfe=4)), "nfe must be 3"),
    "nfe of another type": (broken(lambda d: d.update(nfe="3")), "nfe must be 3"),
    "no evaluation": (
        broken(lambda d: d.update(nfe=0, steps=0, c=[], W=[], t_c=[], t=[80.0])),
        "at least one evaluation",
    ),
    "short t": (broken(lambda d: d["t"].pop()), r"entry t must have 3 \+ 1 times, to go with `steps`, got 3"),
    "wrong steps": (broken(lambda d: d.update(steps=2)), r"entry t must have 2 \+ 1 times"),
    "no times": (broken(lambda d: d.update(t=[80.0], steps=0)), "t must be at least two times"),
    "text for c_0": (broken(lambda d: d.update(c_0="1")), "entry c_0 must be a list of numbers"),
    "infinite c_0": (broken(lambda d: d.update(c_0=float("inf"))), "entry c_0 must be finite"),
    "short t_c": (broken(lambda d: d["t_c"].pop()), r"entry t_c must be float64 of shape \[3\]"),
    "missing row": (broken(lambda d: d["W"].pop()), "W must have 3 rows"),
    "above the diagonal": (broken(lambda d: d["W"][0].append(1.0)), r"W\[0\] must have 1 numbers"),
    "short row": (broken(lambda d: d["W"][2].pop()), r"W\[2\] must have 3 numbers"),
    "row of another type": (broken(lambda d: d.update(W=[1.0, 2.0, 3.0])), r"W\[0\] must be a list of numbers"),
    "text for a number": (broken(lambda d: d["c"].__setitem__(0, "a")), "entry c must be a list of numbers"),
    "truth for a number": (broken(lambda d: d["c"].__setitem__(0, True)), "entry c must be a list of numbers"),
    "null": (broken(lambda d: d.update(c=None)), "entry c must be a list of numbers"),
    "nan in W": (broken(lambda d: d["W"][1].__setitem__(0, float("nan"))), "entry W must be finite"),
    "infinite c": (broken(lambda d: d["c"].__setitem__(1, float("inf"))), "entry c must be finite"),
    "nan in t": (broken(lambda d: d["t"].__setitem__(1, float("nan"))), "entry t must be finite"),
    "t rises": (broken(lambda d: d["t"].__setitem__(1, 81.0)), "entry t must fall strictly"),
    "t stands": (broken(lambda d: d["t"].__setitem__(1, 80.0)), "entry t must fall strictly"),
    "t beyond T": (broken(lambda d: d["t"].__setitem__(0, 90.0)), r"entry t must stay within .* \[0.002, 80\]"),
    "t_c below t_min": (broken(lambda d: d["t_c"].__setitem__(2, 0.0)), "entry t_c must stay within"),
    "unknown noise": (broken(lambda d: d["noise"].update(name="vee")), "unknown noise schedule 'vee'"),
    "noise of another type": (broken(lambda d: d.update(noise="ve")), "entry noise must be of type dict"),
    "name of another type": (broken(lambda d: d.update(name=3)), "entry name must be of type str"),
    "meta of another type": (broken(lambda d: d.update(meta=[])), "entry meta must be of type dict"),
    "no object": (lambda d: [[d]], "must be a JSON object"),
}


@pytest.mark.parametrize(("edit", "says"), RULES.values(), ids=RULES)
def test_a_corrupt_file_is_refused_in_one_sentence_that_names_it(edit, says, tmp_path):
    path = tmp_path / "solver.json"
    registry.build("dpmpp_2m", VE(), timesteps.build("edm", VE(), 3)).save(path)
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=f"solver.json: .*{says}") as error:
        Tableau.load(path)
    assert "\n" not in str(error.value)


def some_tables():
    """As different as they may be: one makes its first step without the network, one's noise is a long table."""
    return [
        registry.make("dpmpp_2m", "edm", VE(), 3),
        registry.make("ipndm_afs", "logsnr", NOISES["vp_discrete"], 4),
        registry.make("heun", [1.0, 0.5, 0.001], NOISES["vp_linear"], 4),
    ]


@given(tables=st.lists(tableaux(), min_size=1, max_size=4))
def test_several_in_one_file_are_the_same_to_the_bit_and_byte(tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tableaux")
    tables += some_tables()
    save_all(folder / "a.json", tables)
    again = load_all(folder / "a.json")
    save_all(folder / "b.json", again)
    assert [table.to_dict() for table in again] == [table.to_dict() for table in tables]
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()
    assert len((folder / "a.json").read_text().splitlines()) == len(tables) + 2  # a line each


@pytest.mark.parametrize(("edit", "says"), RULES.values(), ids=RULES)
def test_a_corrupt_one_among_several_is_refused_by_the_name_of_the_file(edit, says, tmp_path):
    path = tmp_path / "starts.json"
    save_all(path, [registry.make("dpmpp_2m", "edm", VE(), 3)] * 2)
    first, second = json.loads(path.read_text())
    path.write_text(json.dumps([first, edit(second)]))
    with pytest.raises(UserError, match=f"starts.json: .*{says}") as error:
        load_all(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{}", "3", "null", "[", '"starts"', None])
def test_a_file_of_no_tableaux_is_told(content, tmp_path):
    path = tmp_path / "starts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"starts\.json"):
        load_all(path)


def test_a_single_solvers_file_is_no_list_and_a_list_no_solver(tmp_path):
    (table, *_), path = some_tables(), tmp_path / "x.json"
    table.save(path)
    with pytest.raises(UserError, match=r"x\.json: .*list"):
        load_all(path)
    save_all(path, [table])
    with pytest.raises(UserError, match=r"x\.json: has solvers with .* choose one of them with nfe, got None"):
        Tableau.load(path)


def test_detached_it_has_the_same_numbers_without_gradients():
    table = registry.make("dpmpp_3m", "edm", VE(), 4)
    c, t_c = (v.clone().requires_grad_() for v in (table.c, table.t_c))
    learned = Tableau(table.t, t_c * 1, c * 1, table.W * c.sum() / c.sum(), table.noise, "x", {"a": 1}, c[0] / c[0])
    plain = learned.detached()
    assert plain.to_dict() == learned.to_dict()
    for key in ("t", "t_c", "c_0", "c", "W"):
        assert not getattr(plain, key).requires_grad
        assert torch.equal(getattr(plain, key), getattr(learned, key))
    assert learned.W.requires_grad


@pytest.mark.parametrize(
    ("content", "says"), [('{"schema": 1,', "not valid JSON"), ("", "not valid JSON"), (None, "no such")]
)
def test_a_truncated_or_missing_file_is_told(content, says, tmp_path):
    if content is not None:
        (tmp_path / "solver.json").write_text(content)
    with pytest.raises(UserError, match=says):
        Tableau.load(tmp_path / "solver.json")


def test_an_upper_triangle_is_refused():
    base = registry.build("ddim", VE(), timesteps.build("edm", VE(), 3))
    with pytest.raises(UserError, match="lower triangular"):
        Tableau(base.t, base.t_c, base.c, base.W + torch.ones(3, 3).triu(1), base.noise, "x")


def test_stages_are_evaluations_that_do_not_need_one_another():
    table = registry.make("parallel_midpoints", "edm", VE(), 8)
    assert table.stages == [range(1), range(1, 3), range(3, 4), range(4, 6), range(6, 7), range(7, 8)]
    assert (table.nfe, table.depth) == (8, 6)
    for solver in ("ddim", "unipc_bh2", "dpm_3s"):
        table = registry.build(solver, VE(), timesteps.build("edm", VE(), 4))
        assert table.depth == table.nfe


def test_other_precisions_are_refused():
    base = registry.build("ddim", VE(), timesteps.build("edm", VE(), 3))
    with pytest.raises(UserError, match="float64"):
        Tableau(base.t, base.t_c, base.c.float(), base.W, base.noise, "x")
