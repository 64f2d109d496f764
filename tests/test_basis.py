"""Weights by frequency: the basis, the table, sampling, derivatives, and data for which they are exact."""

import json
import math
from hashlib import sha256

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn
from support.problems import NOISES
from support.tables import banded, denoise, drawn

from s4spipe.learning import adjoint
from s4spipe.learning.families import Free
from s4spipe.noise import VPDiscrete, alphas_cumprod
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN, Arrays, Bands, dct, from_description, transformed
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry

TURNED = tuple(map(tuple, torch.linalg.qr(drawn(3, 3))[0].tolist()))
BASES = {"bands": Bands((1.0, 2.5)), "components": Bands(((0.0, 1.0), (0.7, 1.5), (1.0, math.inf)), 2, TURNED),
         "own edges": Bands(((0.5,), (1.0,), (1.5,))), "mixed": Bands((1.0,), 2, TURNED),
         "pixels": Arrays((4, 6), 0), "frequencies": Arrays((4, 6)),
         "channels": Arrays((3, 1, 1), 0), "everything": Arrays((3, 4, 6))}  # fmt: skip


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_the_transform_is_that_of_scipy_and_orthonormal(b, c, h, w, axes):
    x = drawn(b, c, h, w)
    there = transformed(x, axes)
    expected = dctn(x.numpy(), axes=range(4 - axes, 4), norm="ortho") if axes else x.numpy()
    np.testing.assert_allclose(there.numpy(), expected, atol=1e-12)
    torch.testing.assert_close(transformed(there, axes, back=True), x)


def test_a_matrix_made_without_gradients_serves_with_them():
    dct.cache_clear()
    with torch.inference_mode():
        transformed(drawn(1, 1, 4, 4), 2)
    x = drawn(1, 1, 4, 4).requires_grad_()
    transformed(x, 2).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_bands_are_cycles_per_side_whatever_the_size():
    basis = Bands((1.0, 2.0))
    weight = torch.tensor([1.0, 2.0, 3.0])
    small, large = (basis.spread(weight, torch.zeros(1, 1, n, 2 * n)) for n in (4, 8))
    assert small[0].tolist()[0] == [1, 1, 2, 2, 3, 3, 3, 3]  # 0, 1/2, 1, 3/2, 2, ... cycles
    assert torch.equal(large[:, :4, :8], small)
    assert small[0, 2, 0] == 2  # 1 cycle is in the band above the edge
    assert small[0, 1, 1] == 1  # sqrt(2) / 2 cycles


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
def test_sums_over_a_weight_are_the_adjoint_of_spreading_it(basis):
    products, weight = drawn(2, 5, 3, 4, 6), drawn(*basis.shape, seed=1)
    gathered = basis.gather(products)
    assert gathered.shape == (2, 5, *basis.shape)
    spread = basis.spread(weight, products[0])
    expected = (spread * products).flatten(2).sum(2)
    torch.testing.assert_close((gathered * weight).flatten(2).sum(2), expected)


@pytest.mark.parametrize("basis", [PLAIN, *BASES.values()], ids=["plain", *BASES])
def test_a_table_is_saved_and_loaded_and_samples_the_same(basis, tmp_path):
    noise = NOISES["ve"]
    table = banded(noise, basis)
    table.save(tmp_path / "solver.json")
    again = Tableau.load(tmp_path / "solver.json")
    assert again.to_dict() == table.to_dict()
    assert again.agrees(table)
    assert again.basis == basis or basis is PLAIN is again.basis
    x_T = noise.sigma_T * drawn(2, 3, 4, 6)
    assert torch.equal(sample(denoise, again, x_T), sample(denoise, table, x_T))
    assert ('"schema": 3' in (tmp_path / "solver.json").read_text()) is (basis is not PLAIN)


@pytest.fixture
def saved(tmp_path):
    """A solver with arrays of weights, and its two files."""
    table = banded(NOISES["ve"], Arrays((3, 4, 6)))
    table.save(tmp_path / "solver.json")
    (arrays,) = tmp_path.glob("*.safetensors")
    return table, tmp_path / "solver.json", arrays


