import csv
import importlib
import io
import os
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from support import finished
from support.pipeline import ROOT

from s4spipe.evaluation import thumbnails
from s4spipe.noise import VE
from s4spipe.pipeline import params, resolve
from s4spipe.pipeline.layout import Cell
from s4spipe.report import figures, page, tables
from s4spipe.report.run import Run
from s4spipe.runtime.errors import UserError
from s4spipe.solvers import best_schedules, registry, timesteps
from stages import report

NOISE = VE(0.002, 80.0)
LEARNED = ["s4s", "s4s_alt"]


def measured(nfe, fid):
    numbers = {"fid": fid, "fid_real": 2 * fid, "kid": 0.01, "teacher_distance": 0.1, "schedule": "edm"}
    return numbers | {"nfe": nfe, "depth": 4, "network_calls": 2 * nfe, "samples": 100, "thumbnails": 20}


FIDS = {"teacher": {20: 1.0}, "ddim": {4: 9.0, 5: 7.0}, "ipndm": {4: 8.0, 5: 5.0}, "s4s": {4: 4.0, 5: 3.0},
        "s4s_alt": {4: 1.5, 5: 1.2}}  # fmt: skip
METRICS = {Cell(solver, nfe): measured(nfe, fid) for solver, fids in FIDS.items() for nfe, fid in fids.items()}


DRAW = """import sys; from pathlib import Path; import numpy as np; from s4spipe.report import figures
figures.save(figures.coefficients({"a_b": (np.eye(2), np.eye(2))}), Path(sys.argv[1]))"""


def test_figures_start_from_matplotlibs_own_defaults(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://absent.backend_inline")
    figures.matplotlib.rcParams.update({"text.usetex": True, "savefig.facecolor": "red"})
    importlib.reload(figures)
    assert os.environ["MPLBACKEND"] == figures.matplotlib.get_backend().lower() == "agg"
    assert not figures.matplotlib.rcParams["text.usetex"]
    assert figures.matplotlib.rcParams["savefig.facecolor"] == "auto"


@pytest.mark.slow
def test_figures_are_the_same_whatever_a_notebook_or_a_file_says_to_matplotlib(tmp_path):
    figures.save(figures.coefficients({"a_b": (np.eye(2), np.eye(2))}), tmp_path / "here.png")
    (tmp_path / "matplotlibrc").write_text("backend: TkAgg\ntext.usetex: True\nsavefig.facecolor: red\n")
    environment = os.environ | {"MPLBACKEND": "module://absent.backend_inline", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", DRAW, "there.png"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_gap_closed_is_against_the_best_classical_and_the_teacher():
    assert tables.gap_closed(METRICS, Cell("s4s_alt", 5), LEARNED) == pytest.approx((5 - 1.2) / (5 - 1))
    assert tables.gap_closed(METRICS, Cell("s4s", 4), LEARNED) == pytest.approx((8 - 4) / (8 - 1))


def test_csv_has_a_row_per_cell():
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(METRICS))))
    assert len(rows) == 9
    assert rows[1] == {
        "solver": "ddim", "nfe": "4", "schedule": "edm", "network_calls": "8", "depth": "4", "fid": "9.0",
        "fid_real": "18.0", "kid": "0.01", "precision": "", "recall": "", "clip_score": "", "teacher_distance": "0.1",
    }  # fmt: skip


def test_the_table_is_aligned_markdown():
    lines = tables.to_markdown(METRICS, [4, 5], LEARNED).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["FID at NFE", "4", "5"]
    assert "0.950" in lines[-2]


def test_network_calls_are_told_where_they_are_not_the_nfe():
    guided = tables.to_markdown(METRICS, [4, 5], LEARNED).splitlines()[-1]
    assert [cell.strip() for cell in guided.split("|")[1:-1]] == ["network calls", "8", "10"]
    plain = {cell: numbers | {"network_calls": cell.nfe} for cell, numbers in METRICS.items()}
    assert "network calls" not in tables.to_markdown(plain, [4, 5], LEARNED)


