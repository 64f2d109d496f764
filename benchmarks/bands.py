"""What weights by frequency cost beside the network: python -m benchmarks.bands [--device cuda]

The network is CIFAR-10's of EDM (DDPM++, random weights). The solver's own work is timed alone, with a network that
gives back its input, on plain numbers and on 12 bands of the components of three channels.
"""

import statistics

import click
import torch

from benchmarks.common import seconds
from s4spipe.models.edm import unet
from s4spipe.noise import VE
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau.basis import Bands
from s4spipe.solvers import registry

NFE, ROUNDS = 5, 9
NETWORK = {"img_resolution": 32, "channel_mult": [2, 2, 2]}


@click.command()
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--batch", default=8, show_default=True, help="Samples at a time.")
def main(device: str, batch: int) -> None:
    where = torch.device(device)
    card = torch.cuda.get_device_name(where) if where.type == "cuda" else device
    torch.manual_seed(0)
    net = unet.build("SongUNet", NETWORK).to(where).eval()
    plain = registry.make("unipc_bh2", "logsnr", VE(), NFE)
    edges = tuple(tuple(0.5 + (i + k) / 2 for i in range(11)) for k in range(3))
    mixing = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0].tolist()
    banded = plain.over(Bands(edges, 2, tuple(map(tuple, mixing))))
    x_T = 80 * torch.randn(batch, 3, 32, 32, device=where)
    level = torch.zeros(batch, device=where)
    click.echo(f"{card}, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} million parameters, batches of {batch}, "
               f"median of {ROUNDS} rounds")  # fmt: skip
    works = {
        "network": lambda: net(x_T, level, None),
        "plain": lambda: sample(lambda x, t, condition: x.float().to(x), plain, x_T),
        "bands": lambda: sample(lambda x, t, condition: x.float().to(x), banded, x_T),
    }
    with torch.inference_mode():
        times = [{name: seconds(work, where) for name, work in works.items()} for _ in range(ROUNDS + 2)][2:]
    network, *own = (statistics.median(row[name] for row in times) for name in works)
    click.echo(f"one evaluation of the network {1e3 * network:.2f} ms")
    for name, took in zip(("plain numbers", "bands"), own, strict=True):
        click.echo(f"{name}: {1e3 * took / NFE:.3f} ms per evaluation beside it, {took / NFE / network:.2%}")


if __name__ == "__main__":
    main()
