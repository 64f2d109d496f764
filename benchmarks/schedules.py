"""Every classical solver of params.yaml on every schedule: which schedule is its best, and how good is it?

Run as `python -m benchmarks.schedules`. Cells that are done are kept, so a second or interrupted run goes on from them.
It stands outside the pipeline, whose solvers on their `best` schedule read the table that it writes.
"""

import itertools

import click
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import schedules_page
from s4spipe import best, classical, fid, models, stage, steps
from s4spipe.files import Scratch, fingerprint, write_text
from s4spipe.images import to_uint8
from s4spipe.models import digits
from s4spipe.models.features import DigitFeatures
from s4spipe.pairs import draw
from s4spipe.params import Params, device
from s4spipe.sampling import sample

NFES = (3, 4, 5, 6, 8, 10)


@stage.command
@click.option("--count", default=1000, show_default=True, help="Samples per cell.")
def main(params: Params, count: int) -> None:
    on, model = device(params.run.device), params.model.model_dump()
    denoiser, net = models.load(model, on), DigitFeatures.load(params.fid.features, on)
    reference = fid.load_statistics(params.fid.reference)
    real = fid.statistics(fid.features(to_uint8(digits.images()[0]), net, on))
    scratch = Scratch(
        fingerprint("schedules", count, model, files=(params.model.weights, params.fid.features, params.fid.reference))
    )
    batches = [
        draw(denoiser, "sample", params.sample.seed, range(i, min(i + params.run.batch_size, count)))
        for i in range(0, count, params.run.batch_size)
    ]

    @torch.inference_mode()
    def cell(solver: str, schedule: str, nfe: int) -> dict:
        noise = denoiser.noise_schedule
        tableau = classical.build(
            solver, noise, steps.build(schedule, noise, len(classical.costs(solver, nfe))), nfe=nfe
        )
        images = [to_uint8(sample(denoiser, tableau, x.to(on), labels.to(on))) for x, labels in batches]
        features = [fid.features(batch, net, on) for batch in images]
        generated = fid.statistics(np.concatenate(features))
        return {
            "fid": fid.frechet_distance(*generated, *reference),
            "fid_real": fid.frechet_distance(*generated, *real),
        }

    rows = []
    cells = list(itertools.product(params.classical, steps.STEPS, NFES))
    for solver, schedule, nfe in tqdm(cells, "schedules", disable=None):
        name = f"{solver}-{schedule}-{nfe}"
        value = scratch.once(name, lambda s=solver, k=schedule, n=nfe: cell(s, k, n))
        rows.append(f"{solver},{schedule},{nfe},{value['fid']:.4f},{value['fid_real']:.4f}")
    lines = ["solver,steps,nfe,fid,fid_real", *rows]
    write_text("docs/schedules.csv", "\n".join(lines) + "\n")
    write_text("docs/schedules.md", schedules_page.page(best.read()))


if __name__ == "__main__":
    main()
