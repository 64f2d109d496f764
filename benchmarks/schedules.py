"""Every classical solver on every schedule: which schedule is each solver's best, and how good is it?

Run as `dvc repro benchmarks/dvc.yaml`. Cells that are done are kept, so an interrupted run goes on where it was.
"""

import itertools

import click
import numpy as np
import torch
from tqdm import tqdm

from s4spipe import classical, fid, models, stage, steps
from s4spipe.files import Scratch, fingerprint, write_text
from s4spipe.images import to_uint8
from s4spipe.models import digits
from s4spipe.models.features import DigitFeatures
from s4spipe.pairs import draw
from s4spipe.params import Params, device
from s4spipe.sampling import sample

NFES = (3, 4, 5, 6, 8, 10)


@stage.command
@click.argument("count", type=int)
def main(params: Params, count: int) -> None:
    on, model = device(params.run.device), params.model.model_dump()
    denoiser, net = models.load(model, on), DigitFeatures.load(params.fid.features, on)
    real = fid.statistics(fid.features(to_uint8(digits.images()[0]), net, on))
    scratch = Scratch(fingerprint("schedules", count, model, files=(params.model.weights, params.fid.features)))
    batches = [
        draw(denoiser, "sample", params.sample.seed, range(i, min(i + params.run.batch_size, count)))
        for i in range(0, count, params.run.batch_size)
    ]

    @torch.inference_mode()
    def cell(solver: str, schedule: str, nfe: int) -> dict:
        noise = denoiser.noise_schedule
        tableau = classical.build(solver, noise, steps.build(schedule, noise, nfe))
        images = [to_uint8(sample(denoiser, tableau, x.to(on), labels.to(on))) for x, labels in batches]
        features = [fid.features(batch, net, on) for batch in images]
        return {"fid": fid.frechet_distance(*fid.statistics(np.concatenate(features)), *real)}

    rows = []
    cells = list(itertools.product(classical.CLASSICAL, steps.STEPS, NFES))
    for solver, schedule, nfe in tqdm(cells, "schedules", disable=None):
        name = f"{solver}-{schedule}-{nfe}"
        rows.append(
            (solver, schedule, nfe, scratch.once(name, lambda s=solver, k=schedule, n=nfe: cell(s, k, n))["fid"])
        )
    lines = ["solver,steps,nfe,fid", *(f"{s},{k},{n},{value:.4f}" for s, k, n, value in rows)]
    write_text("docs/schedules.csv", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
