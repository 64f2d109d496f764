"""Features of real images, for FID, KID, precision and recall against them."""

from s4spipe import features, fid, ranks, stage
from s4spipe.files import write_tensors
from s4spipe.params import NO_IMAGES, Params, device

PATH = "statistics/real.safetensors"


@stage.divided
def main(params: Params) -> None:
    on, settings = device(params.run.device), params.fid
    tensors = {}  # of no images, nothing; DVC wants the file
    if settings.real != NO_IMAGES:
        net = features.load(settings.network, settings.features, on, settings.mode)
        tensors = fid.real(settings.real, net, on)
    if ranks.first():
        write_tensors(PATH, tensors, {"network": settings.network, "mode": settings.mode})


if __name__ == "__main__":
    main()
