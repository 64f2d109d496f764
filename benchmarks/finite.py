"""What the checks of a network cost and tell, in each precision: python -m benchmarks.finite [--device cuda]

A random pixel-space U-Net of 274 million parameters (on a CPU: a small one) is loaded as a pipeline's folder. Then its
first weights are multiplied by 300,000, so that it overflows in float16.
"""

import statistics
import tempfile
from collections.abc import Callable

import click
import diffusers
import torch

from benchmarks.common import seconds
from s4spipe import models
from s4spipe.models.base import dry_call
from s4spipe.models.base.denoiser import Denoiser
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry

NFE, ROUNDS = 5, 9


@click.command()
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
def main(device: str) -> None:
    where = torch.device(device)
    gpu = where.type != "cpu"
    card = torch.cuda.get_device_name(where) if where.type == "cuda" else device
    click.echo(f"{card}, torch {torch.__version__}, diffusers {diffusers.__version__}")
    torch.manual_seed(0)
    net, folder = unet(64 if gpu else 16, (224, 448, 672, 896) if gpu else (32, 64)), tempfile.mkdtemp()
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder)
    click.echo(f"{sum(p.numel() for p in net.parameters()) / 1e6:.0f} million parameters")
    for name in ("float32", "bfloat16", "float16") if gpu else ("float32",):
        denoiser = load(folder, name, where)
        table = registry.make("unipc_bh2", "logsnr", denoiser.noise_schedule, NFE)
        x_T = torch.randn(16, *denoiser.sample_shape, device=where)
        call = median(lambda d=denoiser: dry_call.check(d), where)
        with torch.inference_mode():
            on, off = (median(lambda d=denoiser, c=c, t=table, x=x_T: sample(d, t, x, check=c), where)
                       for c in (True, False))  # fmt: skip
        rows = dry_call.apart(denoiser)
        click.echo(f"{name}: rows apart {rows:.1e}, call at loading {call:.3f} s, "
                   f"16 samples of {NFE} NFE {1e3 * on:.1f} ms with the check, {1e3 * off:.1f} ms without")  # fmt: skip
        del denoiser
    with torch.no_grad():
        net.conv_in.weight *= 3e5
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder)
    for name in ("float32", "bfloat16", "float16") if gpu else ("float32",):
        try:
            load(folder, name, where)
            click.echo(f"{name}, overflowing: loaded")
        except UserError as error:
            click.echo(f"{name}, overflowing: {error}")
    if gpu:
        pipe = diffusers.DDPMPipeline.from_pretrained(folder, torch_dtype=torch.float16).to(where)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = S4SScheduler.from_classical("ddim", "logsnr", NFE, pipe.scheduler.config)
        try:
            pipe(batch_size=2, num_inference_steps=NFE)
        except UserError as error:
            click.echo(f"float16, overflowing, in a pipeline: {error}")


def unet(side: int, widths: tuple[int, ...]) -> diffusers.UNet2DModel:
    deeper = len(widths) - 1
    return diffusers.UNet2DModel(
        sample_size=side, block_out_channels=widths, layers_per_block=2, attention_head_dim=32,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * deeper),
        up_block_types=(*["AttnUpBlock2D"] * deeper, "UpBlock2D"),
    )  # fmt: skip


def load(folder: str, name: str, device: torch.device) -> Denoiser:
    return models.load({"kind": "diffusers", "weights": folder, "condition": "none", "precision": name}, device)


def median(work: Callable[[], object], device: torch.device) -> float:
    return statistics.median(seconds(work, device) for _ in range(ROUNDS))


if __name__ == "__main__":
    main()
