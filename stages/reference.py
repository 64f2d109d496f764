"""The statistics that FID is measured against: features of the model's own distribution, by a many-step solver."""

import torch

from s4spipe import fid, models, stage
from s4spipe.files import Scratch, fingerprint, write_tensors
from s4spipe.images import to_uint8
from s4spipe.models.features import DigitFeatures
from s4spipe.pairs import solve
from s4spipe.params import Params, device
from s4spipe.tableau import Tableau

SOLVER = "models/reference.json"


@stage.command
def main(params: Params) -> None:
    settings, model, on = params.reference, params.model.model_dump(), device(params.run.device)
    denoiser, net = models.load(model, on), DigitFeatures.load(params.fid.features, on)
    tableau = Tableau.load(SOLVER)
    scratch = Scratch(fingerprint("reference", model, settings.model_dump(), files=(params.model.weights, SOLVER)))
    shards = solve(
        denoiser,
        tableau,
        "reference",
        settings.seed,
        settings.count,
        params.run.batch_size,
        on,
        scratch,
        params.model.condition == "labels",
    )
    images = to_uint8(torch.cat([shard["x_0"] for shard in shards]))
    mean, covariance = map(torch.from_numpy, fid.statistics(fid.features(images, net, on)))
    write_tensors(params.fid.reference, {"mean": mean, "covariance": covariance}, {"count": settings.count})
    scratch.clear()


if __name__ == "__main__":
    main()