def test_json_has_solvers_and_then_their_nfe():
    shown = tables.to_json(METRICS)
    assert list(shown) == list(FIDS)
    assert list(shown["s4s"]) == ["nfe4", "nfe5"]
    assert shown["s4s"]["nfe5"] == {k: v for k, v in METRICS[Cell("s4s", 5)].items() if k != "thumbnails"}


@pytest.mark.parametrize("solvers", [["s4s", "s4s_alt"], ["s4s_alt"]])
def test_losses_below_0_have_no_place_on_a_log_axis(solvers):
    losses = {"s4s": [(1.0, 0.9), (0.5, 0.6)], "s4s_alt": [(2.0, 1.9), (0.4, -0.1)]}  # the other is for a reward
    histories = {name: [{"epoch": e, "train": train, "validation": validation}
                        for e, (train, validation) in enumerate(losses[name])] for name in solvers}  # fmt: skip
    figure = figures.losses(histories, LEARNED)
    drawn = {line.get_label() for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}
    assert drawn == set(solvers) - {"s4s_alt"}
    figure.canvas.draw()


def test_figures_are_drawn_and_byte_stable(tmp_path):
    history = [{"epoch": e, "train": 1 / (e + 1) if e else None, "validation": 1 / (e + 1)} for e in range(4)]
    history.append({"epoch": 4, "train": None, "validation": 0.2})
    b = np.arange(15.0).reshape(5, 3) / 10
    sheet = np.random.default_rng(0).integers(0, 256, (3, 10, 1, 8, 8), dtype=np.uint8)
    table = registry.build("ddim", NOISE, timesteps.build("edm", NOISE, 5))
    drawings = {
        "fid": lambda: figures.fid_against_nfe(METRICS, LEARNED),
        "gaps": lambda: figures.gaps(METRICS, LEARNED),
        "loss": lambda: figures.losses({"s4s": history, "s4s_alt": history}, LEARNED),
        "schedules": lambda: figures.schedules({"teacher": table, "ddim": table, "s4s": table}, LEARNED),
        "trajectories": lambda: figures.trajectories(
            {"teacher": [[[0, 0], [1, 1]]], "s4s": [[[0, 0], [2, 1]]]}, LEARNED
        ),
        "coefficients": lambda: figures.coefficients({"s4s": (b, -b)}),
        "samples": lambda: figures.sample_sheet([(f"row {i}", row) for i, row in enumerate(sheet)], "title"),
    }
    for name, draw in drawings.items():
        for folder in ("a", "b"):
            figures.save(draw(), tmp_path / folder / f"{name}.png")
        once, again = ((tmp_path / folder / f"{name}.png").read_bytes() for folder in ("a", "b"))
        assert once[:4] == b"\x89PNG"
        assert once == again
        inline = figures.svg(draw(), name)
        assert inline == figures.svg(draw(), name)
        ElementTree.fromstring(inline.replace("xlink:", ""))
        assert "currentColor" in inline
        assert "http" not in inline


def test_what_a_terminal_has_room_for():
    shown = tables.of_fid(METRICS, LEARNED)
    assert shown["teacher-20"] == 1.0
    assert shown["s4s-5"] == 3.0
    assert shown["gap s4s-5"] == pytest.approx(0.5)
    assert len(shown) == 9 + 4


def test_a_row_of_images_comes_back_from_its_file(tmp_path):
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        images = rng.integers(0, 256, (30, channels, 6, 4), dtype=np.uint8)
        thumbnails.write(tmp_path / "row.png", images)
        assert np.array_equal(thumbnails.read(tmp_path / "row.png", thumbnails.LENGTH), images[: thumbnails.LENGTH])
    large = np.full((2, 3, 300, 200), 7, np.uint8)
    thumbnails.write(tmp_path / "row.png", large)
    assert thumbnails.read(tmp_path / "row.png", 2).shape == (2, 3, 100, 67)
    (tmp_path / "row.png").write_bytes(b"PNG")
    with pytest.raises(UserError, match=r"row\.png: not a complete PNG"):
        thumbnails.read(tmp_path / "row.png", 2)
    with pytest.raises(UserError, match="no such file"):
        thumbnails.read(tmp_path / "absent.png", 2)