def test_arrays_go_into_a_file_beside_the_solvers_own(saved, tmp_path):
    table, path, arrays = saved
    assert Tableau.load(path).to_dict() == table.to_dict()
    text = path.read_text()
    assert len(text) < 3000
    assert f'"file": "{arrays.name}"' in text
    table.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text.replace("solver-", "again-")
    Tableau.from_dict(table.to_dict()).save(path)  # in its place
    assert path.read_text() == text
    shared = torch.ones(2, 4, 6, dtype=torch.float64)
    times = torch.tensor([80.0, 0.002], dtype=torch.float64)
    alike = Tableau(
        times, times[:1], shared[:1], shared[None, :1], NOISES["ve"], "alike", {}, shared[0], Arrays((4, 6))
    )
    alike.save(tmp_path / "alike.json")
    assert Tableau.load(tmp_path / "alike.json").agrees(alike)
    assert [file.name for file in tmp_path.glob("solver*")] in ([path.name, arrays.name], [arrays.name, path.name])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"file": "../x.safetensors", "sha256": "0"}, "in the solver's own folder, got '../x.safetensors'"),
        ({"file": "/etc/x.safetensors", "sha256": "0"}, "in the solver's own folder"),
        ({"file": "x.pt", "sha256": "0"}, "must name a .safetensors file"),
        ({"file": "x.safetensors", "sha256": "0"}, r"x\.safetensors: no such file"),
        ({"file": "x.safetensors"}, "must have the file's name and its sha256"),
        ({"file": 3, "sha256": "0"}, "must have the file's name and its sha256"),
        (None, "must have the file's name and its sha256"),
        ([], "must have the file's name and its sha256"),
    ],
)
def test_another_entry_for_arrays_is_told(saved, entry, says):
    _, path, _ = saved
    path.write_text(json.dumps(json.loads(path.read_text()) | {"arrays": entry}))
    with pytest.raises(UserError, match=rf"^{path}: .*{says}"):
        Tableau.load(path)


def test_arrays_that_are_not_the_solvers_are_told(saved):
    _, path, arrays = saved
    content = arrays.read_bytes()
    for wrong in (b"", content[:-1], content[:-1] + b"x"):
        arrays.write_bytes(wrong)
        with pytest.raises(UserError, match=rf"{arrays.name}: not the arrays .*sha256"):
            Tableau.load(path)
    data = json.loads(path.read_text())
    for tensors, says in (
        ({"c": torch.zeros(3)}, "entry c_0 is missing"),
        ({name: torch.zeros(3) for name in ("c_0", "c", "W")}, "entry c must be"),
        ({name: torch.zeros(()) for name in ("c_0", "c", "W")}, "entry c must be|nfe must be"),
        ({"c_0": torch.ones(3, 4, 6), "c": torch.ones(3, 3, 4, 6), "W": torch.ones(3, 3, 3, 4, 6)}, "float64"),
    ):
        wrong = safetensors.torch.save(tensors)
        arrays.write_bytes(wrong)
        path.write_text(json.dumps(data | {"arrays": {"file": arrays.name, "sha256": sha256(wrong).hexdigest()}}))
        with pytest.raises(UserError, match=says):
            Tableau.load(path)
    arrays.unlink()
    with pytest.raises(UserError, match=rf"{arrays.name}: no such file"):
        Tableau.load(path)


