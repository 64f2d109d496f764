"""Features of real images, for FID, KID, precision and recall against them."""

import click

from s4spipe import features, fid, stage
from s4spipe.files import write_tensors
from s4spipe.params import Params, device

PATH = "statistics/real.safetensors"


@stage.command
@click.argument("images")
def main(params: Params, images: str) -> None:
    on, settings = device(params.run.device), params.fid
    net = features.load(settings.network, settings.features, on, settings.mode)
    write_tensors(PATH, fid.real(images, net, on), {"network": settings.network, "mode": settings.mode})


if __name__ == "__main__":
    main()
