"""Every classical solver of params.yaml on every schedule: which schedule is its best, and how good is it?

Run as `python -m benchmarks.schedules`. Cells that are done are kept, so a second or interrupted run goes on from them.
It stands outside the pipeline, whose solvers on their `best` schedule read the table that it writes.
"""

import itertools

import click
from tqdm import tqdm

from benchmarks import schedules_page
from benchmarks.common import Setting
from s4spipe import best, classical, stage, steps
from s4spipe.files import Scratch, fingerprint, write_text
from s4spipe.params import Params

NFES = (3, 4, 5, 6, 8, 10)


@stage.command
@click.option("--count", default=1000, show_default=True, help="Samples per cell.")
def main(params: Params, count: int) -> None:
    setting = Setting(params)
    files = (params.model.weights, params.fid.features, params.fid.reference)
    scratch = Scratch(fingerprint("schedules", count, params.sample.seed, params.model.model_dump(), files=files))
    noises = setting.draw("sample", count, params.sample.seed)

    def cell(solver: str, schedule: str, nfe: int) -> dict:
        t = steps.build(schedule, setting.noise, len(classical.costs(solver, nfe)))
        return setting.fids(classical.build(solver, setting.noise, t, nfe=nfe), *noises)

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
