"""The statistics of the model's own distribution, by a many-step solver, if FID is measured against it."""

import torch

from s4spipe import features, fid, models, ranks, stage
from s4spipe.files import Scratch, fingerprint, write_tensors
from s4spipe.images import to_uint8
from s4spipe.pairs import solve
from s4spipe.params import Params, device
from s4spipe.tableau import Tableau

SOLVER = "models/reference.json"


@stage.divided
def main(params: Params) -> None:
    if params.reference.source == "model":
        of_the_model(params)
    elif ranks.first():  # nothing to make; DVC wants the file
        write_tensors(params.fid.reference, {}, {"source": "real"})


def of_the_model(params: Params) -> None:
    settings, model, on = params.reference, params.model.model_dump(), device(params.run.device)
    denoiser = models.load(model, on, compiled=params.run.compile)
    net = features.load(params.fid.network, params.fid.features, on, params.fid.mode)
    about = (settings.model_dump(), params.fid.network, params.fid.mode)
    files = (params.model.weights, params.fid.features, SOLVER)
    scratch = Scratch(fingerprint("reference", model, *about, files=files))
    shards = list(
        solve(
            denoiser,
            Tableau.load(SOLVER),
            "reference",
            settings.seed,
            settings.count,
            params.run.batch_size,
            on,
            scratch,
            params.model.condition != "none",
            finish=lambda x_0: fid.batch_features(torch.from_numpy(to_uint8(denoiser.decode(x_0))), net, on),
        )
    )
    if not ranks.first():
        return
    seen = torch.cat([shard["x_0"] for shard in shards]).double()
    mean, covariance = map(torch.from_numpy, fid.statistics(seen.numpy()))
    write_tensors(params.fid.reference, {"mean": mean, "covariance": covariance}, {"count": settings.count})
    scratch.clear()


if __name__ == "__main__":
    main()
