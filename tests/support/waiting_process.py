"""One of several processes that wait for one another, for tests in which another never comes or dies."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError


def run(rank, world_size, folder, environment, how):
    """Join the group, and do as `how` says; what this process says and how it ends is in `said-<rank>`."""
    os.chdir(folder)
    os.environ |= {distributed.MARK: "test:1", "RANK": str(rank), "WORLD_SIZE": str(world_size)} | environment
    sys.stderr = open(f"said-{rank}", "w", buffering=1, encoding="utf-8")
    distributed.SILENT, distributed.AGAIN = 0.3, 0.3
    distributed.JOINING = timedelta(seconds=2)
    try:
        distributed.init()
        Path(f"joined-{rank}").touch()
        if how == "idle" or (how == "slow" and rank == 1):
            time.sleep(3 if how == "slow" else 600)
        distributed.all_reduce(torch.ones(2))
        distributed.barrier()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        distributed.destroy()
