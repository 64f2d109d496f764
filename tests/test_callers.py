"""The public API called from Python with anything: one sentence, whatever is wrong."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.pipeline import ROOT

from s4spipe import Tableau, classical, models, sample
from s4spipe.noise import VE, from_description
from s4spipe.runtime.errors import LONGEST, UserError, shown
from s4spipe.solvers import registry, timesteps

NOISE = VE()
TABLE = registry.make("ddim", "edm", NOISE, 3)
PARALLEL = registry.make("parallel_midpoints", "edm", NOISE, 3)
NOISES = torch.ones(2, 3)
WEIGHTS = str(ROOT / "models/digits.safetensors")
NOT_NFE = [None, 0, -3, 2.5, 3.0, True, "3", 10**12, 10**400, float("nan"), torch.tensor(3.0), torch.ones(2), [3]]
NOT_TIMES = [None, "edm", 5, {"a": 1}, ["a", "b"], [10**400, 1], [80.0, float("nan"), 0.002], [[80.0], [1.0]], NOISES]
NOT_NOISE = [None, "ve", {"name": "ve"}, 80.0, VE]
NOT_TENSOR = [None, [1.0], 1.0, "x", np.zeros(3)]


class Plain(models.Denoiser):
    sample_shape, noise_schedule = (3,), NOISE

    def predict(self, x, t, condition):
        return x / 2 if condition is None else x / 2 + condition[:, None]


class Labels(Plain):
    num_classes = null_condition = 5


def table(**changed):
    given = {key: getattr(TABLE, key) for key in ("t", "t_c", "c", "W", "noise", "name", "meta", "c_0")}
    return Tableau(**given | changed)


# The call, and what is wrong for its one argument.
CALLS = {
    "timesteps.build, n": (lambda n: timesteps.build("edm", NOISE, n), NOT_NFE),
    "timesteps.build, noise": (lambda noise: timesteps.build("edm", noise, 3), NOT_NOISE),
    "timesteps.build, schedule": (lambda t: timesteps.build(t, NOISE, 1), NOT_TIMES[:1] + NOT_TIMES[2:]),
    "timesteps.build, named": (lambda named: timesteps.build("mine", NOISE, 3, named), [[1], "mine", 5, {}]),
    "registry.make, name": (lambda name: registry.make(name, "edm", NOISE, 3), [None, 3, "ddim_٢", "ipndm_04"]),
    "registry.make, noise": (lambda noise: registry.make("ddim", "edm", noise, 3), NOT_NOISE),
    "registry.make, nfe": (lambda nfe: registry.make("ddim", "edm", NOISE, nfe), NOT_NFE),
    "classical.build, name": (lambda name: classical.build(name, NOISE, TABLE.t), [None, 3, "", "ddim\0"]),
    "classical.build, noise": (lambda noise: classical.build("ddim", noise, TABLE.t), NOT_NOISE),
    "classical.build, t": (lambda t: classical.build("ddim", NOISE, t), NOT_TIMES),
    "classical.build, nfe": (lambda nfe: classical.build("ddim", NOISE, TABLE.t, None, nfe), NOT_NFE[1:]),
    "classical.build, meta": (lambda meta: classical.build("ddim", NOISE, TABLE.t, meta), [[1], "x", 5]),
    "classical.coefficients, t": (lambda t: classical.coefficients("ddim", NOISE, t), NOT_TIMES),
    "classical.coefficients, noise": (lambda noise: classical.coefficients("ddim", noise, TABLE.t), NOT_NOISE),
    "classical.parse": (classical.parse, [None, 3, "", ["ddim"]]),
    "Tableau.load": (Tableau.load, [None, 10**9, "a\0b", ROOT, NOISES, "x" * 5000]),
    "Tableau.save": (TABLE.save, [None, 5, ROOT]),
    "Tableau.save, meta": (lambda meta: table(meta=meta).save("x.json"), [{"a": NOISES}, {5: 1}, {"a": {1, 2}}]),
    "Tableau.from_dict": (Tableau.from_dict, [None, "x", TABLE, {1: 2}, [], TABLE.to_dict() | {"t": TABLE.t}]),
    "Tableau, t": (lambda t: table(t=t), NOT_TENSOR),
    "Tableau, c": (lambda c: table(c=c), [*NOT_TENSOR, TABLE.W, TABLE.c_0]),
    "Tableau, c_0": (lambda c_0: table(c_0=c_0), NOT_TENSOR),
    "Tableau, meta": (lambda meta: table(meta=meta), [None, [], "x"]),
    "Tableau, noise": (lambda noise: table(noise=noise), NOT_NOISE),
    "Tableau, name": (lambda name: table(name=name), [None, 5, "", "a\nb", "x" * 300, "\ud800"]),
    "sample, denoiser": (lambda denoiser: sample(denoiser, TABLE, NOISES), [None, 5, WEIGHTS]),
    "sample, tableau": (lambda solver: sample(lambda x, t, c: x, solver, NOISES), [None, "a.json", TABLE.to_dict()]),
    "sample, x_T": (lambda x_T: sample(lambda x, t, c: x, TABLE, x_T), [
        *NOT_TENSOR, torch.tensor(1.0), torch.ones(2, 3, dtype=torch.int64), torch.ones(2, dtype=torch.complex64),
        torch.ones(2, 3).to_sparse(), NOISES / 0]),
    "sample, prediction": (lambda out: sample(lambda x, t, c: out, TABLE, NOISES, check=False), [
        *NOT_TENSOR, (NOISES,), torch.ones(1, 3), torch.ones(2, 1), torch.ones(2, 6), torch.ones(4, 3), NOISES.long(),
        torch.tensor(0.0), NOISES > 0, NOISES + 1j, NOISES.to_sparse(), NOISES.to("meta"),
        SimpleNamespace(sample=NOISES)]),
    "sample, prediction of several": (lambda out: sample(lambda x, t, c: out, PARALLEL, NOISES), [
        None, torch.ones(1, 3), torch.ones(4, 1), torch.ones(8, 3)]),
    "sample, noises of a model": (lambda x_T: sample(Labels(), TABLE, x_T), [
        torch.ones(2, 4), torch.ones(2), NOISES[None]]),
    "sample, condition": (lambda condition: sample(Labels(), TABLE, NOISES, condition), [
        [0, 6], [-1, 0], [0.0, 1.0], [0, 1, 2], [[0], [1]], "a", torch.eye(5)[:2], torch.eye(5).long(), True, 10**30]),
    "sample, condition of none": (lambda condition: sample(Plain(), TABLE, NOISES, condition), [0, [0, 1], "a"]),
    "models.load": (models.load, [None, WEIGHTS, ["weights"], {}, {5: 1, "weights": WEIGHTS}]),
    "models.load, weights": (lambda path: models.load({"weights": path}), [3, ["a"], str(ROOT), "absent"]),
    "models.load, device": (lambda device: models.load({"weights": WEIGHTS}, device),
                            ["gpu", 3.5, None, ["cpu"], "cuda:99", 99, "cpu:-1", "hpu", "privateuseone", "mtia"]),
    **{f"models.load, {key}": (lambda value, key=key: models.load({"weights": WEIGHTS, key: value}), values)
       for key, values in {"kind": [["digits"], 5, "x"], "guidance": ["2", float("nan"), -1, True, NOISES],
                           "condition": ["label", ["labels"]], "precision": [16, "fp16", ["float32"]]}.items()},
    **{f"ModelSettings, {key}": (
        lambda value, key=key: models.ModelSettings.of({"weights": WEIGHTS, key: value}), values)
       for key, values in {"source": [5, ["m:f"], b"m:f"], "scheduler": [5, "x", [1]], "name": [5, ["a"]],
                           "shape": [5, "x", [], ["a", 1], [3, -8, 8], [1.0]], "size": ["64", 0, 1.5, True],
                           "revision": [5], "embeddings": [5, ["a"]]}.items()},
    "ModelSettings, made directly": (lambda value: models.ModelSettings(WEIGHTS, scheduler=value), [None, 5]),
    "callable's source": (lambda value: models.load({"weights": WEIGHTS, "kind": "callable", "source": value}), [
        "", "m", ":f", "m:", ".m:f", "..m:f", "m..n:f", "no module:f", "no.module:f", "json.no:f", "builtins:exit"]),
    "noise": (lambda value: VE(value, 80.0), [None, "a", torch.tensor(1.0), True, 10**400, float("nan"), -1, 90]),
    "from_description": (from_description, [None, "ve", [], {"name": ["ve"]}, {"name": None}]),
}  # fmt: skip


@pytest.mark.parametrize(("call", "wrong"), CALLS.values(), ids=CALLS)
def test_what_is_wrong_is_told(call, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in wrong:
        with pytest.raises(UserError) as error:
            call(value)
        assert str(error.value).isprintable()
        assert len(str(error.value)) <= LONGEST
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("nfe", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_numpy_and_torch_are_numbers(nfe):
    assert registry.make("ddim", "edm", NOISE, nfe).agrees(TABLE)


@pytest.mark.parametrize(
    ("count", "right"), [(1000, True), (10**12, False), (10**400, False), (2.0, False), (None, False)]
)
def test_a_rule_for_a_table_makes_no_table_that_fills_the_memory(count, right):
    rule = {"betas": "linear", "first": 1e-4, "last": 0.02, "count": count}
    if right:
        assert from_description({"name": "vp_discrete", "alphas_cumprod": rule}).T == 999
        return
    with pytest.raises(UserError, match="of at most 100000"):
        from_description({"name": "vp_discrete", "alphas_cumprod": rule})


@pytest.mark.parametrize(
    "content", ['{"a": ' + "[" * 70 + "]" * 70 + "}", "[" * 10**5, "9" * 5000, '{"a": 1' + "0" * 400 + "}"]
)
def test_a_file_of_numbers_or_lists_beyond_use_is_told(content, tmp_path):
    (tmp_path / "solver.json").write_text(content)
    with pytest.raises(
        UserError, match="solver.json: (not valid JSON|lists and mappings|holds a number that is too large)"
    ):
        Tableau.load(tmp_path / "solver.json")


@given(st.text(), st.integers(0, 5))
def test_a_message_is_one_short_line_that_keeps_its_beginning_and_its_end(text, times):
    said = str(UserError(f"here: {text * 5**times} -- do that"))
    assert said.isprintable()
    assert len(said) <= LONGEST
    assert said.startswith("here: ")
    assert said.endswith(" -- do that")


def test_a_value_is_shown_shortly_whatever_refers_to_whatever():
    bomb = [1]
    for _ in range(50):
        bomb = [bomb] * 10
    loop = []
    loop.append(loop)
    for value in (bomb, loop, 16**5000, "x" * 10**6, list(range(10**5)), torch.ones(100, 100), "\ud800\n\x1b[31m"):
        assert len(shown(value)) <= 80
        assert shown(value).isprintable()
    with pytest.raises(UserError, match="more than 64 deep"):
        table(meta={"a": bomb, "b": json.loads("[" * 80 + "]" * 80)}).save("x.json")


@pytest.mark.parametrize("condition", [[1, 4], (1, 4), np.array([1, 4]), torch.tensor([1, 4], dtype=torch.uint8)])
@pytest.mark.parametrize("solver", [TABLE, PARALLEL], ids=["one by one", "side by side"])
def test_conditions_may_be_any_list_of_whole_numbers(condition, solver):
    expected = sample(Labels(), solver, NOISES, torch.tensor([1, 4]))
    assert torch.equal(sample(Labels(), solver, NOISES, condition), expected)
    for one in (4, np.int64(4), [4, 4]):  # a single index is for all
        assert torch.equal(sample(Labels(), solver, NOISES, one)[1], expected[1])
    assert sample(Labels(), solver, NOISES, [0, 5]).isfinite().all()  # 5 stands for no condition


@pytest.mark.parametrize(
    ("out", "says"),
    [
        (torch.ones(1, 3), r"the shape of its input, \[2, 3\], got \[1, 3\]"),
        ((NOISES,), "a dense tensor of floating-point numbers, got tuple"),
        (NOISES.long(), "a dense tensor of floating-point numbers, got torch.int64"),
        (NOISES.to_sparse(), "a dense tensor of floating-point numbers, got torch.float32, torch.sparse_coo"),
        (NOISES.to("meta"), "a tensor on the device of its input, cpu, got meta"),
    ],
)
def test_what_is_wrong_with_a_prediction_is_named(out, says):
    with pytest.raises(UserError, match=f"the denoiser must return {says}"):
        sample(lambda x, t, c: out, TABLE, NOISES, check=False)


@pytest.mark.parametrize(
    ("x_T", "condition", "says"),
    [
        (NOISES, [0, 6], r"conditions are indices from 0 to 5, got \[0, 6\]"),
        (NOISES, [0, 1, 2], r"conditions must be whole numbers \[2\], one for each sample"),
        (torch.ones(2, 4), None, r"samples are of shape \[3\]: the noises must be \[B, 3\], got \[2, 4\]"),
        (torch.tensor([[1, 2, 3], [1, torch.nan, 3]]), None, r"noises x_T are not finite .* for 1 of 2 samples"),
    ],
)
def test_what_is_wrong_with_noises_or_conditions_is_named(x_T, condition, says):
    with pytest.raises(UserError, match=says):
        sample(Labels(), TABLE, x_T, condition)


@pytest.fixture(params=[torch.bfloat16, torch.float64, "meta"], ids=str)
def left_on(request):
    """What a caller may have set for all of torch."""
    before = torch.get_default_dtype()
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)
    torch.set_default_device(None)


@pytest.fixture(scope="module")
def made():
    """The embedded model's samples, and what makes them."""
    denoiser, x_T = models.load({"weights": WEIGHTS}), 80 * torch.randn(2, 1, 8, 8)
    table = registry.make("unipc_bh2", "logsnr", NOISE, 4)
    return denoiser, table, x_T, sample(denoiser, table, x_T, [3, 7])


