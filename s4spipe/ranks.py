"""Several processes at one stage: which of them this is, how they share work out, wait for one another and add up.

`run.launcher` starts them (torchrun, srun). They divide shards of samples, rows of images, pairs of a minibatch. What
each has made lies in the scratch folder, which all must see; what is small goes through gloo. One process alone is the
whole world, and all of this does nothing.
"""

import os
import shlex
import socket
import subprocess
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from s4spipe.errors import UserError

MARK = "S4SPIPE_LAUNCHED_BY"  # in the environment of what a launcher started: the stage's host and process
RENDEZVOUS = Path(".s4spipe/rendezvous")


def launched() -> bool:
    """Whether a launcher started this process: ours, or torchrun by hand. (A batch job has Slurm's variables too.)"""
    return MARK in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    return _told("RANK", "SLURM_PROCID", 0)


def world() -> int:
    """How many processes there are."""
    return _told("WORLD_SIZE", "SLURM_NTASKS", 1)


def local_rank() -> int:
    """Which of the processes of its machine this is: for its GPU."""
    return _told("LOCAL_RANK", "SLURM_LOCALID", 0)


def _told(by_torchrun: str, by_slurm: str, alone: int) -> int:
    return int(os.environ.get(by_torchrun, os.environ.get(by_slurm, alone))) if launched() else alone


def first() -> bool:
    """Whether this is the process that writes what the stage is for, and shows progress."""
    return rank() == 0


def launch(launcher: str, module: str, arguments: list[str]) -> None:
    """Run a stage by a launcher such as `torchrun --nproc-per-node 8 -m`. Raises UserError if a process of it fails."""
    command = [*shlex.split(launcher), module, *arguments]
    try:
        code = subprocess.run(
            command, env=os.environ | {MARK: f"{socket.gethostname()}:{os.getpid()}"}, check=False
        ).returncode
    except OSError as error:
        raise UserError(f"run.launcher: {command[0]!r} cannot be started ({error.strerror})") from None
    if code:
        raise UserError(
            f"{module}: a process that {command[0]} started has failed or was killed (exit status {code}), and the "
            "others ended with it; what they had done is kept: run it again"
        )


def starter_is_gone() -> bool:
    """Whether the stage that launched this process has died, which a launcher need not notice."""
    host, _, pid = os.environ.get(MARK, "").partition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False


def progress(*args, **kwargs) -> tqdm:
    """A bar with rate and remaining time, on a terminal, of the first process alone."""
    return tqdm(*args, disable=None if first() else True, **kwargs)


def join() -> None:
    """Meet the others, at the start of a stage."""
    if world() == 1:
        return
    method = "env://"
    if "MASTER_ADDR" not in os.environ:  # srun: a file that all see, with a name of its own for every step of a job
        RENDEZVOUS.mkdir(parents=True, exist_ok=True)
        name = "-".join(os.environ.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        method = f"file://{(RENDEZVOUS / name).resolve()}"
    dist.init_process_group("gloo", init_method=method, rank=rank(), world_size=world(), timeout=timedelta(days=1))


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Until all are here."""
    if world() > 1:
        dist.barrier()


def share(items):
    """What of a sequence (a list, a range, a tensor) falls to this process."""
    return items[rank() :: world()]


def add_up(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, in each of them."""
    if world() == 1:
        return tensor
    total = tensor.detach().cpu().clone()
    dist.all_reduce(total)
    return total.to(tensor.device)


def gather(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """[count, ...], of which each process has made the `rows` at some `places`, each place one process's; exact."""
    if world() == 1 and torch.equal(places.cpu(), torch.arange(count)):
        return rows
    whole = torch.zeros(count, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    whole[places] = rows
    return add_up(whole)
