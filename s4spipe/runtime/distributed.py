"""Several processes in one stage: rank, world size, sharding and collectives.

`run.launcher` starts them (torchrun, srun). They divide shards of samples, batches of images and the pairs of a
minibatch. Each process keeps its results in the scratch folder, which all must be able to see; small tensors are
exchanged by gloo. With a single process, the world size is 1 and every function here does nothing.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from s4spipe.runtime.errors import UserError, needs, shown
from s4spipe.runtime.scratch import SCRATCH

MARK = "S4SPIPE_LAUNCHED_BY"  # environment variable of launched processes: the host and process id of the stage
RENDEZVOUS = SCRATCH / "rendezvous"
JOINING = timedelta(minutes=10)  # the processes start at once; what is loaded before they meet takes a minute at most
WORKING = timedelta(days=7)  # one may work so long while the others wait; that one has died, they notice at once
SILENT, AGAIN = 60.0, 600.0  # seconds until a process says that it waits, and until it says so again


def launched() -> bool:
    """Whether this process was started by `launch`, or by torchrun directly. (Slurm's variables are set in any job.)"""
    return MARK in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """This process's number among all. Raises UserError if a launcher has started it without one."""
    if MARK in os.environ and not {"RANK", "SLURM_PROCID"} & os.environ.keys():
        raise UserError(
            "run.launcher: it gives the processes that it starts neither RANK nor SLURM_PROCID, so that each would do "
            "all of the work; use torchrun or srun, which do"
        )
    return _told("RANK", "SLURM_PROCID", 0)


def world_size() -> int:
    """The number of processes."""
    return _told("WORLD_SIZE", "SLURM_NTASKS", 1, least=1)


def local_rank() -> int:
    """The rank among the processes on this machine, which determines the GPU."""
    return _told("LOCAL_RANK", "SLURM_LOCALID", 0)


def _told(by_torchrun: str, by_slurm: str, alone: int, least: int = 0) -> int:
    key = by_torchrun if by_torchrun in os.environ else by_slurm
    if not launched() or key not in os.environ:
        return alone
    text = os.environ[key]
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise UserError(
            f"the environment variable {key} must be a whole number of at least {least}, got {shown(text)}; the "
            "launcher sets it, as torchrun and srun do"
        )
    return int(text)


def is_main() -> bool:
    """Whether this is rank 0, which writes the stage's outputs and shows progress."""
    return rank() == 0


def words(launcher: str) -> list[str]:
    """A launcher's program and its arguments. Raises UserError if it names none, or has a quote that does not end."""
    try:
        command = shlex.split(launcher)
    except ValueError as error:
        raise UserError(f"has a quote or an escape that does not end ({error}), got {shown(launcher)}") from None
    if not command or not command[0] or not launcher.isprintable():
        raise UserError(f"must be a command on one line, such as torchrun --nproc-per-node 8 -m, got {shown(launcher)}")
    return command


def launch(launcher: str, module: str, arguments: list[str]) -> None:
    """Run a stage with a launcher such as `torchrun --nproc-per-node 8 -m`. Raises UserError if a process fails."""
    program, *options = words(launcher)
    command = [program, *options, module, *arguments]
    try:
        code = subprocess.run(
            command, env=os.environ | {MARK: f"{socket.gethostname()}:{os.getpid()}"}, check=False
        ).returncode
    except OSError as error:
        raise UserError(f"run.launcher: {shown(program)} cannot be started ({error.strerror})") from None
    if code:
        raise UserError(
            f"{module}: a process that {program} started has failed or was killed (exit status {code}), and the "
            "others ended with it; their progress is saved: run it again"
        )


def starter_is_gone() -> bool:
    """Whether the stage that launched this process has died; a launcher may not notice. False if that is unknown."""
    host, _, pid = os.environ.get(MARK, "").partition(":")
    if host != socket.gethostname() or not pid.isdigit() or os.name != "posix":  # on Windows, os.kill would end it
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def progress(*args, **kwargs) -> Any:
    """A tqdm progress bar, shown on a terminal and by the main process only."""
    with needs("pipeline", "showing progress"):
        from tqdm import tqdm
    return tqdm(*args, disable=None if is_main() and sys.stderr else True, **kwargs)


def init() -> None:
    """Join the process group. To be called at the start of a stage.

    Raises UserError if the launcher's variables make no sense, or the others do not come within `JOINING`.
    """
    me, count = rank(), world_size()
    if me >= count:
        raise UserError(
            f"the launcher started a process of rank {me} in a group of {count}: ranks are 0 to {count - 1}"
        )
    if count == 1:
        return
    method = _address() if "MASTER_ADDR" in os.environ else f"file://{_rendezvous(make=True)}"
    with _waiting("the others to join"):
        store, _, _ = next(dist.rendezvous(method, me, count, timeout=JOINING))
        store.set(f"joined/{me}", "")
        try:
            store.wait([f"joined/{other}" for other in range(count)], JOINING)
        except RuntimeError:  # DistStoreError, or what a FileStore raises
            absent = [other for other in range(count) if not store.check([f"joined/{other}"])]
            raise RuntimeError(f"no sign of process {', '.join(map(str, absent))}") from None
        # Only now, as the timeout is also how long one may work while the others wait.
        dist.init_process_group("gloo", store=store, rank=me, world_size=count, timeout=WORKING)


def _address() -> str:
    """torch's name for the address that the launcher gives in the environment. Raises UserError if it is none."""
    host, port = os.environ["MASTER_ADDR"], os.environ.get("MASTER_PORT", "")
    if not host:
        raise UserError("the environment variable MASTER_ADDR is empty; it must name the machine of rank 0")
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(
            "the environment variable MASTER_PORT must be a free port of MASTER_ADDR, from 1 to 65535, got "
            f"{shown(port)}; torchrun sets both"
        )
    return "env://"


def _rendezvous(make: bool = False) -> Path:
    """The file through which the processes of srun meet. Each job, step, requeued job and launch has its own name:
    what a killed one has left is never met."""
    if make:
        RENDEZVOUS.mkdir(parents=True, exist_ok=True)
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", MARK)
    return (RENDEZVOUS / "-".join(re.sub("[^A-Za-z0-9.]", "_", os.environ.get(name, "0")) for name in names)).resolve()


def destroy() -> None:
    """Leave the process group, whether or not the stage has succeeded."""
    if dist.is_initialized():
        dist.destroy_process_group()  # the last to leave removes the file of `_rendezvous`
    elif is_main() and "MASTER_ADDR" not in os.environ:
        _rendezvous().unlink(missing_ok=True)


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    """While the block waits for other processes, says so on stderr: after `SILENT` seconds, then every `AGAIN`.

    Raises UserError, in place of what torch raises, if another process has died or does not come.
    """
    who, since, over = f"process {rank()} of {world_size()} on {socket.gethostname()}", time.time(), threading.Event()

    def tell() -> None:
        pause = SILENT
        while not over.wait(pause):
            clock = time.strftime("%H:%M:%S", time.localtime(since))
            print(f"{who}: waiting for {what}, since {clock}", file=sys.stderr, flush=True)
            pause = AGAIN

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    except RuntimeError as error:  # all of torch's errors of this kind
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{who} waited {time.time() - since:.0f} s for {what} ({reason[:120]}): {_advice(reason)}; finished work "
            "is saved: run it again"
        ) from None
    finally:
        over.set()


