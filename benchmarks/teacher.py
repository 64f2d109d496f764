"""Which 20-evaluation solver is nearest to the exact solution? Distances to a 200-step reference from the same noises.

Run as `python -m benchmarks.teacher`.
"""

import itertools

import click
import torch

from s4spipe import classical, models, params, steps
from s4spipe.pairs import draw
from s4spipe.sampling import sample


@click.command()
@click.option("--count", default=500, show_default=True, help="Samples.")
@click.option("--nfe", default=20, show_default=True, help="The candidates' evaluations.")
def main(count: int, nfe: int) -> None:
    settings = params.load()
    on = params.device(settings.run.device)
    denoiser = models.load(settings.model.model_dump(), on)
    noise = denoiser.noise_schedule
    x_T, labels = (tensor.to(on) for tensor in draw(denoiser, "validation", 0, range(count)))

    @torch.inference_mode()
    def end(solver: str, schedule: str, n: int) -> torch.Tensor:
        return sample(denoiser, classical.build(solver, noise, steps.build(schedule, noise, n)), x_T, labels)

    reference = end("unipc_bh2", "logsnr", 200)
    check = end("dpmpp_2m", "edm", 200)
    click.echo(
        f"{count} samples; the reference against another 200-step solver (dpmpp_2m, edm): {rms(reference, check):.5f}"
    )
    candidates = itertools.product(settings.classical, ("edm", "logsnr", "vp_uniform", "vp_quadratic"))
    distances = {(solver, name): rms(end(solver, name, nfe), reference) for solver, name in candidates}
    for (solver, name), distance in sorted(distances.items(), key=lambda item: item[1])[:8]:
        click.echo(f"{solver:10} {name:13} {nfe} NFE: {distance:.5f}")


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


if __name__ == "__main__":
    main()
