"""S4S on each of seven schedules, against the solver it starts from, and three learned schedules against their starts.

Run as `python -m benchmarks.seven_schedules`, after `dvc repro teacher_pairs`. S4S and LD3 learn as params.yaml says.
Cells that are done are kept, so a second or interrupted run goes on from them; `--nfe` makes only some, without a page.
"""

import click
import torch
from tqdm import tqdm

from benchmarks.common import Setting
from s4spipe import classical, distance, search, stage, steps
from s4spipe.distill import learn
from s4spipe.distill.fit import Phase, fit
from s4spipe.families import LMS, Fixed, Times
from s4spipe.files import Scratch, fingerprint, write_text
from s4spipe.pairs import Pairs
from s4spipe.params import Params
from stages.search import gits

NFES = (4, 5, 6, 8)
CLASSICAL = ("ddim", "ipndm", "dpmpp_3m", "unipc_bh2")
STARTS = {"dmn": "logsnr", "gits": "edm", "ld3": "edm"}
SCHEDULES = ("time_uniform", "time_quadratic", "edm", "logsnr", *STARTS)


@stage.command
@click.option("--count", default=10_000, show_default=True, help="Samples per cell.")
@click.option("--nfe", "nfes", multiple=True, type=int, help="Only these.")
def main(params: Params, count: int, nfes: tuple[int, ...]) -> None:
    setting = Setting(params)
    noise, denoiser, settings = setting.noise, setting.denoiser, params.s4s
    files = (params.model.weights, params.fid.features, params.fid.reference, *learn.PAIRS)
    blocks = [getattr(params, name).model_dump() for name in ("model", "s4s", "s4s_alt", "gits", "dmn")]
    scratch = Scratch(fingerprint("seven_schedules", count, params.sample.seed, blocks, files=files))
    noises = setting.draw("sample", count, params.sample.seed)
    training, validation = (Pairs.load(path, setting.device, count) for path, count in
                            zip(learn.PAIRS, (settings.pairs, settings.validation_pairs), strict=True))  # fmt: skip

    def learned(student: torch.nn.Module, phases: list[Phase], block, name: str) -> None:
        options = {key: getattr(block, key) for key in ("batch_size", "learning_rate", "radius", "seed")}
        unfinished = Scratch(f"{scratch.folder.name}/{name}")
        fit(student, phases, denoiser, training, validation, distance.build(block.distance), **options,
            description=name, scratch=unfinished)  # fmt: skip

    def times(schedule: str, nfe: int) -> torch.Tensor:
        start = steps.build(STARTS.get(schedule, schedule), noise, nfe)
        if schedule == "dmn":
            return search.dmn(noise, nfe, STARTS[schedule], params.dmn.order)
        if schedule == "gits":
            return gits(params, Scratch(f"{scratch.folder.name}/gits"))[nfe]
        if schedule == "ld3":
            block = params.arm("ld3")
            student = Fixed(settings.init, noise, start, nfe, Times(noise, start, decoupling=0))
            learned(student, learn.phases(block), block, f"ld3-{nfe}")
            return student().t.detach()
        return start

    def cell(solver: str, schedule: str, nfe: int) -> dict:
        t = scratch.once(f"t-{schedule}-{nfe}", lambda: {"t": times(schedule, nfe)})["t"]
        if solver != "s4s":
            return setting.fids(classical.build(solver, noise, t), *noises)
        student = LMS(settings.init, noise, t, settings.order)
        learned(student, learn.phases(settings), settings, f"s4s-{schedule}-{nfe}")
        return setting.fids(student(), *noises)

    cells = [(s, k, n) for n in nfes or NFES for k in SCHEDULES for s in (*CLASSICAL, "s4s")]
    fids = {
        key: scratch.once("-".join(map(str, key)), lambda key=key: cell(*key))["fid"]
        for key in tqdm(cells, "cells", disable=None)
    }
    if not nfes:
        write_text("docs/seven_schedules.md", page(fids, params, count))


def page(fids: dict[tuple[str, str, int], float], params: Params, count: int) -> str:
    """The table: a row for every schedule and solver."""
    init, teacher = params.s4s.init, params.teacher
    text = [
        "# Seven schedules",
        "",
        f"FID on the embedded model, {count:,} samples. Made by `python -m benchmarks.seven_schedules`. `s4s` starts",
        f"from {init} on the same schedule. DMN starts from logSNR steps, GITS picks from a fine EDM grid, LD3 learns",
        f"the times of {init} from EDM steps. The teacher is {teacher.solver} on {teacher.steps} steps.",
        "",
        "| schedule | solver | " + " | ".join(f"NFE {n}" for n in NFES) + " |",
        "|---|---|" + "--:|" * len(NFES),
    ]
    for schedule in SCHEDULES:
        for solver in (*CLASSICAL, "s4s"):
            values = " | ".join(f"{fids[solver, schedule, n]:.3f}" for n in NFES)
            text.append(f"| {schedule} | {solver} | {values} |")
    return "\n".join([*text, ""])


if __name__ == "__main__":
    main()
