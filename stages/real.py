"""Compute features of real images, for FID, KID, precision and recall against them."""

from s4spipe.evaluation import real
from s4spipe.pipeline import stage
from s4spipe.pipeline.layout import NONE
from s4spipe.pipeline.schema import Params
from s4spipe.runtime import distributed
from s4spipe.runtime.files import write_tensors


@stage.divided
def main(params: Params) -> None:
    device, settings = stage.device(params), params.fid
    about = {"network": settings.network, "mode": settings.mode}
    about |= {"source": settings.source} if settings.network == "callable" else {}
    tensors = {}  # without images, nothing; but DVC needs the file
    if settings.real != NONE:
        net = stage.features_network(params, "fid", device)
        tensors = real.read(settings.real, net, device, about)
    if distributed.is_main():
        write_tensors(stage.layout(params).real, tensors, about)


if __name__ == "__main__":
    main()