def test_weights_that_are_all_the_same_are_plain_ones():
    noise = NOISES["vp_linear"]
    plain = registry.make("ipndm", "logsnr", noise, 4)
    x_T = noise.sigma_T * drawn(2, 3, 4, 6)
    expected = sample(denoise, plain, x_T)
    for basis in BASES.values():
        each = (..., *[None] * len(basis.shape))
        c_0, c, W = (value[each].expand(*value.shape, *basis.shape).clone() for value in (plain.c_0, plain.c, plain.W))
        table = Tableau(plain.t, plain.t_c, c, W, noise, "same", {}, c_0, basis)
        torch.testing.assert_close(sample(denoise, table, x_T), expected, rtol=1e-12, atol=1e-12)
        assert table.stages == plain.stages


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
def test_one_evaluation_is_exact_for_stationary_gaussian_data(key):
    """Every frequency of such data is a normal variable of its own variance s, so that the ODE takes it from x_T to
    x_T sqrt(alpha_0^2 s + sigma_0^2) / sqrt(alpha_T^2 s + sigma_T^2), and the denoiser multiplies it by a number."""
    noise, sides = NOISES[key], (8, 6)
    waves = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in sides), indexing="ij"))
    spectrum = 1 / (0.1 + waves.square().sum(0))

    def denoiser(x, t, condition):
        alpha, sigma = noise.alpha(t), noise.sigma(t)
        return transformed(alpha * spectrum / (alpha**2 * spectrum + sigma**2) * transformed(x, 2), 2, back=True)

    ends = torch.tensor([noise.T, noise.t_min], dtype=torch.float64)
    (a_T, a_0), (s_T, s_0) = noise.alpha(ends), noise.sigma(ends)
    exact = ((a_0**2 * spectrum + s_0**2) / (a_T**2 * spectrum + s_T**2)).sqrt()
    # Half of it by the noise, and half by the prediction: both are multiples of x_T.
    gain = a_T * spectrum / (a_T**2 * spectrum + s_T**2)
    table = Tableau(ends, ends[:1], exact[None] / 2, (exact / (2 * gain))[None, None], noise, "exact", {},
                    torch.ones(sides, dtype=torch.float64), Arrays(sides))  # fmt: skip
    x_T = noise.sigma_T * drawn(3, 2, *sides)
    expected = transformed(exact * transformed(x_T, 2), 2, back=True)
    torch.testing.assert_close(sample(denoiser, table, x_T), expected, rtol=1e-10, atol=1e-10)
    # The same by three hundred steps of a classical solver, which knows nothing of frequencies.
    slow = sample(denoiser, registry.make("dpmpp_3m", "logsnr", noise, 300), x_T)
    torch.testing.assert_close(slow, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
def test_derivatives_are_those_of_reverse_mode(basis):
    noise = NOISES["ve"]
    table, x_T = banded(noise, basis), noise.sigma_T * drawn(2, 3, 4, 6)
    path = adjoint.run(denoise, table, x_T, None)
    torch.testing.assert_close(path.end, sample(denoise, table, x_T))
    outputs = drawn(2, *x_T.shape, seed=5)
    ours = adjoint.derivatives(denoise, table, path, outputs, None).sum(1)
    n, k = table.nfe, basis.shape
    sizes = [math.prod(k), n * math.prod(k), n * n * math.prod(k), n]

    def of(vector):
        c_0, c, W, t_c = vector.split(sizes)
        W = W.view(n, n, *k) * torch.ones(n, n).tril()[(..., *[None] * len(k))]
        again = Tableau(table.t, t_c, c.view(n, *k), W, noise, "x", {}, c_0.view(k), basis)
        return (outputs * sample(denoise, again, x_T)).flatten(1).sum(1)

    exact = torch.autograd.functional.jacobian(of, adjoint.entries(table))
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-4)


def test_free_learns_a_number_for_every_band_and_starts_at_the_table():
    table = banded(NOISES["ve"], Bands((1.0, 2.5)))
    student = Free(table)
    assert student("banded").agrees(table)
    assert student.parameter_count == 3 * (3 + 6 + 1) + 3
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    assert student().basis == table.basis
    assert Tableau.from_dict(student().to_dict()).agrees(student())