def _advice(reason: str) -> str:
    """What to do when torch gives this reason for not reaching the others."""
    if "EADDRINUSE" in reason:
        return f"another program uses the port {os.environ.get('MASTER_PORT')}, so set another MASTER_PORT"
    if "Unable to find address for" in reason and "GLOO_SOCKET_IFNAME" in os.environ:
        name = shown(os.environ["GLOO_SOCKET_IFNAME"])
        return f"the environment variable GLOO_SOCKET_IFNAME must name a network interface of this machine, got {name}"
    return "see above what became of them, and whether all run and see the same folder and network"


def barrier() -> None:
    """Wait until every process has reached this point."""
    if world_size() > 1:
        with _waiting("the others to finish their share"):
            dist.barrier()


def shard(items: Any) -> Any:
    """This process's shard of a sequence (a list, a range, a tensor)."""
    return items[rank() :: world_size()]


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, on each of them."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().cpu().clone()
    with _waiting("the others to hand in their results"):
        dist.all_reduce(total)
    return total.to(tensor.device)


def gather(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """[count, ...] on every process, assembled from the `rows` that each has for its own `places`; exact."""
    if world_size() == 1 and torch.equal(places.cpu(), torch.arange(count)):
        return rows
    whole = torch.zeros(count, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    whole[places] = rows
    return all_reduce(whole)
