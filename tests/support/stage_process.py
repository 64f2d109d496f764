"""Runs a stage inside a forked process that can kill itself. It imports nothing slow: every fork starts from here."""

import importlib
import os
import signal
import socket
import sys
from pathlib import Path

COUNT = ".renames"  # where a finished stage leaves how many files it put in place


def run(project, module, *arguments, die_before=None, said=os.devnull):
    """Run `stages.<module>` in the folder `project`; die of SIGKILL just before rename number `die_before` (from 1).
    What it says to the user goes to the end of the file `said`."""
    os.chdir(project)
    sys.stderr = open(said, "a", encoding="utf-8")
    renames, replace = 0, os.replace

    def counted(source, target):
        nonlocal renames
        renames += 1
        if renames == die_before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = counted
    importlib.import_module(f"stages.{module}").main(list(arguments), standalone_mode=False)
    Path(COUNT).write_text(str(renames), encoding="utf-8")


def launch(world_size, port, project, *command, said=os.devnull):
    """Run a stage in `world_size` processes, in a session of their own. This one does what `dvc` or torchrun does: if
    one ends badly it ends the others, and then itself with an error. The processes meet at `port` of this machine."""
    os.setsid()
    os.environ |= {"DVC_STAGE": command[0], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = {_fork(rank, world_size, project, *command, said=said) for rank in range(world_size)}
    failed = False
    while started:
        pid, status = os.wait()
        started.discard(pid)
        failed |= status != 0
        for other in started if failed else ():
            os.kill(other, signal.SIGKILL)
    os._exit(failed)


def _fork(rank, world_size, project, *command, said):
    launcher = f"{socket.gethostname()}:{os.getpid()}"
    if pid := os.fork():
        return pid
    code = 1
    try:
        if world_size > 1:
            os.environ |= {"S4SPIPE_LAUNCHED_BY": launcher, "RANK": str(rank), "WORLD_SIZE": str(world_size)}
        run(project, *command, said=said)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # what a user would see as a traceback
        print(f"Traceback: {error!r}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)
