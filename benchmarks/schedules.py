"""Every classical solver of params.yaml on every schedule: which schedule is its best, and how good is it?

Run as `python -m benchmarks.schedules`, after `dvc repro reference`. A second or interrupted run keeps the cells that
are done. It stands outside the pipeline, whose solvers on their `best` schedule read the table that it writes.
"""

import itertools

import click
from tqdm import tqdm

from benchmarks import schedules_page
from benchmarks.common import Setting
from s4spipe.pipeline import stage
from s4spipe.pipeline.schema import Params
from s4spipe.runtime.files import write_text
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.solvers import best_schedules, registry, timesteps

NFES = (3, 4, 5, 6, 8, 10)


@stage.command
@click.option("--count", default=1000, show_default=True, help="Samples per cell.")
def main(params: Params, count: int) -> None:
    setting = Setting(params)
    files = (params.model.weights, params.fid.features, setting.places.reference)
    scratch = Scratch(fingerprint("schedules", count, params.sample.seed, params.model.model_dump(), files=files))
    noises = setting.draw("sample", count, params.sample.seed)

    def cell(solver: str, schedule: str, nfe: int) -> dict:
        t = timesteps.build(schedule, setting.noise, len(registry.evals_per_step(solver, nfe)))
        return setting.fids(registry.build(solver, setting.noise, t, nfe=nfe), *noises)

    rows = []
    cells = list(itertools.product(params.classical, timesteps.FORMULAS, NFES))
    for solver, schedule, nfe in tqdm(cells, "schedules", disable=None):
        name = f"{solver}-{schedule}-{nfe}"
        value = scratch.once(name, lambda s=solver, k=schedule, n=nfe: cell(s, k, n))
        rows.append(f"{solver},{schedule},{nfe},{value['fid']:.4f},{value['fid_real']:.4f}")
    lines = ["solver,schedule,nfe,fid,fid_real", *rows]
    write_text(best_schedules.PATH, "\n".join(lines) + "\n")
    write_text(schedules_page.PATH, schedules_page.page(best_schedules.read()))


if __name__ == "__main__":
    main()
