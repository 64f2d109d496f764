"""A stage killed at random moments, time and again: it is run again and ends as if nothing had happened.

S4SPIPE_KILLS sets how often each stage is killed. The moments are others in every run; S4SPIPE_SEED repeats a run.
"""

import os
import random
import secrets
import signal
import socket
import time

import psutil
import pytest
from support import stage_process
from support.every_stage import DIVIDED, STAGES
from support.forks import FORK

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("S4SPIPE_KILLS", "2"))
IN_A_ROW = 10  # kills, until the stage may finish
PATIENCE = 30  # seconds for the rest of a killed stage to notice
KINDS = {1: ("SIGKILL", "SIGTERM", "parent killed"), 2: ("one of two killed", "both killed", "launcher killed")}
# All stages only in a sweep: tests/test_kill.py kills each of them at moments of its choice.
SWEEP, SOME = "S4SPIPE_KILLS" in os.environ, ("teacher_pairs", "learn", "refine")
CASES = [(name, 1) for name in (STAGES if SWEEP else SOME)] + [(name, 2) for name in (DIVIDED if SWEEP else SOME)]


@pytest.fixture(scope="module", autouse=True)
def imported():
    """All that the stages import is imported before the first moment is chosen."""
    process = FORK.Process(target=os.getpid)
    process.start()
    process.join()


@pytest.mark.parametrize(("name", "processes"), CASES, ids=[f"{name} in {n}" for name, n in CASES])
def test_a_stage_killed_at_random_moments_ends_the_same(name, processes, project, edited, record_property):
    command, outs, short = STAGES[name]
    edited(**short)
    outs = [project / out for out in outs]
    before = {out: out.read_bytes() for out in outs if out.exists()}
    seed = int(os.environ.get("S4SPIPE_SEED", secrets.randbits(32)))
    print(f"S4SPIPE_SEED={seed}")  # seen if it fails
    moments = random.Random(f"{seed} {name} {processes}")

    def start():
        for out in outs:
            out.unlink(missing_ok=True)  # as DVC does
        return Started(processes, project, command)

    def finish():
        started = start()
        assert started.ended() == 0, (project / "said").read_text()
        assert [out.read_bytes() for out in outs] == undisturbed
        assert leftovers(project) == []

    first = start()
    assert first.ended() == 0, (project / "said").read_text()
    undisturbed = [out.read_bytes() for out in outs]
    killed = dict.fromkeys(KINDS[processes], 0)
    for number in range(KILLS):
        kind = KINDS[processes][number % 3]
        while killed[kind] <= number // 3:  # again, if it had ended before
            started = start()
            time.sleep(moments.uniform(0, first.seconds))
            killed[kind] += started.kill(kind, moments)
            started.wait_for_all()
            standing = [(out.read_bytes(), whole) for out, whole in zip(outs, undisturbed, strict=True) if out.exists()]
            assert all(found == whole for found, whole in standing)
        if number % IN_A_ROW == IN_A_ROW - 1:
            finish()
    finish()
    record_property("seed", f"S4SPIPE_SEED={seed} for {name} in {processes}")
    for kind, count in killed.items():
        record_property(f"stages killed ({kind})", count)
    for out, content in before.items():
        out.write_bytes(content)


class Started:
    """A stage that runs in a session of its own, below a process that stands for `dvc` or for a launcher."""

    def __init__(self, processes, project, command):
        (project / "said").write_text("")
        self.leader = FORK.Process(target=stage_process.launch, kwargs={"said": "said"},
                                   args=(processes, free_port(), project, *command))  # fmt: skip
        self.began = time.monotonic()
        self.leader.start()

    def ended(self):
        """The exit status of the stage, once it has ended by itself."""
        self.leader.join()
        self.seconds = time.monotonic() - self.began
        self.wait_for_all()
        return self.leader.exitcode

    def kill(self, kind, chosen):
        """Kill as `kind` says; returns whether there was something to kill."""
        ranks = [process for process in self.running() if process.pid != self.leader.pid]
        how = signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL
        if kind in ("parent killed", "launcher killed"):
            victims = [self.leader] if ranks else []
        elif kind == "one of two killed":
            victims = chosen.sample(ranks, min(1, len(ranks)))
        else:
            victims = ranks
        for process in victims:
            os.kill(process.pid, how)
        return bool(victims)

    def wait_for_all(self):
        """Returns when no process of the session is left; fails if they do not end by themselves."""
        until = time.monotonic() + PATIENCE
        while left := self.running():
            assert time.monotonic() < until, f"left: {left}"
            time.sleep(0.01)
        self.leader.join()

    def running(self):
        """The processes of the session."""
        found = []
        for pid in psutil.pids():
            try:
                if os.getsid(pid) == self.leader.pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.append(psutil.Process(pid))
            except (ProcessLookupError, psutil.NoSuchProcess):
                pass
        return found


def leftovers(project):
    """What a finished run must not leave."""
    looked_through = (project / part for part in (".s4spipe", "runs", "models", "data"))
    found = [path for folder in looked_through for path in folder.rglob("*")]
    return [path for path in found if ".tmp" in path.name or ".s4spipe" in path.parts]


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]