def test_tiles_are_the_images_with_gaps_between():
    rows = np.random.default_rng(0).integers(0, 256, (2, 3, 1, 4, 5), dtype=np.uint8)
    whole = thumbnails.tile(rows, 2, 7)
    assert whole.shape == (2 * 6, 3 * 7, 1)
    for i, j in np.ndindex(2, 3):
        part = whole[6 * i : 6 * i + 6, 7 * j : 7 * j + 7, 0]
        assert np.array_equal(part[:4, :5], rows[i, j, 0])
        assert (part[4:] == 7).all()
        assert (part[:, 5:] == 7).all()


def test_the_stage_writes_what_params_name_and_no_more(tmp_path, monkeypatch):
    run = finished.make(tmp_path, nfe=[4], classical=["ddim", "ipndm"], learned=["s4s"], refined=[])
    monkeypatch.chdir(tmp_path)
    stale = run.places.report / "figures/loss-9.png"
    stale.parent.mkdir(parents=True)
    stale.touch()

    def files():
        result = CliRunner().invoke(report.main, [])
        assert result.exit_code == 0, result.output
        return {path.relative_to(run.places.report).as_posix(): path.read_bytes()
                for path in run.places.report.rglob("*") if path.is_file()}  # fmt: skip

    written = files()
    assert set(written) == {"table.md", "fid.csv", "fid.json", "metrics.json", "report.html"} | {
        f"figures/{name}.png" for name in ("fid", "loss-4", "coefficients-4", "samples-4")
    }
    assert files() == written
    assert written["table.md"].decode() == tables.to_markdown(run.cells, [4], run.learned)
    assert list(run.cells) == resolve.cells(run.params)
    run.places.evaluation(Cell("ddim", 4), "metrics.json").unlink()
    result = CliRunner().invoke(report.main, [])
    assert result.exit_code == 1
    assert "ddim-4" in result.output


def test_a_run_without_learned_solvers_has_a_page_too(tmp_path):
    run = finished.make(tmp_path, learned=[], refined=[], teacher={"schedule": [80.0, 8.0, 1.0, 0.002], "nfe": 3})
    shown = page.report(run)
    assert "Coefficients" not in shown
    assert "ddim" in shown
    assert page.report(Run.at(tmp_path)) == shown


def test_best_takes_the_lowest_of_the_four_usual_schedules_at_the_nearest_nfe(tmp_path):
    path = tmp_path / "schedules.csv"
    path.write_text("solver,schedule,nfe,fid\nddim,edm,5,3\nddim,logsnr,5,2\nddim,vp_quadratic,5,1\nddim,edm,10,0\n")
    fids = best_schedules.read(path)
    assert [best_schedules.schedule("ddim", nfe, fids) for nfe in (3, 5, 7, 8, 50)] == [
        "logsnr",
        "logsnr",
        "logsnr",
        "edm",
        "edm",
    ]
    with pytest.raises(UserError, match="has no row for ipndm"):
        best_schedules.schedule("ipndm", 5, fids)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a table"):
        best_schedules.read(path)
    with pytest.raises(UserError, match="no such file"):
        best_schedules.read(tmp_path / "absent.csv")


def test_the_committed_table_covers_the_solvers_of_params():
    fids = best_schedules.read()
    for solver in params.load().classical:
        for nfe in (3, 4, 5, 6, 8, 10):
            assert {name for s, name, n in fids if (s, n) == (solver, nfe)} >= set(best_schedules.USUAL)
