"""The parts of benchmarks/rivals that a mistake could hide in."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ruamel.yaml import YAML
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from benchmarks.rivals import figure, page, rows, sampling, timings
from benchmarks.rivals.problems import mixture, photos
from benchmarks.rivals.problems.problem import Problem
from benchmarks.rivals.stages import learn, pairs, reference, report
from s4spipe.learning import gauss_newton
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES
from s4spipe.pipeline import resolve
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.files import read_json
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.batches import Noises
from s4spipe.sampling.loop import sample

HERE = Path("benchmarks/rivals").absolute()
SETTINGS = YAML(typ="safe").load(HERE / "params.yaml")


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


@pytest.mark.parametrize("row", ["ld3", "dss", "s4s", "s4s_alt"])
@pytest.mark.parametrize("budget", [0, 2_000, 30_000, 100_000])
def test_learning_by_adam_spends_its_budget_and_no_more(row, budget, tmp_path, monkeypatch):
    problem, nfe = Problem("mixture", torch.device("cpu")), 3
    some = Pairs(torch.zeros(600, *mixture.SHAPE), torch.zeros(600, *mixture.SHAPE), None)
    cell = rows.Cell(problem, nfe, 0, budget, some, some.take(torch.arange(300)), Scratch(tmp_path))
    fits = []
    monkeypatch.setattr(rows.adam, "fit", lambda task, phases, distance, adam: fits.append((phases, adam)))
    _, cost = rows.learned(cell, SETTINGS["rows"][row])
    ((phases, adam),) = fits
    assert adam.plain == (row in ("ld3", "dss"))
    assert budget - 5 * 600 < cost["evaluations"] / nfe <= budget
    assert bool(sum(phase.epochs for phase in phases)) == (budget > 2_000)


@pytest.mark.parametrize(("learns", "epochs"), [("alternating", 7), ("alternating", 1), ("joint", 5), ("times", 3)])
def test_phases_have_the_epochs_they_are_given(learns, epochs):
    phases = rows.phases(learns, epochs)
    assert sum(phase.epochs for phase in phases) == epochs
    if learns == "alternating" and epochs > 3:
        assert [phase.learns for phase in phases[:4]] == [(TIMES,), (TIMES,), (TIMES,), (COEFFICIENTS,)]


ROWS = SETTINGS["rows"]


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    problem = Problem("mixture", torch.device("cpu"))
    teacher = sampling.teacher(problem, 20)
    counts = (("train", 670), ("validation", 20))
    drawn, validation = (sampling.samples(problem, teacher, Noises(stream, 0, count)) for stream, count in counts)
    training, others = drawn.take(torch.arange(70)), drawn.take(torch.arange(70, 670))
    return lambda nfe=3: rows.Cell(
        problem, nfe, 0, 900, training, validation, Scratch(tmp_path_factory.mktemp("row")), others
    )


@pytest.mark.parametrize("nfe", [2, 3])
@pytest.mark.parametrize("row", [row for row in ROWS if row != "teacher"])
def test_every_row_gives_a_solver_for_its_nfe_and_says_what_it_cost(row, nfe, cell):
    given = cell(nfe)
    table, cost = rows.make(row, ROWS[row], given)
    assert table.nfe == nfe
    assert sample(given.problem.denoiser, table, given.validation.x_T).isfinite().all()
    assert cost["evaluations"] <= nfe * given.budget or "learns" not in ROWS[row]
    assert (cost["evaluations"] == 0) == (row == "dmn")


def test_the_default_rows_have_the_settings_of_the_pipeline():
    """But that a fit is validated by as many pairs as those of all rows."""
    params = Params()
    for row, name in (("free_default", "free"), ("free_bands_default", "free_bands")):
        learner, block = resolve.learner(params, name), ROWS[row]
        assert (SETTINGS["pairs"], block["steps"]) == (learner.pairs, learner.epochs)
        assert SETTINGS["pairs"] == params.refine.pairs
        assert (block["watch"], block["refine"]) == (params.refine.validation_pairs, params.refine.steps)
        assert block.get("bands", False) == (learner.bands == "auto")
        assert learner.batch_size == rows.NEWTON_BATCH_SIZE
        assert (learner.distance, learner.mean) == ("pseudo_huber", None)  # which is the image
        assert block["mean"] == "image"


@pytest.mark.slow
def test_what_learns_comes_nearer_than_where_it_starts(cell):
    given = cell()

    def error(table):
        return gauss_newton.mean_distance(table, given.problem.denoiser, given.validation, rows.DISTANCE, 50)

    found = {row: error(rows.make(row, ROWS[row], cell())[0]) for row in ("classical", "lms_fit", "gs_fit", "free_fit")}
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
        "free_bands": cells(4, 1.5, 1.5),  # learns from more
    }}  # fmt: skip
    ours = {"gs_fit": {"by": "gauss_newton"}, "free": {"by": "free"}, "free_bands": {"by": "free", "pairs": 1800}}
    settings = {"nfe": [3, 4, 5], "rows": {"gs": {}, "gits": {}} | ours}
    lines = page.page(found, settings).splitlines()
    assert "| NFE | 3 | 4 |" in lines  # 5 has not been run
    assert "| gs | 3 ± 1 | **1 ± 0** |" in lines
    assert "| gits | 175 ± 40 | - |" in lines
    assert "| free | **1.5 ± 0.7** | 3 ± 0 |" in lines
    assert lines[-2:] == [
        "| digits | 3 | gs | 2 | gs_fit | 1.5 | gs, gs_fit | 2 of 2 |",
        "| digits | 4 | gs | 0.33 | gs | 0.33 | gs, gs_fit | 0 of 2 |",
    ]


def test_the_default_is_compared_with_the_rivals_of_its_seeds():
    def cells(evaluations, *values):
        cost = {"nfe": 3, "evaluations": evaluations, "fid": 1.0, "error": 1.0}
        return [cost | {"seed": seed, "to_teacher": value} for seed, value in enumerate(values)]

    found = {"digits": {
        "teacher": [{"nfe": 20, "seed": 0, "fid": 0.5, "error": 0.0}],
        "gs": cells(1000, 2.0, 4.0, 1e-3),  # the third is of a seed that the default has not been run with
        "bns_edm": cells(1000, 4.0, 1.0),
        "dss": cells(1000, 0.1),  # lacks a seed
        "gs_fit": cells(1000, 0.1, 0.1),
        "free": cells(1000, 0.1, 0.1),
        "free_bands_default": cells(1500, 1.0, 0.25),
    }}  # fmt: skip
    ours = {"gs_fit": {"by": "gauss_newton"}, "free": {"by": "free"}, "free_bands_default": {"by": "free"}}
    settings = {"nfe": [3, 4], "rows": {"gs": {}, "bns": {}, "dss": {}} | ours}
    lines = page.page(found, settings).splitlines()
    assert lines[-1] == "| digits | 3 | bns_edm | 4 | 2, 4 | 1.5 |"


@pytest.mark.parametrize(("folder", "shows"), [("results", "benchmarks"), ("confirmed", "confirmation")])
def test_the_page_is_of_the_rows_that_are_there_and_the_documentation_shows_it(folder, shows, tmp_path, monkeypatch):
    """In the documentation are the distances to the teacher's samples, the first table of every section."""
    shown = Path(f"docs/results/{shows}.md").read_text()
    for name in {folder, "results"}:
        shutil.copytree(HERE / name, tmp_path / name)
    for name in ("params.yaml", timings.FILE):
        shutil.copy(HERE / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    run(report.main, folder)
    tables = Path(f"{folder}/tables.md").read_text()
    assert (HERE / f"{folder}/tables.md").read_text() == tables
    for section in tables.split("## ")[1:]:
        assert next(part for part in section.split("\n\n") if part.startswith("|")) in shown


def test_the_figure_tells_distances_as_parts_of_the_best_classical_solvers(tmp_path):
    def cells(*values):
        return [{"nfe": 4, "seed": seed, "to_teacher": value} for seed, value in enumerate(values)]

    rows = {"classical": cells(4, 6), "free": cells(1, 2), "gs": cells(3), "dmn": cells(1)}
    assert figure.parts(rows, 4) == {"gs": 0.6, "free": 0.3}
    assert figure.parts(rows | {"classical": []}, 6) == {}
    figure.draw({"one": rows, "two": rows}, [4, 6], tmp_path / "a.png")
    figure.draw({"one": rows, "two": rows}, [4, 6], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def run(command, *arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def seconds_in(tables):
    """The rows of the table of seconds."""
    return tables.split(page.MEASURES["seconds"])[1].split("\n\n")[1].split("\n", 2)[2]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An empty project of a small mixture's comparison, to work in."""
    few = {"nfe": [3], "train": 40, "pairs": 40, "validation": 20, "reference": 60, "budget": 400}
    few["samples"] = {"mixture": 60}
    monkeypatch.chdir(tmp_path)
    YAML(typ="safe").dump(SETTINGS | few | {"models": ["mixture"], "teacher": {"mixture": 10}}, Path("params.yaml"))
    Path(timings.FILE).write_text("{}")


def test_from_pairs_to_the_page(small):
    """A row from another schedule is one of its own; seconds come onto the page when they are told to."""
    run(reference.main, "mixture")
    run(pairs.main, "mixture", 0)
    for row in (["teacher"], ["dmn"], ["gs"], ["gs", "--schedule", "edm"]):
        run(learn.main, "mixture", 0, *row)
    run(report.main)
    before = Path("results/tables.md").read_text()
    assert seconds_in(before) == "| dmn | - |\n| gs | - |\n| gs_edm | - |"
    timings.main()
    run(report.main)
    took = {row: read_json(timings.FILE)[f"mixture/{row}-0"]["3"] for row in ("dmn", "gs", "gs_edm")}
    shown = seconds_in(Path("results/tables.md").read_text())
    assert shown == "\n".join(f"| {row} | {seconds:.0f} |" for row, seconds in took.items())
    lines = before.splitlines()
    own, edm = (next(line for line in lines if line.startswith(f"| {row} |")) for row in ("gs", "gs_edm"))
    assert own.split("|")[2] != edm.split("|")[2]


def test_a_row_made_again_is_the_same_file(small):
    """No result has a time of day or of a clock in it."""
    run(pairs.main, "mixture", 0)
    run(reference.main, "mixture")
    run(learn.main, "mixture", 0, "dmn")
    first = Path("results/mixture/dmn-0.json").read_bytes()
    run(learn.main, "mixture", 0, "dmn")
    assert Path("results/mixture/dmn-0.json").read_bytes() == first
