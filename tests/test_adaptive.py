"""The adaptive solver rk45: against scipy's, known solutions and the steps of a tableau; and as a teacher."""

import json

import pytest
import torch
from click.testing import CliRunner
from scipy.integrate import RK45, solve_ivp
from support import finished
from support.parameters import changed, mistake
from support.pipeline import ROOT
from support.problems import NOISES, Gaussian, Mixture, noises

from s4spipe import models
from s4spipe.commands import export, memory
from s4spipe.commands.cli import main as cli
from s4spipe.learning.pairs import Pairs
from s4spipe.models.noise import VE, describe
from s4spipe.pipeline import params as parameters
from s4spipe.pipeline import render
from s4spipe.pipeline.layout import Cell, Layout
from s4spipe.report import figures, page, tables
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_json, read_tensors
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling import rk45
from s4spipe.sampling.batches import Noises, evaluations, generate
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau, adaptive
from s4spipe.sampling.tableau.adaptive import Adaptive
from s4spipe.solvers import registry
from stages import reference, report, teacher_pairs
from stages import sample as sample_stage
from stages import tables as tables_stage

MOST = 2000
DIGITS = str(ROOT / "models/digits.safetensors")


def solved(problem, x_T, tolerance, condition=None):
    return rk45.solve(problem, Adaptive(problem.noise_schedule, tolerance, MOST), x_T, condition)


# -- the method -------------------------------------------------------------------------------------------------------


def test_its_numbers_are_those_of_scipy():
    for row, weights in zip(rk45.STAGES[:6], RK45.A, strict=True):
        assert list(row) == pytest.approx(weights[: len(row)].tolist(), abs=1e-15)
        assert not weights[len(row) :].any()
    assert list(rk45.STAGES[6]) == pytest.approx(RK45.B.tolist(), abs=1e-15)
    assert list(rk45.NODES[:6]) == pytest.approx(RK45.C.tolist(), abs=1e-15)
    assert list(rk45.ERROR) == pytest.approx((-RK45.E).tolist(), abs=1e-15)


