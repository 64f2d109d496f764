"""Search for schedules, for all numbers of steps at once."""

import dataclasses
import json
from functools import partial
from typing import Any

import click
import torch

from s4spipe.models.base.loading import noise_schedule
from s4spipe.pipeline import stage
from s4spipe.pipeline.schema import Params
from s4spipe.runtime import distributed
from s4spipe.runtime.files import write_text
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.batches import draw
from s4spipe.solvers import searched_schedules, timesteps

BATCH = 32  # whole trajectories in memory at a time


@stage.divided
@click.argument("method", type=click.Choice(timesteps.SEARCHED))
def main(params: Params, method: str) -> None:
    model, settings = dataclasses.asdict(stage.model_settings(params)), getattr(params, method)
    scratch = Scratch(fingerprint(method, model, settings.model_dump(), files=(params.model.weights,)))
    found = {"gits": gits, "dmn": dmn}[method](params, scratch)
    if not distributed.is_main():
        return
    lines = [f'  "{n}": {json.dumps(t.tolist())}' for n, t in found.items()]
    write_text(stage.layout(params).schedules / f"{method}.json", "{\n" + ",\n".join(lines) + "\n}\n")
    scratch.clear()


def gits(params: Params, scratch: Scratch) -> dict[int, torch.Tensor]:
    settings, denoiser = params.gits, stage.load_model(params)
    t = timesteps.build("edm", denoiser.noise_schedule, settings.grid)

    def costs(start: int) -> dict[str, Any]:
        indices = range(start, min(start + BATCH, settings.noises))

        @torch.inference_mode()
        def make() -> dict[str, Any]:
            x_T, condition = draw(denoiser, "search", settings.seed, indices)
            each = searched_schedules.jump_costs(denoiser, x_T, condition, settings.solver, t)
            return {"costs": len(indices) * each}

        return scratch.once(f"costs-{start}", make)

    starts = range(0, settings.noises, BATCH)
    for start in distributed.progress(distributed.shard(starts), "gits", unit="batch"):
        costs(start)
    distributed.barrier()
    if not distributed.is_main():
        return {}
    mean = sum(costs(start)["costs"] for start in starts) / settings.noises
    return {n: t[path] for n, path in searched_schedules.cheapest_paths(mean, settings.coefficient).items()}


def dmn(params: Params, scratch: Scratch) -> dict[int, torch.Tensor]:
    if not distributed.is_main():  # takes seconds
        return {}
    noise, settings = noise_schedule(stage.model_settings(params)), params.dmn

    def make(n: int) -> dict[str, Any]:
        return {"t": searched_schedules.dmn(noise, n, settings.schedule, settings.order)}

    counts = distributed.progress(range(1, settings.up_to + 1), "dmn", unit="schedule")
    return {n: scratch.once(f"t-{n}", partial(make, n))["t"] for n in counts}


if __name__ == "__main__":
    main()