HEUN = registry.make("heun", "vp_uniform", NOISE, 4)


def test_no_default_of_torch_that_a_caller_left_on_changes_a_table_or_a_model(made, left_on, tmp_path):
    _, table, x_T, x_0 = made
    assert registry.make("unipc_bh2", "logsnr", VE(), 4).agrees(table, 0)
    assert classical.build("heun", NOISE, HEUN.t.tolist(), HEUN.meta).agrees(HEUN, 0)
    table.save(tmp_path / "solver.json")
    assert Tableau.load(tmp_path / "solver.json").agrees(table, 0)
    rule = {"betas": "linear", "first": 1e-4, "last": 0.02, "count": 1000}
    assert from_description({"name": "vp_discrete", "alphas_cumprod": rule}).sigma_T == pytest.approx(1, rel=1e-3)
    denoiser = models.load({"weights": WEIGHTS})
    assert {(p.dtype, p.device.type) for p in denoiser.parameters()} == {(torch.float32, "cpu")}
    assert torch.equal(sample(denoiser, table, x_T, [3, 7]), x_0)


def test_autocast_and_inference_mode_that_a_caller_left_on_change_nothing(made):
    denoiser, table, x_T, x_0 = made
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample(denoiser, table, x_T, [3, 7]), x_0)
        with torch.inference_mode():
            denoiser = models.load({"weights": WEIGHTS})
    start = x_T.clone().requires_grad_()
    sample(denoiser, table, start, [3, 7]).sum().backward()
    assert start.grad.any()
