"""Several processes give what one gives."""

import os
import shutil
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from support import ranks_process, waiting_process
from support.forks import FORK
from support.parameters import changed, mistake
from support.pipeline import ROOT

from s4spipe.pipeline import stage
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError


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


def test_so_are_those_of_an_adaptive_solver_and_what_they_took(tmp_path):
    (alone,), (first, second) = (together("adapting", world, tmp_path / str(world)) for world in (1, 2))
    assert [len(shard["evaluations"]) for shard in alone] == [4, 4, 3]
    assert second == []
    for ours, theirs in zip(first, alone, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


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


def test_a_search_is_the_same_and_its_candidates_are_divided(tmp_path):
    (alone,), three = (together("searching", world, tmp_path / str(world)) for world in (1, 3))
    for result in three:
        assert (result["best"], result["history"]) == (alone["best"], alone["history"])
        assert result["calls"] < 0.4 * alone["calls"]


def test_so_is_an_evolution_strategy(tmp_path):
    (alone,), three = (together("rewarding", world, tmp_path / str(world)) for world in (1, 3))
    assert alone["history"][-1]["validation"] < alone["history"][0]["validation"]
    for result in three:
        assert result["history"] == alone["history"]
        assert all(torch.equal(result["parameters"][name], value) for name, value in alone["parameters"].items())


def test_features_are_the_same_in_all(tmp_path):
    (alone,), two, three = (together("seeing", world, tmp_path / str(world)) for world in (1, 2, 3))
    for result in (*two, *three):
        assert torch.equal(result["array"], alone["array"])
        assert torch.equal(result["small"], alone["small"])
        assert all(map(torch.equal, result["statistics"], alone["statistics"]))


def test_collectives(tmp_path):
    for world_size in (1, 3):
        for rank, got in enumerate(together("gathering", world_size, tmp_path / str(world_size))):
            own = list(range(rank, 7, world_size))
            assert (got["own"].tolist(), got["range"]) == (own, own)
            assert got["list"] == ["abcdefg"[i] for i in own]
            assert got["sum"].tolist() == [world_size, sum(range(world_size))]
            assert torch.equal(got["gathered"], torch.arange(7)[:, None] * torch.tensor([1.0, 10.0]).double())
            assert (got["is_main"], got["world_size"]) == (rank == 0, world_size)


def test_each_process_has_its_own_gpu(monkeypatch):
    def device(name):
        return str(stage.device(SimpleNamespace(run=SimpleNamespace(device=name))))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: None)
    for key, value in {distributed.MARK: "host:1", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(key, value)
    assert [device(name) for name in ("cuda", "auto", "cuda:0")] == ["cuda:1", "cuda:1", "cuda:0"]
    monkeypatch.delenv(distributed.MARK)
    assert device("cuda") == "cuda"  # Slurm's variables alone mean nothing


def test_a_batch_jobs_variables_are_not_taken_for_ranks(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    monkeypatch.setenv(distributed.MARK, "host:1")
    assert (distributed.rank(), distributed.world_size()) == (2, 4)


def test_a_process_knows_when_the_stage_that_launched_it_has_died(monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = socket.gethostname()
    for mark, died in (
        (f"{here}:{os.getpid()}", False),
        (f"{here}:{gone.pid}", True),
        (f"elsewhere:{gone.pid}", False),
    ):
        monkeypatch.setenv(distributed.MARK, mark)
        assert distributed.starter_is_gone() is died
    monkeypatch.delenv(distributed.MARK)
    assert not distributed.starter_is_gone()


def test_on_windows_no_process_is_asked_for_with_a_signal(monkeypatch):
    """There, os.kill ends the process whatever the signal."""
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a process was killed"))
    monkeypatch.setenv(distributed.MARK, f"{socket.gethostname()}:{os.getpid()}")
    monkeypatch.setattr(os, "name", "nt")
    assert not distributed.starter_is_gone()


def test_another_users_process_is_there(monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    for pid in (1, 10**30, "", "x"):
        monkeypatch.setenv(distributed.MARK, f"{socket.gethostname()}:{pid}")
        assert not distributed.starter_is_gone()


@pytest.mark.parametrize(
    ("variables", "named"),
    [({"WORLD_SIZE": "abc"}, "WORLD_SIZE"), ({"WORLD_SIZE": "0"}, "WORLD_SIZE"), ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"),
     ({"WORLD_SIZE": ""}, "WORLD_SIZE"), ({"WORLD_SIZE": "2", "RANK": "1.5"}, "RANK"),
     ({"SLURM_NTASKS": "2(x3)"}, "SLURM_NTASKS"), ({"SLURM_NTASKS": "2", "SLURM_PROCID": "x"}, "SLURM_PROCID"),
     ({"WORLD_SIZE": "2", "RANK": "2"}, "rank 2 in a group of 2"), ({"RANK": "3"}, "rank 3 in a group of 1"),
     ({"RANK": None, "OMPI_COMM_WORLD_RANK": "1"}, "neither RANK nor SLURM_PROCID"),
     *(({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, f"MASTER_PORT must be a free port of "
        f"MASTER_ADDR, from 1 to 65535, got {port or ''!r}") for port in (None, "", "abc", "99999", "0", "-1", "٣")),
     ({"WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "29500"}, "MASTER_ADDR is empty")],
)  # fmt: skip
def test_a_launchers_numbers_that_make_no_sense_are_told(variables, named, monkeypatch, tmp_path):
    by_torchrun = {"RANK": None if "SLURM_PROCID" in variables else "0", "WORLD_SIZE": None}
    for key, value in ({"SLURM_PROCID": None, "SLURM_NTASKS": None} | by_torchrun | variables).items():
        monkeypatch.delenv(key, raising=False)
        if value is not None:
            monkeypatch.setenv(key, value)
    monkeypatch.setenv(distributed.MARK, "host:1")
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    ran = CliRunner().invoke(stage.divided(lambda params: None), [])
    assert ran.exit_code == 1
    assert named in ran.output
    assert len(ran.output.splitlines()) == 1


LAUNCHERS = ["torchrun 'x", 'torchrun "', "torchrun \\", "", "  ", "'' -m", "a\nb", "a\0b"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_is_no_command_is_told(launcher):
    assert mistake(changed(("run.launcher", launcher))).startswith("run.launcher: ")
    with pytest.raises(UserError):
        distributed.words(launcher)


def test_a_launcher_is_one_string():
    for launcher in ([], ["torchrun"], 5, {}):
        assert "run.launcher: must be a string" in mistake(changed(("run.launcher", launcher)))


class Waiting:
    """Processes that join a group of two in `folder` and wait for one another."""

    def __init__(self, folder):
        self.folder, self.processes = folder, {}

    def start(self, *ranks, how="", environment=None):
        for rank in ranks:
            arguments = (rank, 2, self.folder, environment or {}, how)
            self.processes[rank] = FORK.Process(target=waiting_process.run, args=arguments, daemon=True)
            self.processes[rank].start()

    def until_joined(self):
        while not all((self.folder / f"joined-{rank}").exists() for rank in self.processes):
            assert all(process.is_alive() for process in self.processes.values())
            time.sleep(0.05)

    def kill(self, rank):
        self.processes[rank].kill()
        self.processes[rank].join(60)

    def end(self, rank):
        """How the process ended, and what it said, by lines."""
        self.processes[rank].join(60)
        return self.processes[rank].exitcode, (self.folder / f"said-{rank}").read_text().splitlines()

    def met_at(self):
        return {path.name for path in (self.folder / ".s4spipe/rendezvous").iterdir()}


@pytest.fixture
def waiting(tmp_path):
    started = Waiting(tmp_path)
    yield started
    for rank in started.processes:
        started.kill(rank)


def test_a_process_that_never_comes_is_not_awaited_for_long_nor_in_silence(waiting):
    waiting.start(0)
    code, (*told, last) = waiting.end(0)
    assert code == 1
    assert len(told) >= 3
    assert all(line.startswith("process 0 of 2 on ") and "waiting for the others to join" in line for line in told)
    assert last.startswith("Error: process 0 of 2 on ")
    assert "(no sign of process 1)" in last
    assert len(last) < 410
    assert waiting.met_at() == set()


@pytest.mark.parametrize("killed", [0, 1])
def test_the_death_of_a_process_ends_the_others(killed, waiting):
    waiting.start(killed, how="idle")
    waiting.start(1 - killed)
    waiting.until_joined()
    time.sleep(1)
    killed_at = time.monotonic()
    waiting.kill(killed)
    code, (*told, last) = waiting.end(1 - killed)
    assert time.monotonic() - killed_at < 10
    assert code == 1
    assert all("waiting for the others to hand in their results" in line for line in told)
    assert last.startswith(f"Error: process {1 - killed} of 2 on ")
    assert "finished work is saved: run it again" in last


def test_one_that_takes_longer_than_joining_may_is_awaited_and_this_is_told(waiting):
    waiting.start(0, 1, how="slow")
    code, told = waiting.end(0)
    assert code == 0
    assert len(told) >= 3
    assert all("waiting for the others to hand in their results, since " in line for line in told)
    assert waiting.end(1) == (0, [])
    assert waiting.met_at() == set()


def test_a_requeued_job_does_not_meet_what_its_first_try_has_left(waiting):
    slurm = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "3"}
    waiting.start(0, 1, how="idle", environment=slurm)
    waiting.until_joined()
    for rank in (0, 1):
        waiting.kill(rank)
    (left,) = waiting.met_at()
    assert left.startswith("77-3-0-")
    waiting.start(0, 1, environment=slurm | {"SLURM_RESTART_COUNT": "1"})
    for rank in (0, 1):
        code, told = waiting.end(rank)
        assert code == 0
        # On a busy machine, one may say that it waits for the other, and nothing else.
        assert all(": waiting for the others to " in line for line in told)
    assert waiting.met_at() == {left}


@pytest.mark.parametrize("fault", ["port", "interface"])
def test_an_address_that_cannot_be_used_is_told_by_its_variable(fault, waiting):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ranks, environment, says = {
            "port": ([0], {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                     f": another program uses the port {port}, so set another MASTER_PORT; "),
            "interface": ([0, 1], {"GLOO_SOCKET_IFNAME": "absent0"}, ": the environment variable GLOO_SOCKET_IFNAME "
                          "must name a network interface of this machine, got 'absent0'; "),
        }[fault]  # fmt: skip
        waiting.start(*ranks, environment=environment)
        for rank in ranks:
            code, (*_, last) = waiting.end(rank)
            assert code == 1
            assert says in last
            assert len(last) < 410


def test_a_launcher_that_is_not_there_is_told():
    with pytest.raises(UserError, match=r"run\.launcher: 'torchrum'"):
        distributed.launch("torchrum -m", "stages.sample", ["tables", "ddim", "3"])
