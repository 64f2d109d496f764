"""The parts of benchmarks/rivals that a mistake could hide in."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from benchmarks.rivals import mixture, page, photos, rows, stage
from benchmarks.rivals.models import load
from s4spipe.distill import gauss_newton
from s4spipe.distill.fit import COEFFICIENTS, TIMES
from s4spipe.files import Scratch
from s4spipe.sampling import sample


def density(net, sigma):
    """p(x | sigma), of a library."""
    covariance = torch.stack([r @ torch.diag(s**2) @ r.T for r, s in zip(net.rotation, net.std, strict=True)])
    noisy = covariance + sigma**2 * torch.eye(mixture.DIM, dtype=torch.float64)
    return MixtureSameFamily(Categorical(net.share), MultivariateNormal(net.mean, noisy))


@pytest.mark.parametrize("sigma", [0.05, 1.0, 40.0])
def test_the_mixtures_denoiser_is_tweedies(sigma):
    net = mixture.Mixture().requires_grad_(False)
    clean = net.data(4, seed=1).flatten(1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (clean + sigma * noise).requires_grad_()
    (score,) = torch.autograd.grad(density(net, sigma).log_prob(x).sum(), x)
    ours = net(x.detach().view(-1, *mixture.SHAPE), torch.full((4,), sigma, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(ours, x.detach() + sigma**2 * score, rtol=1e-6, atol=1e-6)


def test_the_mixtures_samples_have_its_moments():
    net = mixture.Mixture().requires_grad_(False)
    drawn = net.data(20_000).flatten(1)
    mean = (net.share[:, None] * net.mean).sum(0)
    within = torch.stack([r @ torch.diag(s**2) @ r.T for r, s in zip(net.rotation, net.std, strict=True)])
    offset = net.mean - mean
    covariance = torch.einsum("k,kde->de", net.share, within + offset[:, :, None] * offset[:, None])
    assert (drawn.mean(0) - mean).norm() < 0.03 * mean.norm()
    assert (torch.cov(drawn.T) - covariance).norm() < 0.05 * covariance.norm()


def test_patches_are_cut_from_where_they_say():
    images = photos.photographs()
    found, places = photos.patches(images, np.random.default_rng(0), 200)
    assert found.shape == (200, 3, 16, 16)
    assert set(places.tolist()) <= set(range(48))
    assert len(set(places.tolist())) > 40
    whole = images.unfold(2, 16, 1).unfold(3, 16, 1)
    for patch in found[:3]:
        apart = torch.stack(
            [(whole - p[None, :, None, None]).abs().amax((1, 4, 5)).min() for p in (patch, patch.flip(2))]
        )
        assert apart.min() == 0


@pytest.mark.parametrize(("learns", "epochs"), [("alternating", 7), ("alternating", 1), ("joint", 5), ("times", 3)])
def test_a_plan_has_the_epochs_it_is_given(learns, epochs):
    phases = rows.plan(learns, epochs)
    assert sum(phase.epochs for phase in phases) == epochs
    if learns == "alternating" and epochs > 3:
        assert [phase.learns for phase in phases[:4]] == [(TIMES,), (TIMES,), (TIMES,), (COEFFICIENTS,)]


ROWS = yaml.safe_load(Path("benchmarks/rivals/params.yaml").read_text())["rows"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    model = load("mixture", torch.device("cpu"))
    teacher = stage.teacher(model, 20)
    some = [stage.made(model, teacher, stream, 0, count) for stream, count in (("train", 70), ("validation", 20))]
    return lambda: rows.Task(model, 3, 0, 900, *some, Scratch(tmp_path_factory.mktemp("row")))


@pytest.mark.parametrize("row", [*ROWS, *stage.SPECIAL])
def test_every_row_gives_a_solver_for_its_nfe_and_says_what_it_cost(row, task):
    given = task()
    table, cost = rows.make(row, ROWS, given)
    assert table.nfe == 3
    assert sample(given.model.denoiser, table, given.validation.x_T).isfinite().all()
    assert cost["evaluations"] <= 3 * given.budget or row not in ROWS or "optimizer" in ROWS[row]
    assert (cost["evaluations"] == 0) == (row == "dmn")


def test_what_learns_comes_nearer_than_where_it_starts(task):
    given = task()

    def error(table):
        return gauss_newton.mean_distance(table, given.model.denoiser, given.validation, rows.APART, 50)

    found = {row: error(rows.make(row, ROWS, task())[0]) for row in ("classical", "lms_fit", "gs_fit", "free_fit")}
    assert max(found["lms_fit"], found["gs_fit"], found["free_fit"]) < 0.7 * found["classical"]


def test_the_tables_mark_the_lowest_and_say_how_far_ahead_free_is():
    def cells(nfe, *values):
        cost = {"nfe": nfe, "evaluations": 1000, "seconds": 2.0}
        return [cost | {"seed": seed, "fid": x, "to_teacher": x, "error": x} for seed, x in enumerate(values)]

    found = {"digits": {
        "teacher": [{"nfe": 20, "seed": 0, "fid": 0.5, "error": 0.0}],
        "gs": cells(3, 2.0, 4.0) + cells(4, 1.0, 1.0),
        "gits": cells(3, 200.0, 150.0),
        "gs_fit": cells(3, 1.5, 2.9) + cells(4, 2.5),
        "free": cells(3, 1.0, 2.0) + cells(4, 3.0, 3.0),
    }}  # fmt: skip
    lines = page.page(found, {"nfe": [3, 4, 5]}).splitlines()
    assert "| gs | 3 ± 1 | **1 ± 0** | - |" in lines
    assert "| gits | 175 ± 40 | - | - |" in lines
    assert "| free | **1.5 ± 0.7** | 3 ± 0 | - |" in lines
    assert lines[-2:] == [
        "| digits | 3 | gs | 2 | gs_fit | 1.5 | gs, gs_fit | 2 of 2 |",
        "| digits | 4 | gs | 0.33 | gs | 0.33 | gs, gs_fit | 0 of 2 |",
    ]


def test_the_page_is_of_the_rows_that_are_there_and_the_documentation_shows_it(tmp_path, monkeypatch):
    """In the documentation are the distances to the teacher's samples, the first table of every section."""
    place, shown = Path(stage.__file__).parent, Path("docs/benchmarks.md").read_text()
    shutil.copytree(place / "results", tmp_path / "results")
    shutil.copy(place / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(stage.main, ["report"]).exit_code == 0
    tables = Path("results/tables.md").read_text()
    assert (place / "results/tables.md").read_text() == tables
    for section in tables.split("## ")[1:]:
        assert next(part for part in section.split("\n\n") if part.startswith("|")) in shown


def test_from_pairs_to_the_page(tmp_path, monkeypatch):
    """The pipeline's stages on a small mixture's run; a row from other steps is one of its own."""
    settings = yaml.safe_load(Path("benchmarks/rivals/params.yaml").read_text())
    few = {"nfe": [3], "train": 40, "validation": 20, "samples": {"mixture": 60}, "reference": 60, "budget": 400}
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(settings | few | {"models": ["mixture"], "teacher": {"mixture": 10}}))

    def run(*arguments):
        result = CliRunner().invoke(stage.main, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output

    run("reference", "mixture")
    run("pairs", "mixture", 0)
    for row in (["teacher"], ["dmn"], ["gs"], ["gs", "--steps", "edm"]):
        run("learn", "mixture", 0, *row)
    run("report")
    lines = Path("results/tables.md").read_text().splitlines()
    own, edm = (next(line for line in lines if line.startswith(f"| {row} |")) for row in ("gs", "gs_edm"))
    assert own.split("|")[2] != edm.split("|")[2]
