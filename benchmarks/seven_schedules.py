"""S4S on each of seven schedules, against the solver it starts from, and three learned schedules against their starts.

Run as `python -m benchmarks.seven_schedules`, after `dvc repro teacher_pairs reference`. S4S and LD3 learn as
params.yaml says. A second or interrupted run keeps the cells that are done; `--nfe` makes only some, without a page.
"""

import click
import torch
from tqdm import tqdm

from benchmarks.common import PAGES, Setting
from s4spipe.learning import adam, distance
from s4spipe.learning.families import LMS, Family, Fixed, Times
from s4spipe.learning.task import Task
from s4spipe.pipeline import resolve, stage
from s4spipe.pipeline.schema import Learner, Params
from s4spipe.runtime.files import write_text
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.solvers import registry, searched_schedules, timesteps
from stages.learn import phases
from stages.search import gits

NFES = (4, 5, 6, 8)
CLASSICAL = ("ddim", "ipndm", "dpmpp_3m", "unipc_bh2")
STARTS = {"dmn": "logsnr", "gits": "edm", "ld3": "edm"}
SCHEDULES = ("time_uniform", "time_quadratic", "edm", "logsnr", *STARTS)


@stage.command
@click.option("--count", default=10_000, show_default=True, help="Samples per cell.")
@click.option("--nfe", "nfes", multiple=True, type=int, help="Only these.")
def main(params: Params, count: int, nfes: tuple[int, ...]) -> None:
    setting, s4s, ld3 = Setting(params), resolve.learner(params, "s4s"), resolve.learner(params, "ld3")
    noise, solver = setting.noise, params.starts["s4s"].solver
    files = (params.model.weights, params.fid.features, setting.places.reference, *setting.pair_files)
    blocks = [block.model_dump() for block in (params.model, s4s, ld3, params.gits, params.dmn)]
    scratch = Scratch(fingerprint("seven_schedules", count, params.sample.seed, solver, blocks, files=files))
    noises = setting.draw("sample", count, params.sample.seed)
    training, validation = setting.pairs(s4s.pairs, s4s.validation_pairs)

    def learn(student: Family, block: Learner, name: str) -> None:
        task = Task(student, setting.denoiser, training, validation, Scratch(f"{scratch.folder.name}/{name}"),
                    block.seed, description=name)  # fmt: skip
        rates = adam.Adam(block.batch_size, block.learning_rate, block.radius)
        adam.fit(task, phases(block), distance.build(block.distance), rates)

    def times(schedule: str, nfe: int) -> torch.Tensor:
        start = timesteps.build(STARTS.get(schedule, schedule), noise, nfe)
        if schedule == "dmn":
            return searched_schedules.dmn(noise, nfe, STARTS[schedule], params.dmn.order)
        if schedule == "gits":
            return gits(params, Scratch(f"{scratch.folder.name}/gits"))[nfe]
        if schedule == "ld3":
            student = Fixed(solver, noise, start, nfe, Times(noise, start, decoupling=0))
            learn(student, ld3, f"ld3-{nfe}")
            return student().t.detach()
        return start

    def cell(name: str, schedule: str, nfe: int) -> dict:
        t = scratch.once(f"t-{schedule}-{nfe}", lambda: {"t": times(schedule, nfe)})["t"]
        if name != "s4s":
            return setting.fids(registry.build(name, noise, t), *noises)
        student = LMS(solver, noise, t, s4s.order)
        learn(student, s4s, f"s4s-{schedule}-{nfe}")
        return setting.fids(student(), *noises)

    cells = [(s, k, n) for n in nfes or NFES for k in SCHEDULES for s in (*CLASSICAL, "s4s")]
    fids = {
        key: scratch.once("-".join(map(str, key)), lambda key=key: cell(*key))["fid"]
        for key in tqdm(cells, "cells", disable=None)
    }
    if not nfes:
        write_text(PAGES / "seven_schedules.md", page(fids, params, count))


def page(fids: dict[tuple[str, str, int], float], params: Params, count: int) -> str:
    """The table: a row for every schedule and solver."""
    solver, teacher = params.starts["s4s"].solver, params.teacher
    text = [
        "# Seven schedules",
        "",
        f"FID on the embedded model, {count:,} samples, made by `python -m benchmarks.seven_schedules`.",
        f"`s4s` starts from {solver} on the same schedule. DMN starts from logSNR steps, GITS chooses times",
        f"from a fine EDM grid, and LD3 learns the times of {solver}, starting from EDM steps.",
        f"The teacher is {teacher.solver} on {teacher.schedule} steps.",
        "",
        "| schedule | solver | " + " | ".join(f"NFE {n}" for n in NFES) + " |",
        "|---|---|" + "--:|" * len(NFES),
    ]
    for schedule in SCHEDULES:
        for name in (*CLASSICAL, "s4s"):
            values = " | ".join(f"{fids[name, schedule, n]:.3f}" for n in NFES)
            text.append(f"| {schedule} | {name} | {values} |")
    return "\n".join([*text, ""])


if __name__ == "__main__":
    main()