class Orbit:
    """A body in a plane around a centre, [..., 4]: its steps must be small where it is near."""

    def starts(self):
        """At the nearest point, of several eccentricities."""
        return torch.tensor([[1 - e, 0, 0, ((1 + e) / (1 - e)) ** 0.5] for e in (0.0, 0.3, 0.6)], dtype=torch.float64)

    def __call__(self, t, y, rows=None):
        cubed = (y[..., :2] ** 2).sum(-1)[..., None] ** 1.5
        return torch.cat([y[..., 2:], -y[..., :2] / cubed], -1)

    def by_scipy(self, start, method, tolerance):
        def derivative(t, y):
            return self(t, torch.tensor(y)).numpy()

        return solve_ivp(derivative, (0, 5), start.numpy(), method, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_it_integrates_as_accurately_and_as_cheaply_as_scipy(tolerance):
    """Three orbits at once, each as scipy would alone; and back again."""
    orbit = Orbit()
    ends, spent = rk45.integrate(orbit, orbit.starts(), (0, 5), tolerance, MOST)
    back, _ = rk45.integrate(orbit, ends, (5, 0), tolerance, MOST)
    for row, start in enumerate(orbit.starts()):
        exact = torch.tensor(orbit.by_scipy(start, "DOP853", 1e-13).y[:, -1])
        theirs = orbit.by_scipy(start, "RK45", tolerance)
        error = (torch.tensor(theirs.y[:, -1]) - exact).abs().max()
        assert (ends[row] - exact).abs().max() < 5 * error
        assert (back[row] - start).abs().max() < 20 * error
        assert 0.8 * theirs.nfev - 12 < spent[row] < 1.2 * theirs.nfev + 12


def test_a_tighter_tolerance_costs_what_order_five_costs():
    """With steps in proportion to tolerance^(1/5), a tolerance 10^5 times as small takes ten times as many."""
    orbit = Orbit()
    few, many = (rk45.integrate(orbit, orbit.starts()[:2], (0, 10), tol, 10**5)[1] for tol in (1e-7, 1e-12))
    assert (many / few).min() > 8.5
    assert (many / few).max() < 11.5


# -- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISES)
def test_samples_are_as_near_to_the_solution_as_the_tolerance_says(name):
    problem = Mixture(NOISES[name])
    x_T, errors = problem.draw(16), []
    exact = problem.solution(x_T, problem.noise_schedule.t_min)
    for tolerance in (1e-4, 1e-6, 1e-8):
        error = (solved(problem, x_T, tolerance).x_0 - exact).square().mean().sqrt()
        assert error < 10 * tolerance
        errors.append(error)
    assert errors == sorted(errors, reverse=True)
    gaussian = Gaussian(NOISES[name])
    ours = solved(gaussian, x_T, 1e-9).x_0
    assert (ours - gaussian.solution(x_T, gaussian.noise_schedule.t_min)).abs().max() < 1e-7


@pytest.mark.slow
def test_on_the_digits_they_are_those_of_two_hundred_steps():
    denoiser, labels = models.load({"weights": DIGITS}), torch.tensor([3, 7, 0])
    noise = denoiser.noise_schedule
    x_T = noise.sigma_T * torch.randn(3, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        reference = sample(denoiser, registry.make("unipc_bh2", "logsnr", noise, 200), x_T, labels)
        ours = solved(denoiser, x_T, 1e-5, labels)
    assert (ours.x_0 - reference).square().mean().sqrt() < 1e-4
    assert ours.evaluations.max() < 200


class Conditional(Mixture):
    """Samples of several kinds, one of which is much harder than the others."""

    def __call__(self, x, t, condition=None):
        return super().__call__(x, t) + 0.1 * torch.sin(condition[:, None] * x)


def test_a_sample_does_not_depend_on_its_batch():
    problem = Conditional(VE())
    x_T, kinds = problem.draw(64), torch.arange(64) % 4 * 5.0
    whole = solved(problem, x_T, 1e-4, kinds)
    assert len(whole.evaluations.unique()) > 3
    for size in (1, 7):
        for start in (0, 40):
            rows = slice(start, start + size)
            part = solved(problem, x_T[rows], 1e-4, kinds[rows])
            assert torch.equal(part.evaluations, whole.evaluations[rows])
            torch.testing.assert_close(part.x_0, whole.x_0[rows], rtol=1e-12, atol=1e-12)


def test_the_evaluations_are_counted_and_no_finished_sample_takes_more():
    rows = []

    def counting(x, t, condition):
        rows.append(len(x))
        return problem(x, t, condition)

    problem = Conditional(VE())
    kinds = torch.tensor([0.0, 20.0, 0.0])
    solution = rk45.solve(counting, Adaptive(VE(), 1e-5, MOST), problem.draw(3), kinds)
    assert sum(rows) == solution.evaluations.sum()
    assert rows[0] == 3
    assert rows[-1] == 1
    assert solution.evaluations.max() == len(rows)


def test_the_path_leads_from_the_noise_to_the_sample():
    problem, x_T = Mixture(VE()), Mixture(VE()).draw(5)
    solution = rk45.solve(problem, Adaptive(VE(), 1e-4, MOST), x_T, record=True)
    path, level = solution.path, (1 + torch.tensor([VE().T, VE().t_min]).double() ** 2).sqrt()
    torch.testing.assert_close(path[:, 0] * level[0], x_T)
    torch.testing.assert_close(path[:, -1] * level[1], solution.x_0)
    assert path.shape[1] == 1 + (solution.evaluations.max() - 1) / 6
    assert rk45.solve(problem, Adaptive(VE(), 1e-4, MOST), x_T).path is None


def test_samples_keep_their_dtype_and_may_be_none():
    problem = Mixture(VE())
    assert solved(problem, problem.draw(2).float(), 1e-3).x_0.dtype == torch.float32
    assert solved(problem, torch.zeros(0, 3), 1e-3).x_0.shape == (0, 3)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_sample_that_does_not_converge_is_refused():
    problem = Mixture(VE())
    with pytest.raises(UserError, match="more than 30 evaluations for 4 of 4 samples at tolerance 1e-08"):
        rk45.solve(problem, Adaptive(VE(), 1e-8, 30), problem.draw(4))
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match="more than 500 evaluations"):  # of a network that is not a function
        rk45.solve(lambda x, t, c: torch.randn(x.shape, generator=rng), Adaptive(VE(), 1e-9, 500), noises(2))


@pytest.mark.parametrize(
    ("denoiser", "x_T", "says"),
    [
        (lambda x, t, c: x * torch.nan, noises(2), "output is not finite"),
        (lambda x, t, c: x[:1], noises(2), "the denoiser must return the shape"),
        (lambda x, t, c: x, noises(2) * torch.inf, "noises x_T are not finite"),
        (lambda x, t, c: x, [1.0], "noises as a dense tensor"),
        ("net", noises(2), "denoiser that can be called"),
    ],
)
def test_what_is_no_model_and_no_noise_is_refused(denoiser, x_T, says):
    with pytest.raises(UserError, match=says):
        rk45.solve(denoiser, Adaptive(VE(), 1e-3, MOST), x_T)


@pytest.mark.parametrize(
    "entries", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"tolerance": "1e-5"}, {"tolerance": True}, {"nfe": 0},
                {"tolerance": float("nan")}, {"nfe": 2.5}, {"more": 1}, None, [1]]
)  # fmt: skip
def test_a_file_that_holds_no_such_solver_is_refused(entries, tmp_path):
    path = tmp_path / "teacher-9.json"
    own = {"tolerance": 1e-3, "nfe": 9} | entries if isinstance(entries, dict) else entries
    path.write_text(json.dumps({"rk45": own, "noise": describe(VE())}))
    with pytest.raises(UserError, match="teacher-9.json"):
        adaptive.load(path)


