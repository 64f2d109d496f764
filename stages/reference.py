"""Compute statistics of the model's own distribution with a many-step solver, if FID is measured against it."""

import dataclasses

import torch

from s4spipe.evaluation import fid
from s4spipe.pipeline import stage
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Params
from s4spipe.runtime import distributed
from s4spipe.runtime.files import write_tensors
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises, generate
from s4spipe.sampling.images import to_uint8
from s4spipe.sampling.tableau import adaptive


@stage.divided
def main(params: Params) -> None:
    if params.reference.source == "model":
        of_the_model(params)
    elif distributed.is_main():  # nothing to do, but DVC needs the file
        write_tensors(stage.layout(params).reference, {}, {"source": "real"})


def of_the_model(params: Params) -> None:
    settings, places, denoiser = params.reference, stage.layout(params), stage.load_model(params)
    net = stage.features_network(params, "fid", denoiser.device)
    solver = places.table(Cell("reference", settings.nfe))
    determinants = (settings.model_dump(), params.fid.network, params.fid.source, params.fid.mode)
    files = (params.model.weights, params.fid.features, solver)
    model = dataclasses.asdict(stage.model_settings(params))
    scratch = Scratch(fingerprint("reference", model, *determinants, files=files))

    def features(x_0: torch.Tensor) -> torch.Tensor:
        return fid.batch_features(torch.from_numpy(to_uint8(denoiser.decode(x_0))), net, denoiser.device)

    noises = Noises("reference", settings.seed, settings.count)
    shards = generate(denoiser, adaptive.load(solver), noises, params.run.batch_size, scratch, features)
    if not distributed.is_main():
        list(shards)  # makes its share of them
        return
    mean, covariance = fid.statistics(shard["x_0"] for shard in shards)
    write_tensors(places.reference, {"mean": mean, "covariance": covariance}, {"count": settings.count})
    scratch.clear()


if __name__ == "__main__":
    main()
