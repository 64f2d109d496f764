"""Sample with a solver: one uint8 array of images, a few samples' trajectories, and how long a sample took."""

import click
import torch

from s4spipe import images, models, ranks, stage, trajectories
from s4spipe.files import Scratch, fingerprint, write_arrays, write_json, write_tensors
from s4spipe.pairs import draw, solve
from s4spipe.params import Params, device
from s4spipe.tableau import Tableau


@stage.divided
@click.argument("solver")
@click.argument("nfe", type=int)
def main(params: Params, solver: str, nfe: int) -> None:
    settings, model, on = params.sample, params.model.model_dump(), device(params.run.device)
    path, conditional = params.table_path(solver, nfe), params.model.condition != "none"
    denoiser, tableau = models.load(model, on, compiled=params.run.compile), Tableau.load(path)
    scratch = Scratch(fingerprint("sample", model, settings.model_dump(), files=(params.model.weights, path)))
    shards = solve(
        denoiser,
        tableau,
        "sample",
        settings.seed,
        settings.count,
        params.run.batch_size,
        on,
        scratch,
        conditional,
        finish=lambda x_0: torch.from_numpy(images.to_uint8(denoiser.decode(x_0))),
    )
    seconds = 0.0

    def arrays():
        nonlocal seconds
        for shard in shards:
            seconds += shard["seconds"]
            yield shard["x_0"].numpy()

    if not ranks.first():
        list(shards)  # makes its part of them
        return
    write_arrays(f"samples/{solver}-{nfe}.npy", arrays(), settings.count)
    shown = range(min(trajectories.SHOWN, settings.count))
    x_T, condition = draw(denoiser, "sample", settings.seed, shown, conditional)
    condition = None if condition is None else condition.to(on)
    path = trajectories.states(denoiser, tableau, x_T.to(on), condition)
    write_tensors(f"samples/{solver}-{nfe}.safetensors", {"states": path})
    about = {
        "nfe": tableau.nfe,
        "depth": tableau.depth,
        "network_calls": tableau.nfe * denoiser.network_calls,
        "seconds_per_sample": round(seconds / settings.count, 7),
        "device": str(on),
    }
    write_json(f"samples/{solver}-{nfe}.json", about)
    scratch.clear()


if __name__ == "__main__":
    main()
