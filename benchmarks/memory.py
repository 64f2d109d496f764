"""Peak memory of a fit against NFE: the backward pass re-computes the network, so it should hardly grow.

Run as `python -m benchmarks.memory` on Linux. Each NFE is a process of its own, measured by the operating system (on a
CUDA device, by torch).
"""

import resource
import subprocess
import sys

import click
import torch

from benchmarks.common import Setting
from s4spipe.learning import adam, distance
from s4spipe.learning.families import LMS
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import Task
from s4spipe.pipeline import stage
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.scratch import Scratch
from s4spipe.solvers import timesteps


@stage.command
@click.option("--batch", default=256, show_default=True, help="Pairs in a minibatch.")
@click.option("--one", type=int, hidden=True)
def main(params: Params, batch: int, one: int | None) -> None:
    if one is None:
        click.echo(f"peak memory of a fit, minibatches of {batch}")
        peaks = {}
        for nfe in (3, 5, 10):
            command = [sys.executable, "-m", "benchmarks.memory", "--batch", str(batch), "--one", str(nfe)]
            total, fit_only = map(float, subprocess.check_output(command, encoding="utf-8").split())
            peaks[nfe] = total, fit_only
            click.echo(f"NFE {nfe:2}: {total:7.0f} MiB in all, {fit_only:6.0f} MiB above the process before the fit")
        click.echo(
            f"NFE 10 over NFE 3: {peaks[10][0] / peaks[3][0]:.2f} in all, {peaks[10][1] / peaks[3][1]:.2f} above"
        )
        return

    setting = Setting(params)
    device, noise = setting.device, setting.noise
    x_T, labels = setting.draw("train", batch)
    pairs = Pairs(x_T, torch.zeros_like(x_T), labels)
    few = Pairs(x_T[:8], torch.zeros_like(x_T[:8]), labels[:8])
    student = LMS("ipndm", noise, timesteps.build("edm", noise, one), 3)
    before = peak(device)
    scratch = Scratch(f"memory-{one}")
    task = Task(student, setting.denoiser, pairs, few, scratch)
    adam.fit(task, adam.s4s(epochs=2), distance.l2, adam.Adam(batch, learning_rate=1e-3, radius=0.02))
    scratch.clear()
    click.echo(f"{peak(device)} {peak(device) - before}")


def peak(device: torch.device) -> float:
    """The most memory that was in use so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