@pytest.mark.parametrize("basis", [Bands((0.7,)), Arrays((8, 8))], ids=["bands", "arrays"])
def test_the_scheduler_makes_what_the_loop_makes(basis):
    noise = VPDiscrete(alphas_cumprod("scaled_linear", 0.00085, 0.012, 1000))
    table = banded(noise, basis)
    table = Tableau(table.t, table.t_c, table.c, table.W, noise, "x", {}, torch.ones_like(table.c_0), basis)
    config = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).config
    scheduler = S4SScheduler.from_tableau(table, config)
    scheduler = S4SScheduler.from_config(scheduler.config)
    x_T = drawn(2, 4, 8, 8)
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(0.3 * torch.tanh(x), t, x).prev_sample

    def denoiser(y, t, condition):
        return (y - noise.sigma(t) * 0.3 * torch.tanh(y)) / noise.alpha(t)

    torch.testing.assert_close(x, sample(denoiser, table, x_T), rtol=1e-9, atol=1e-9)
    scheduler.set_timesteps(3)
    with pytest.raises(UserError, match="which do not go|are tokens"):
        scheduler.step(torch.zeros(2, 64, 4), scheduler.timesteps[0], torch.zeros(2, 64, 4))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"basis": {"name": "bands", "axes": 2, "edges": [2, 1]}}, "rising positive numbers"),
        ({"basis": {"name": "bands", "axes": 2, "edges": [1, float("nan")]}}, "rising positive numbers"),
        ({"basis": {"name": "bands", "axes": 2, "edges": []}}, "1 to 999 rising positive numbers"),
        ({"basis": {"name": "bands", "axes": 4, "edges": [1, 2]}}, "at most 3"),
        ({"basis": {"name": "bands", "axes": 2}}, "must have the keys axes, edges, name"),
        ({"basis": {"name": "bands", "axes": 2, "edges": [[1, 2], [1]]}}, "2 rising numbers for each channel"),
        ({"basis": {"name": "bands", "axes": 2, "edges": [[1, 2], [2, 1]]}}, "2 rising numbers for each channel"),
        ({"basis": {"name": "bands", "axes": 2, "edges": [1, None]}}, "rising positive numbers"),
        ({"basis": {"name": "bands", "axes": 2, "edges": [[-1, 2]]}}, "2 rising numbers for each channel"),
        ({"basis": {"name": "bands", "axes": 2, "edges": [1, 2], "mixing": [[1, 1], [0, 1]]}}, "orthonormal matrix"),
        ({"basis": {"name": "bands", "axes": 2, "edges": [1, 2], "mixing": [[1], [0, 1]]}}, "orthonormal matrix"),
        ({"basis": {"name": "bands", "axes": 2, "edges": [[1, 2]] * 3, "mixing": [[1, 0], [0, 1]]}}, "each of the 2"),
        ({"basis": {"name": "wavelets"}}, "unknown basis 'wavelets'"),
        ({"basis": 3}, "an object with a name"),
        ({"basis": {"name": "bands", "axes": 2, "edges": [1]}}, r"entry c must be a list of lists of the shape \[2\]"),
        ({"basis": {"name": "arrays", "axes": 2, "shape": [3, 0]}}, "at least 1"),
        ({"c": [1.0, 2.0, 3.0]}, r"entry c must be a list of lists of the shape \[3\]"),
        ({"c_0": 1.0}, r"entry c_0 must be a list of lists of the shape \[3\]"),
        ({"schema": 4}, "schema must be 1, 2 or 3"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(change, says):
    data = banded(NOISES["ve"], Bands((1.0, 2.5))).to_dict() | change
    with pytest.raises(UserError, match=says):
        Tableau.from_dict(data)


def test_data_of_another_rank_or_size_are_refused():
    noise = NOISES["ve"]
    with pytest.raises(UserError, match=r"over 2 axes, for samples \[B, channels, 2 axes\], got \[2, 3\]"):
        sample(denoise, banded(noise, Bands((1.0,))), noise.sigma_T * drawn(2, 3))
    with pytest.raises(
        UserError, match=r"weights of shape \[4, 6\], which do not go with samples of shape \[3, 5, 6\]"
    ):
        sample(denoise, banded(noise, Arrays((4, 6))), noise.sigma_T * drawn(2, 3, 5, 6))
    with pytest.raises(UserError, match=r"for samples of 3 channels, got \[2, 4, 4, 6\]"):
        sample(denoise, banded(noise, BASES["components"]), noise.sigma_T * drawn(2, 4, 4, 6))
    with pytest.raises(UserError, match="a basis, got 'bands'"):
        banded(noise, PLAIN).__class__(**vars(banded(noise, PLAIN)) | {"basis": "bands"})
    assert from_description(PLAIN.describe()) is PLAIN
