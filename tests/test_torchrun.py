"""A stage under torchrun itself, killed and started again."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

# What is killed, one after the other; all of them in a sweep only, as each takes half a minute.
VICTIMS = ("torchrun", "one of its processes", "the stage")[: 3 if "S4SPIPE_KILLS" in os.environ else 1]
TORCHRUN = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 -m"


@pytest.mark.slow
def test_killed_under_torchrun_a_stage_ends_with_a_sentence_and_the_next_run_goes_on(project, edited):
    run = project / "runs/digits"
    out = run / "samples/ddim-3/images.npy"
    edited(sample={"count": 600, "seed": 1}, run={"batch_size": 3})
    command = [sys.executable, "-m", "stages.sample", "tables", "ddim", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    kept = {path: path.read_bytes() for path in [*out.parent.iterdir(), *run.glob("timings/ddim-3.json")]}
    subprocess.run(command, cwd=project, env=environment, check=True)
    whole = out.read_bytes()

    edited(run={"launcher": TORCHRUN})
    out.unlink()
    scratch = project / ".s4spipe"
    done = {}

    def start():
        return subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)

    def nothing_is_made_again():
        for path, when in done.items():
            assert not path.exists() or path.stat().st_mtime_ns == when

    def batches():
        return list(scratch.glob("*/sample-*.pt"))

    for victim in VICTIMS:
        stage = start()
        while len(batches()) < len(done) + 20:
            assert stage.poll() is None
            nothing_is_made_again()
            time.sleep(0.05)
        torchrun, *ranks = psutil.Process(stage.pid).children(recursive=True)
        assert ["RANK" in process.environ() for process in (torchrun, *ranks)] == [False, True, True]
        {"one of its processes": ranks[0], "torchrun": torchrun, "the stage": stage}[victim].send_signal(signal.SIGKILL)
        stage.wait(120)  # before its stderr ends, which the others have too: they see that it is gone once it is reaped
        said = stage.stderr.read()
        if victim != "the stage":
            assert stage.returncode == 1
            assert said.splitlines()[-1].startswith("Error: stages.sample: ")
        assert psutil.wait_procs([torchrun, *ranks], timeout=60)[1] == []
        assert not out.exists()
        done = {path: path.stat().st_mtime_ns for path in batches()}
        assert 0 < len(done) < 200

    stage = start()
    while scratch.exists() and stage.poll() is None:
        nothing_is_made_again()
        time.sleep(0.2)
    assert stage.wait() == 0
    assert out.read_bytes() == whole
    assert not any(scratch.iterdir())
    for path, content in kept.items():
        path.write_bytes(content)
