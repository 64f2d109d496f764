"""Search for a schedule, for every number of steps at once."""

import json
from functools import partial

import click
import torch

from s4spipe import models, ranks, search, stage, steps
from s4spipe.files import Scratch, fingerprint, write_text
from s4spipe.pairs import draw
from s4spipe.params import Params, device

BATCH = 32  # of whole trajectories, which are kept in memory


@stage.divided
@click.argument("method", type=click.Choice(steps.SEARCHED))
def main(params: Params, method: str) -> None:
    model, settings = params.model.model_dump(), getattr(params, method)
    scratch = Scratch(fingerprint(method, model, settings.model_dump(), files=(params.model.weights,)))
    found = {"gits": gits, "dmn": dmn}[method](params, scratch)
    if not ranks.first():
        return
    lines = [f'  "{n}": {json.dumps(t.tolist())}' for n, t in found.items()]
    write_text(f"schedules/{method}.json", "{\n" + ",\n".join(lines) + "\n}\n")
    scratch.clear()


def gits(params: Params, scratch: Scratch) -> dict[int, torch.Tensor]:
    settings, on = params.gits, device(params.run.device)
    denoiser = models.load(params.model.model_dump(), on, compiled=params.run.compile)
    t = steps.build("edm", denoiser.noise_schedule, settings.grid)

    def costs(start: int) -> dict:
        indices = range(start, min(start + BATCH, settings.noises))

        @torch.inference_mode()
        def make() -> dict:
            x_T, condition = draw(denoiser, "search", settings.seed, indices, params.model.condition != "none")
            condition = None if condition is None else condition.to(on)
            each = search.jump_costs(denoiser, x_T.to(on), condition, settings.solver, t)
            return {"costs": len(indices) * each}

        return scratch.once(f"costs-{start}", make)

    starts = range(0, settings.noises, BATCH)
    for start in ranks.progress(ranks.share(starts), "gits", unit="batch"):
        costs(start)
    ranks.wait()
    if not ranks.first():
        return {}
    mean = sum(costs(start)["costs"] for start in starts) / settings.noises
    return {n: t[path] for n, path in search.cheapest_paths(mean, settings.coefficient).items()}


def dmn(params: Params, scratch: Scratch) -> dict[int, torch.Tensor]:
    if not ranks.first():  # seconds
        return {}
    noise, settings = models.noise_schedule(params.model.model_dump()), params.dmn

    def make(n: int) -> dict:
        return {"t": search.dmn(noise, n, settings.start, settings.order)}

    counts = ranks.progress(range(1, settings.up_to + 1), "dmn", unit="schedule")
    return {n: scratch.once(f"t-{n}", partial(make, n))["t"] for n in counts}


if __name__ == "__main__":
    main()
