"""Several processes in one stage: rank, world size, sharding and collectives.

`run.launcher` starts them (torchrun, srun). They divide shards of samples, batches of images and the pairs of a
minibatch. Each process keeps its results in the scratch folder, which all must be able to see; small tensors are
exchanged by gloo. With a single process, the world size is 1 and every function here does nothing.
"""

import os
import shlex
import socket
import subprocess
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from s4spipe.runtime.errors import UserError, needs
from s4spipe.runtime.scratch import SCRATCH

MARK = "S4SPIPE_LAUNCHED_BY"  # environment variable of launched processes: the host and process id of the stage
RENDEZVOUS = SCRATCH / "rendezvous"


def launched() -> bool:
    """Whether this process was started by `launch`, or by torchrun directly. (Slurm's variables are set in any job.)"""
    return MARK in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    return _told("RANK", "SLURM_PROCID", 0)


def world_size() -> int:
    """The number of processes."""
    return _told("WORLD_SIZE", "SLURM_NTASKS", 1)


def local_rank() -> int:
    """The rank among the processes on this machine, which determines the GPU."""
    return _told("LOCAL_RANK", "SLURM_LOCALID", 0)


def _told(by_torchrun: str, by_slurm: str, alone: int) -> int:
    return int(os.environ.get(by_torchrun, os.environ.get(by_slurm, alone))) if launched() else alone


def is_main() -> bool:
    """Whether this is rank 0, which writes the stage's outputs and shows progress."""
    return rank() == 0


def launch(launcher: str, module: str, arguments: list[str]) -> None:
    """Run a stage with a launcher such as `torchrun --nproc-per-node 8 -m`. Raises UserError if a process fails."""
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
            "others ended with it; their progress is saved: run it again"
        )


def starter_is_gone() -> bool:
    """Whether the stage that launched this process has died; a launcher may not notice."""
    host, _, pid = os.environ.get(MARK, "").partition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False


def progress(*args, **kwargs) -> Any:
    """A tqdm progress bar, shown on a terminal and by the main process only."""
    with needs("pipeline", "showing progress"):
        from tqdm import tqdm
    return tqdm(*args, disable=None if is_main() else True, **kwargs)


def init() -> None:
    """Join the process group. To be called at the start of a stage."""
    if world_size() == 1:
        return
    method = "env://"
    if "MASTER_ADDR" not in os.environ:  # srun: a shared file, with a different name for every job step
        RENDEZVOUS.mkdir(parents=True, exist_ok=True)
        name = "-".join(os.environ.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        method = f"file://{(RENDEZVOUS / name).resolve()}"
    dist.init_process_group("gloo", init_method=method, rank=rank(), world_size=world_size(), timeout=timedelta(days=1))


def destroy() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process has reached this point."""
    if world_size() > 1:
        dist.barrier()


def shard(items: Any) -> Any:
    """This process's shard of a sequence (a list, a range, a tensor)."""
    return items[rank() :: world_size()]


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, on each of them."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().cpu().clone()
    dist.all_reduce(total)
    return total.to(tensor.device)


def gather(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """[count, ...] on every process, assembled from the `rows` that each has for its own `places`; exact."""
    if world_size() == 1 and torch.equal(places.cpu(), torch.arange(count)):
        return rows
    whole = torch.zeros(count, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    whole[places] = rows
    return all_reduce(whole)
