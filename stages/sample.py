"""Sample with a solver. Write the images as one uint8 array, the states of a few samples, and the cost of a sample."""

import dataclasses
from collections.abc import Iterator

import click
import numpy as np
import torch

from s4spipe.pipeline import stage
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Params
from s4spipe.runtime import distributed
from s4spipe.runtime.files import read_tensors, write_arrays, write_json, write_tensors
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import Noises, draw, evaluations, fresh, generate
from s4spipe.sampling.images import to_uint8
from s4spipe.sampling.tableau import adaptive
from s4spipe.sampling.tableau.adaptive import Adaptive
from s4spipe.sampling.trajectories import states

SHOWN = 4  # samples whose states are kept


@stage.divided
@click.argument("folder", type=click.Choice(["tables", "solvers"]))
@click.argument("solver")
@click.argument("nfe", type=int)
def main(params: Params, folder: str, solver: str, nfe: int) -> None:
    settings, places, cell = params.sample, stage.layout(params), Cell(solver, nfe)
    path = places.table(cell) if folder == "tables" else places.learned(folder, cell)[0]
    denoiser, chosen = stage.load_model(params), adaptive.load(path)
    model = dataclasses.asdict(stage.model_settings(params))
    scratch = Scratch(fingerprint("sample", model, settings.model_dump(), files=(params.model.weights, path)))
    noises = Noises("sample", settings.seed, settings.count)

    def images(x_0: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(to_uint8(denoiser.decode(x_0)))

    shards = generate(denoiser, chosen, noises, params.run.batch_size, scratch, images)
    seconds, costs = 0.0, []  # of the shards

    def arrays() -> Iterator[np.ndarray]:
        nonlocal seconds
        for shard in shards:
            seconds += shard["seconds"]
            yield shard.pop("x_0").numpy()
            costs.append(shard)

    if not distributed.is_main():
        list(shards)  # makes its share of them
        return
    write_arrays(places.samples(cell, "images.npy"), arrays(), settings.count)
    shown = range(min(SHOWN, settings.count))
    x_T, condition = draw(denoiser, noises.stream, noises.seed, shown)
    paths = states(denoiser, chosen, x_T, condition, fresh(denoiser, noises, shown, chosen))
    write_tensors(places.samples(cell, "states.safetensors"), {"states": paths})
    if isinstance(chosen, Adaptive):
        spent = evaluations(costs)
        calls = round(spent["mean"] * denoiser.network_calls)
        cost = {"nfe": spent["most"], "depth": spent["most"], "network_calls": calls, "evaluations": spent}
    else:
        cost = {"nfe": chosen.nfe, "depth": chosen.depth, "network_calls": chosen.nfe * denoiser.network_calls}
    write_json(places.samples(cell, "about.json"), cost | {"schedule": chosen.meta.get("schedule", "of its own")})
    if denoiser.in_order:
        write_json(places.samples(cell, "prompts.json"), read_tensors(places.prompts, tensors=False)[1]["prompts"])
    timing = {"seconds_per_sample": round(seconds / settings.count, 7), "device": str(denoiser.device)}
    write_json(places.timing(cell), timing)
    scratch.clear()


if __name__ == "__main__":
    main()
