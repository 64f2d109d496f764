"""Stages see any number of images with the same memory, and what they compute of them is what the whole array gives."""

import importlib
import os
import resource
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import parameters
from support.forks import FORK

from s4spipe.evaluation import fid, real
from s4spipe.features.base import frechet
from s4spipe.noise import VE
from s4spipe.pipeline import params, render
from s4spipe.pipeline.layout import Cell, Layout
from s4spipe.runtime.files import write_array, write_json, write_tensors
from s4spipe.solvers import registry

WIDTH = 512  # of the features
CODE = f"""
import torch

class Net(torch.nn.Module):
    img_channels, img_resolution, sigma_min, sigma_max = 3, 8, 0.0, float("inf")

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, sigma, class_labels=None):
        return self.scale * x / (1 + sigma[:, None, None, None])

class Seeing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(192, {WIDTH})

    def forward(self, images):
        return torch.tanh(self.layer(images.flatten(1)))
"""
CELL, TEACHER = Cell("ddim", 2), Cell("teacher", 2)
FEW, MANY = 2000, 16_000  # images
ALLOWED = 24.0  # MiB that the second may take more; their features alone are 27 MiB more, in float32


def rows_of(n, d, seed=0):
    """Far from 0, where sums of squares would cancel."""
    return torch.from_numpy((np.random.default_rng(seed).standard_normal((n, d)) + 300).astype(np.float32))


@given(st.integers(2, 60), st.integers(1, 7), st.integers(1, 200), st.integers(1, 30), st.integers(0, 5))
def test_statistics_in_blocks_of_any_size_are_those_of_all_rows(n, d, block, part, seed):
    rows = rows_of(n, d, seed)
    before, fid.BLOCK = fid.BLOCK, block
    try:
        mean, covariance = fid.statistics(rows.split(part))
        assert all(map(torch.equal, (mean, covariance), fid.statistics(iter([rows]))))  # whatever the parts
    finally:
        fid.BLOCK = before
    whole = rows.double().numpy()
    np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-13)
    expected = np.atleast_2d(np.cov(whole, rowvar=False))
    np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(("n", "d"), [(20_000, 64), (1797, 64), (3000, 500), (9, 1)])
def test_the_statistics_of_one_block_are_numpys_to_the_last_digit(n, d):
    rows = rows_of(n, d)
    mean, covariance = fid.statistics(rows.split(500))
    np.testing.assert_array_equal(mean, rows.double().numpy().mean(0))
    np.testing.assert_array_equal(covariance, np.atleast_2d(np.cov(rows.double().numpy(), rowvar=False)))


@given(st.integers(2, 40), st.integers(1, 50), st.integers(1, 15))
def test_rows_are_kept_where_they_were_asked_for(n, most, part):
    rows, places = rows_of(n, 3), np.sort(np.random.default_rng(n).permutation(50)[:most])
    statistics, kept = fid.statistics_and_rows(rows.split(part), places)
    assert torch.equal(kept, rows[places[places < n]])
    assert all(map(torch.equal, statistics, fid.statistics([rows])))
    assert fid.statistics_and_rows(rows.split(part), np.arange(0))[1].shape == (0, 3)


def peak(module, arguments, sent):
    """The most memory that a stage had, in MiB, in a process of its own."""
    sys.path.insert(0, os.getcwd())
    torch.set_num_threads(1)
    fid.BLOCK, fid.MOST, real.MOST = 2**18, 500, 500
    importlib.import_module(f"stages.{module}").main(arguments, standalone_mode=False)
    sent.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a stage on so many images, and says what memory it had."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "research.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "weights.bin").write_bytes(b"1")
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/none.txt").touch()
    places = Layout("own")
    for cell in (CELL, Cell("reference", 2)):
        registry.make("ddim", "edm", VE(), 2).save(places.table(cell))

    def start(module, arguments, count):
        images = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        write_array("real.npy", images)
        for cell in (CELL, TEACHER):
            write_array(places.samples(cell, "images.npy"), images)
            write_tensors(places.samples(cell, "states.safetensors"), {"states": torch.randn(4, 3, 192)})
            write_json(places.samples(cell, "about.json"), {"nfe": 2})
        statistics = {"mean": torch.zeros(WIDTH).double(), "covariance": torch.eye(WIDTH).double()}
        write_tensors(places.reference, statistics)
        write_tensors(places.real, statistics | {"features": torch.randn(200, WIDTH)})
        model = {"name": "own", "kind": "callable", "source": "research:Net", "weights": "weights.bin"}
        seen_by = {"network": "callable", "source": "research:Seeing", "features": "weights.bin", "real": "real.npy"}
        changes = [("run.device", "cpu"), ("run.batch_size", 200), ("sample.count", count), ("teacher.nfe", 2)]
        changes += [("reference.count", count), ("reference.nfe", 2), ("model.condition", "none")]
        changes += [("classical", ["ddim"]), ("classical_schedules", {"ddim": "edm"}), ("learned", []), ("refined", [])]
        changes += [(f"model.{key}", value) for key, value in model.items()]
        changes += [(f"fid.{key}", value) for key, value in seen_by.items()]
        (tmp_path / "params.yaml").write_text(render.params_yaml(parameters.changed(*changes)), encoding="utf-8")
        params.load()
        receiving, sending = FORK.Pipe(duplex=False)
        process = FORK.Process(target=peak, args=(module, arguments, sending))
        process.start()
        process.join()
        assert process.exitcode == 0
        return receiving.recv()

    return start


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("evaluate", ["ddim", "2"]), ("reference", []), ("real", []), ("sample", ["tables", "ddim", "2"])],
)
def test_the_memory_of_a_stage_does_not_grow_with_the_number_of_images(module, arguments, run):
    few, many = (run(module, arguments, count) for count in (FEW, MANY))
    assert many < few + ALLOWED


def test_a_distance_in_blocks_is_that_of_all_rows(monkeypatch):
    rows, goal = rows_of(3000, 20), frechet.statistics(rows_of(2000, 20, 1).double())
    whole = frechet.distance(fid.statistics([rows]), goal)
    monkeypatch.setattr(fid, "BLOCK", 20 * 170)
    assert frechet.distance(fid.statistics(rows.split(500)), goal) == pytest.approx(whole, rel=1e-9)
