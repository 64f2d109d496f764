"""Several processes give what one gives."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import ranks_process
import torch

from s4spipe import params, ranks
from s4spipe.errors import UserError

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["s4spipe.distill.fit", "s4spipe.classical", "s4spipe.fid", "problems"])


def together(work, world, folder):
    """What each of `world` processes got."""
    folder.mkdir()
    started = [FORK.Process(target=ranks_process.run, args=(work, rank, world, folder)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * world
    return [torch.load(folder / f"{work}-{rank}.pt", weights_only=True) for rank in range(world)]


def test_samples_are_the_same_bit_for_bit(tmp_path):
    (alone,), (first, second) = (together("solving", world, tmp_path / str(world)) for world in (1, 2))
    assert len(alone) == 7
    assert second == []  # the first process gets all
    for ours, theirs in zip(first, alone, strict=True):
        assert torch.equal(ours, theirs)


def test_a_fit_is_the_same_to_rounding_even_where_a_minibatch_is_too_small_for_all(tmp_path):
    (alone,), three = (together("fitting", world, tmp_path / str(world)) for world in (1, 3))
    assert sum(row["moves"] for row in alone["history"]) > 0
    assert min(row["validation"] for row in alone["history"]) < 0.9 * alone["history"][0]["validation"]
    for result in three:
        assert result["history"] == three[0]["history"]
        for name, value in alone["parameters"].items():
            assert torch.equal(result["parameters"][name], three[0]["parameters"][name])
            torch.testing.assert_close(result["parameters"][name], value, rtol=1e-8, atol=1e-8)
        for ours, theirs in zip(result["history"], alone["history"], strict=True):
            assert ours["validation"] == pytest.approx(theirs["validation"], rel=1e-8)
            assert (ours["moves"], ours["learns"]) == (theirs["moves"], theirs["learns"])


@pytest.mark.parametrize("work", ["newton", "refining"])
def test_gauss_newton_and_refining_are_the_same_to_rounding(work, tmp_path):
    (alone,), three = (together(work, world, tmp_path / str(world)) for world in (1, 3))
    assert alone["history"][-1]["validation"] < 0.8 * alone["history"][0]["validation"]
    for result in three:
        for name, value in alone["parameters"].items():
            assert torch.equal(result["parameters"][name], three[0]["parameters"][name])
            torch.testing.assert_close(result["parameters"][name], value, rtol=1e-5, atol=1e-5)
        assert [r["evaluations"] for r in result["history"]] == [r["evaluations"] for r in alone["history"]]


def test_features_are_the_same_in_all(tmp_path):
    (alone,), two = (together("seeing", world, tmp_path / str(world)) for world in (1, 2))
    for result in two:
        assert torch.equal(result["array"], alone["array"])
        assert torch.equal(result["small"], alone["small"])


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: None)
    for key, value in {ranks.MARK: "host:1", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(key, value)
    assert params.device("cuda") == torch.device("cuda:1")
    assert params.device("cuda:0") == torch.device("cuda:0")
    monkeypatch.delenv(ranks.MARK)
    assert params.device("cuda") == torch.device("cuda")  # Slurm's variables alone mean nothing


def test_a_batch_jobs_variables_are_not_taken_for_ranks(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert (ranks.rank(), ranks.world()) == (0, 1)
    monkeypatch.setenv(ranks.MARK, "host:1")
    assert (ranks.rank(), ranks.world()) == (2, 4)


def test_a_process_knows_when_the_stage_that_launched_it_has_died(monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = socket.gethostname()
    for mark, died in (
        (f"{here}:{os.getpid()}", False),
        (f"{here}:{gone.pid}", True),
        (f"elsewhere:{gone.pid}", False),
    ):
        monkeypatch.setenv(ranks.MARK, mark)
        assert ranks.starter_is_gone() is died
    monkeypatch.delenv(ranks.MARK)
    assert not ranks.starter_is_gone()


def test_a_launcher_that_is_not_there_is_told_in_a_sentence():
    with pytest.raises(UserError, match=r"run\.launcher: 'torchrum' cannot be started \(No such file or directory\)"):
        ranks.launch("torchrum -m", "stages.sample", ["ddim", "3"])


TORCHRUN = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 -m"


@pytest.mark.slow
def test_a_killed_process_ends_the_stage_with_a_sentence_and_a_second_run_goes_on(project, edited):
    """By torchrun itself."""
    out = project / "samples/ddim-3.npy"
    edited(sample={"count": 800, "seed": 1}, run={"batch_size": 4})
    command = [sys.executable, "-m", "stages.sample", "ddim", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    kept = {path: path.read_bytes() for path in (project / "samples").glob("ddim-3.*")}
    subprocess.run(command, cwd=project, env=environment, check=True)
    whole = out.read_bytes()

    edited(run={"launcher": TORCHRUN})
    out.unlink()
    stage = subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)
    scratch = project / ".s4spipe"
    while len(list(scratch.glob("*/*.pt"))) < 20:
        assert stage.poll() is None
        time.sleep(0.05)
    is_rank = lambda p: "RANK" in p.environ()  # noqa: E731
    some, _ = filter(is_rank, psutil.Process(stage.pid).children(recursive=True))
    some.send_signal(signal.SIGKILL)
    _, said = stage.communicate(timeout=120)
    assert stage.returncode == 1
    assert "Error: stages.sample: a process that" in said.splitlines()[-1]
    assert said.splitlines()[-1].endswith("what they had done is kept: run it again")
    assert not out.exists()
    done = {path: path.stat().st_mtime_ns for path in scratch.glob("*/sample-*.pt")}
    assert 0 < len(done) < 200

    stage = subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)
    while scratch.exists() and stage.poll() is None:
        for path, when in done.items():
            assert not path.exists() or path.stat().st_mtime_ns == when  # not made again
        time.sleep(0.2)
    assert stage.wait() == 0
    assert out.read_bytes() == whole
    assert not any(scratch.iterdir())
    for path, content in kept.items():
        path.write_bytes(content)
