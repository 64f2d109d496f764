"""What sampling costs beside the network: seconds per sample at NFE N over N bare network calls on the same batch.

Run as `python -m benchmarks.sampling`. The two take turns, so that a change of the machine's speed hits both.
"""

import statistics

import click
import torch

from benchmarks.common import Setting, seconds
from s4spipe.pipeline import stage
from s4spipe.pipeline.schema import Params
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry, timesteps


@stage.command
@click.option("--batch", default=500, show_default=True, help="Samples at a time.")
@click.option("--rounds", default=15, show_default=True, help="How often both are timed.")
def main(params: Params, batch: int, rounds: int) -> None:
    setting = Setting(params)
    device, denoiser, noise = setting.device, setting.denoiser, setting.noise
    x_T, labels = setting.draw("sample", batch)

    click.echo(f"{device}, batches of {batch}, median of {rounds} rounds")
    with torch.inference_mode():
        sigma = torch.ones(batch, device=device)
        for nfe in (3, 5, 10):
            tableau = registry.build("unipc_bh2", noise, timesteps.build("edm", noise, nfe))

            def bare(nfe: int = nfe) -> None:
                for _ in range(nfe):
                    denoiser.net(x_T, sigma, labels)

            pairs = [
                (seconds(lambda t=tableau: sample(denoiser, t, x_T, labels), device), seconds(bare, device))
                for _ in range(rounds + 2)
            ]
            ratio = statistics.median(ours / net for ours, net in pairs[2:])
            ours = statistics.median(ours for ours, _ in pairs[2:])
            click.echo(f"NFE {nfe:2}: {1e3 * ours / batch:.3f} ms per sample, {ratio:.3f} of {nfe} bare network calls")


if __name__ == "__main__":
    main()
