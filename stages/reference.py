"""The statistics of the model's own distribution, by a many-step solver, if FID is measured against it."""

import numpy as np
import torch

from s4spipe import features, fid, models, stage
from s4spipe.files import Scratch, fingerprint, write_tensors
from s4spipe.images import to_uint8
from s4spipe.pairs import solve
from s4spipe.params import Params, device
from s4spipe.tableau import Tableau

SOLVER = "models/reference.json"


@stage.command
def main(params: Params) -> None:
    if params.reference.source == "model":
        write_tensors(params.fid.reference, of_the_model(params), {"count": params.reference.count})
    else:  # nothing to make; DVC wants the file
        write_tensors(params.fid.reference, {}, {"source": "real"})


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
