"""The statistics that FID is measured against: of the model's own distribution, or of real images."""

import numpy as np
import torch

from s4spipe import features, fid, models, stage
from s4spipe.files import Scratch, fingerprint, write_tensors
from s4spipe.images import to_uint8
from s4spipe.pairs import solve
from s4spipe.params import Params, device
from s4spipe.tableau import Tableau

SOLVER, REAL = "models/reference.json", "statistics/real.safetensors"


@stage.command
def main(params: Params) -> None:
    if params.reference.source == "real":
        known = fid.load_statistics(REAL)
        tensors, about = {name: torch.tensor(known[name]) for name in ("mean", "covariance")}, {"source": "real"}
    else:
        tensors, about = of_the_model(params), {"count": params.reference.count}
    write_tensors(params.fid.reference, tensors, about)


def of_the_model(params: Params) -> dict[str, torch.Tensor]:
    settings, model, on = params.reference, params.model.model_dump(), device(params.run.device)
    denoiser = models.load(model, on, compiled=params.run.compile)
    net = features.load(params.fid.network, params.fid.features, on, params.fid.mode)
    scratch = Scratch(fingerprint("reference", model, settings.model_dump(), files=(params.model.weights, SOLVER)))
    shards = solve(
        denoiser,
        Tableau.load(SOLVER),
        "reference",
        settings.seed,
        settings.count,
        params.run.batch_size,
        on,
        scratch,
        params.model.condition != "none",
        finish=lambda x_0: torch.from_numpy(to_uint8(denoiser.decode(x_0))),
    )
    seen = np.concatenate([fid.features(shard["x_0"].numpy(), net, on) for shard in shards])
    mean, covariance = map(torch.from_numpy, fid.statistics(seen))
    scratch.clear()
    return {"mean": mean, "covariance": covariance}


if __name__ == "__main__":
    main()
