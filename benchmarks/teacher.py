"""Which 20-evaluation solver is nearest to the exact solution? Distances to a 200-step reference from the same noises.

Run as `python -m benchmarks.teacher`.
"""

import itertools

import click
import torch

from benchmarks.common import Setting
from s4spipe.pipeline import stage
from s4spipe.pipeline.schema import Params
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry, timesteps


@stage.command
@click.option("--count", default=500, show_default=True, help="Samples.")
@click.option("--nfe", default=20, show_default=True, help="The candidates' evaluations.")
def main(params: Params, count: int, nfe: int) -> None:
    setting = Setting(params)
    denoiser, noise = setting.denoiser, setting.noise
    x_T, labels = setting.draw("validation", count)

    @torch.inference_mode()
    def end(solver: str, schedule: str, n: int) -> torch.Tensor:
        return sample(denoiser, registry.build(solver, noise, timesteps.build(schedule, noise, n)), x_T, labels)

    reference = end("unipc_bh2", "logsnr", 200)
    check = end("dpmpp_2m", "edm", 200)
    click.echo(
        f"{count} samples; the reference against another 200-step solver (dpmpp_2m, edm): {rms(reference, check):.5f}"
    )
    candidates = itertools.product(params.classical, ("edm", "logsnr", "vp_uniform", "vp_quadratic"))
    distances = {(solver, name): rms(end(solver, name, nfe), reference) for solver, name in candidates}
    for (solver, name), distance in sorted(distances.items(), key=lambda item: item[1])[:8]:
        click.echo(f"{solver:10} {name:13} {nfe} NFE: {distance:.5f}")


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


if __name__ == "__main__":
    main()
