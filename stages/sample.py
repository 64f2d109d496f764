"""Sample with a solver: one uint8 array of images, and how long a sample took."""

import click
import torch

from s4spipe import images, models, stage
from s4spipe.files import Scratch, fingerprint, write_array, write_json
from s4spipe.pairs import solve
from s4spipe.params import Params, device
from s4spipe.tableau import Tableau


@stage.command
@click.argument("solver")
@click.argument("nfe", type=int)
def main(params: Params, solver: str, nfe: int) -> None:
    settings, model, on = params.sample, params.model.model_dump(), device(params.run.device)
    path = f"solvers/{solver}/{nfe}.json"
    denoiser, tableau = models.load(model, on), Tableau.load(path)
    scratch = Scratch(fingerprint("sample", model, settings.model_dump(), files=(params.model.weights, path)))
    labelled = params.model.condition == "labels"
    shards = list(
        solve(denoiser, tableau, "sample", settings.seed, settings.count, params.run.batch_size, on, scratch, labelled)
    )
    write_array(f"samples/{solver}-{nfe}.npy", images.to_uint8(torch.cat([shard["x_0"] for shard in shards])))
    seconds = sum(shard["seconds"] for shard in shards) / settings.count
    about = {"nfe": tableau.nfe, "depth": tableau.depth, "seconds_per_sample": round(seconds, 7), "device": str(on)}
    write_json(f"samples/{solver}-{nfe}.json", about)
    scratch.clear()


if __name__ == "__main__":
    main()
