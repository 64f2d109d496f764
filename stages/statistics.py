"""Estimate the statistics of the model that some classical solvers need, from samples of a many-step solver."""

import dataclasses

import click
import torch

from s4spipe.models.base.loading import load
from s4spipe.pipeline import stage
from s4spipe.pipeline.schema import Params
from s4spipe.runtime import distributed
from s4spipe.runtime.files import write_tensors
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises, generate, independent
from s4spipe.solvers import registry, statistics
from s4spipe.solvers.statistics import Data


@stage.divided
@click.argument("solver", type=click.Choice(registry.STATISTICAL))
def main(params: Params, solver: str) -> None:
    settings, model = params.statistics, stage.model_settings(params)
    denoiser = load(model, stage.device(params))  # not compiled: it is differentiated
    determinants = (dataclasses.asdict(model), settings.model_dump())
    scratch = Scratch(fingerprint("statistics", *determinants, files=(params.model.weights,)))
    table = registry.make(settings.solver, settings.schedule, denoiser.noise_schedule, settings.nfe)
    noises = Noises("statistics", settings.seed, settings.samples)
    shards = list(generate(denoiser, table, noises, params.run.batch_size, scratch))
    if distributed.is_main():  # the others have no shards, and read them here
        scratch.save("samples", {key: torch.cat([shard[key] for shard in shards]) for key in ("x_0", "condition")
                                 if key in shards[0]})  # fmt: skip
    distributed.barrier()
    samples = scratch.load("samples")
    assert samples is not None
    z = independent(denoiser, noises, range(settings.samples), 2)
    data = Data(samples["x_0"], samples.get("condition"), z.cpu())
    found = statistics.estimate(denoiser, data, settings.grid, params.run.batch_size, scratch)
    if found is None:
        return
    mean, power = statistics.mean_and_power(data.x_0)
    tensors = {"lam": found.lam, "l": found.l, "s": found.s, "b": found.b, "mean": mean, "power": power}
    write_tensors(stage.layout(params).statistics, tensors, settings.model_dump())
    scratch.clear()


if __name__ == "__main__":
    main()