def test_its_file_says_what_it_is_and_is_no_tableau(tmp_path):
    solver, path = Adaptive(VE(), 1e-5, 300), tmp_path / "a.json"
    solver.save(path)
    assert adaptive.load(path) == solver
    with pytest.raises(UserError, match="a.json: this is the adaptive solver rk45, which is no tableau"):
        Tableau.load(path)
    table = registry.make("ddim", "edm", VE(), 3)
    table.save(path)
    assert adaptive.load(path).agrees(table)
    assert not adaptive.load(path).agrees(solver)
    assert not solver.agrees(table)
    with pytest.raises(UserError, match="noise schedule"):
        Adaptive("ve", 1e-5, 300)


# -- as a teacher -----------------------------------------------------------------------------------------------------

RK45_TEACHER = {"solver": "rk45", "tolerance": 1e-3, "nfe": 200}


def test_its_parameters_are_checked():
    assert mistake(changed(("teacher.solver", "rk45"), ("teacher.tolerance", 0.0))).startswith("teacher.tolerance: ")
    for key in ("gits.solver", "starts.free.solver"):
        assert "unknown classical solver 'rk45'" in mistake(changed((key, "rk45")))
    teacher = parameters.parse(changed(("teacher.solver", "rk45"))).teacher
    assert (teacher.nfe, teacher.tolerance) == (20, 1e-5)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in which the stages run, with an adaptive teacher and reference."""
    monkeypatch.chdir(tmp_path)
    for name in ("models", "inputs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    changes = [(f"teacher.{key}", value) for key, value in (RK45_TEACHER | {"train": 5, "validation": 3}).items()]
    changes += [(f"reference.{key}", value) for key, value in (RK45_TEACHER | {"count": 70}).items()]
    changes += [("learned", []), ("refined", []), ("sample.count", 6), ("run.batch_size", 40), ("run.device", "cpu")]
    (tmp_path / "params.yaml").write_text(render.params_yaml(changed(*changes)), encoding="utf-8")
    (tmp_path / "runs/digits/schedules").mkdir(parents=True)
    (tmp_path / "runs/digits/schedules/inputs.json").write_text("{}")
    return tmp_path


def stage(module, *arguments):
    ran = CliRunner().invoke(module.main, list(arguments))
    assert ran.exit_code == 0, ran.output
    return ran.output


@pytest.mark.slow
def test_the_stages_run_with_it(project):
    places = Layout("digits")
    stage(tables_stage)
    written = places.table(Cell("teacher", 200)).stat()
    stage(tables_stage)
    assert places.table(Cell("teacher", 200)).stat().st_mtime_ns == written.st_mtime_ns
    said = stage(teacher_pairs)
    spent = read_tensors(places.pairs("train"))[1]["evaluations"]
    assert 30 < spent["mean"] <= spent["most"] <= 200
    assert f"train: {spent['mean']:g} evaluations per sample, {spent['most']} at most" in said
    pairs = Pairs.load(places.pairs("validation"), torch.device("cpu"))
    denoiser = models.load({"weights": DIGITS})
    ours = solved(denoiser, pairs.x_T, 1e-3, pairs.condition)
    torch.testing.assert_close(ours.x_0, pairs.x_0, rtol=1e-4, atol=1e-4)
    stage(reference)
    stage(sample_stage, "tables", "teacher", "200")
    about = read_json(places.samples(Cell("teacher", 200), "about.json"))
    assert about["schedule"] == "adaptive"
    assert about["nfe"] == about["evaluations"]["most"]
    assert about["network_calls"] == round(about["evaluations"]["mean"])
    states = read_tensors(places.samples(Cell("teacher", 200), "states.safetensors"))[0]["states"]
    assert states.shape[0] == 4
    assert states[:, -1].isfinite().all()


def test_its_work_is_kept_and_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    denoiser = models.load({"weights": DIGITS})
    solver, calls = Adaptive(denoiser.noise_schedule, 1e-2, MOST), []
    monkeypatch.setattr("s4spipe.sampling.batches.solve", lambda *given: calls.append(1) or rk45.solve(*given))

    def made():
        return list(generate(denoiser, solver, Noises("train", 0, 5), 3, Scratch("x")))

    first, again = made(), made()
    assert len(calls) == 2
    assert evaluations(first) == evaluations(again)
    assert torch.equal(first[1]["x_0"], again[1]["x_0"])
    assert evaluations([{"x_0": torch.zeros(2)}]) == {}


def test_the_cost_of_a_run_is_told_as_the_most(project):
    said = CliRunner().invoke(cli, ["estimate"]).output
    assert f"{'teacher pairs':24} {8 * 200:>14,}" in said
    for role in ("teacher", "reference"):
        assert f"(rk45, the {role}, takes what a sample needs" in said
    params, denoiser = parameters.load(), models.load({"weights": DIGITS})
    given = params.model_copy(update={"nfe": [5], "teacher": params.teacher.model_copy(update={"nfe": 5000})})
    assert memory.of_sampling(given, denoiser) == memory.of_sampling(params, denoiser)


def test_it_is_told_in_the_report_and_the_card(tmp_path):
    run = finished.make(tmp_path, teacher=RK45_TEACHER)
    assert run.teachers_name == "rk45 at tolerance 0.001, with 55.5 NFE on average"
    assert "teacher (56 NFE on average)" in tables.to_markdown(run.cells, [5], run.learned)
    assert "\nteacher,77,adaptive" in tables.to_csv(run.cells)
    assert "with 55.5 NFE on average" in page.report(run)
    assert page.comparison({"a": run, "b": run})
    assert "The teacher is rk45 at tolerance" in export.card(run, Cell("s4s", 5), run.tableau(Cell("s4s", 5)), False)
    for name, figure in report.drawings(run):
        assert name
        figures.plt.close(figure)
