"""How far the fit of `free` depends on where it starts: from each schedule, and from random places.

Run as `python -m benchmarks.restarts`, after `dvc repro teacher_pairs`. Every fit may also start on logSNR steps. An
interrupted run keeps the fits that are done.
"""

import click
import torch
from tqdm import tqdm

from benchmarks.common import PAGES, Setting
from s4spipe.learning import distance, gauss_newton, starts
from s4spipe.learning.families import Free
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.pipeline import resolve, stage
from s4spipe.pipeline.schema import Params, Start
from s4spipe.pipeline.tables import candidates
from s4spipe.runtime.files import write_text
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.tableau import Tableau

FIXED = ("time_uniform", "time_quadratic", "edm", "logsnr")
ALWAYS = "logsnr"
NFES = (3, 4, 5, 6, 8, 10)
SOLVERS = ("ddim", "dpmpp_2m", "dpmpp_3m", "ipndm", "deis_tab", "unipc_bh2")
STEPS = 12


@stage.command
@click.option("--restarts", default=20, show_default=True)
def main(params: Params, restarts: int) -> None:
    setting = Setting(params, channels_last=True)
    settings, own_start = resolve.learner(params, "free"), params.starts["free"]
    blocks = [settings.model_dump(), own_start.model_dump(), STEPS]
    scratch = Scratch(fingerprint("restarts", blocks, files=(params.model.weights, *setting.pair_files)))
    training, validation = setting.pairs(settings.pairs, settings.validation_pairs)
    distance_fn, micro_batch_size = distance.build(settings.distance), params.run.micro_batch_size
    trial = training.take(torch.arange(starts.TRIAL_PAIRS))

    def loss(table: Tableau) -> float:
        return gauss_newton.mean_distance(table, setting.denoiser, trial, distance_fn, micro_batch_size)

    def fitted(nfe: int, schedule: str, solver: str = own_start.solver, seed: int = settings.seed,
               gaussian: bool = False) -> dict:  # fmt: skip
        schedules = list(dict.fromkeys((schedule, ALWAYS)))
        start = Start(solver=solver, schedules=schedules, skip=own_start.skip)
        student = Free(starts.choose(candidates("free", start, setting.noise, nfe), loss))
        if gaussian:  # the coefficients' own size, in units of the state's
            table, generator = student.of_table, torch.Generator().manual_seed(seed)
            with torch.no_grad():
                table.u += 0.3 * torch.randn(table.u.shape, generator=generator) * table.mask
        own = Scratch(f"{scratch.folder.name}/one")
        own.clear()
        task = Task(student, setting.denoiser, training, validation, own, seed, micro_batch_size, f"fit {nfe} NFE")
        history = gauss_newton.fit(task, (COEFFICIENTS, TIMES), distance_fn, settings.batch_size, STEPS)
        return {"first": history[0]["validation"], "best": min(row["validation"] for row in history)}

    lines = ["| start | " + " | ".join(f"NFE {n}" for n in NFES) + " |", "|---|" + "--:|" * len(NFES)]
    for schedule in tqdm(FIXED, "schedules", disable=None):
        cells = [scratch.once(f"{schedule}-{n}", lambda s=schedule, n=n: fitted(n, s))["best"] for n in NFES]
        lines.append(f"| {schedule} | " + " | ".join(f"{value:.4f}" for value in cells) + " |")
    lines += ["", "| NFE | seed | start | coefficients | loss before | after |", "|--:|--:|---|---|--:|--:|"]
    for seed in tqdm(range(restarts), "restarts", disable=None):
        nfe, solver, gaussian = 3 + seed % 8, SOLVERS[seed % len(SOLVERS)], seed % 2 == 1
        start = (nfe, FIXED[seed % len(FIXED)], solver, seed, gaussian)
        found = scratch.once(f"restart-{seed}", lambda start=start: fitted(*start))
        kind = "Gaussian" if gaussian else "its own"
        lines.append(f"| {nfe} | {seed} | {solver}, {start[1]} | {kind} | {found['first']:.3f} | "
                     f"{found['best']:.4f} |")  # fmt: skip
    write_text(PAGES / "benchmarks/restarts.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
