"""How far the fit of `free` depends on where it starts: from each schedule alone, and from random places.

Run as `python -m benchmarks.restarts`, after `dvc repro teacher_pairs`. Fits that are done are kept, so an
interrupted run goes on from them.
"""

import click
import torch
from tqdm import tqdm

from benchmarks.common import Setting
from s4spipe import distance, stage
from s4spipe.distill import gauss_newton
from s4spipe.distill.fit import COEFFICIENTS, TIMES
from s4spipe.distill.free import TRIED, load, starts
from s4spipe.families import Free
from s4spipe.files import Scratch, fingerprint, write_text
from s4spipe.pairs import PAIRS, Pairs
from s4spipe.params import Params

FIXED = ("time_uniform", "time_quadratic", "edm", "logsnr")
NFES = (3, 4, 5, 6, 8, 10)
INITS = ("ddim", "dpmpp_2m", "dpmpp_3m", "ipndm", "deis_tab", "unipc_bh2")
STEPS = 12


@stage.command
@click.option("--restarts", default=20, show_default=True)
def main(params: Params, restarts: int) -> None:
    setting = Setting(params)
    settings = params.fit.model_copy(update={"steps": STEPS})
    scratch = Scratch(fingerprint("restarts", settings.model_dump(), files=(params.model.weights, *PAIRS)))
    training, validation = (Pairs.load(path, setting.device, n) for path, n in
                            zip(PAIRS, (settings.pairs, settings.validation_pairs), strict=True))  # fmt: skip
    apart, at_once = distance.build(settings.distance), params.run.fit_batch_size
    some, denoiser = training.take(torch.arange(TRIED)), load(params, setting.device)

    def fitted(nfe: int, start: dict, gaussian: bool = False) -> dict:
        block = settings.model_copy(update=start)
        tables = list(starts(block, setting.noise, nfe))
        student = Free(min(tables, key=lambda t: gauss_newton.mean_distance(t, denoiser, some, apart, at_once)))
        if gaussian:  # the coefficients' own size, in units of the state's
            generator = torch.Generator().manual_seed(block.seed)
            with torch.no_grad():
                student.u += 0.3 * torch.randn(student.u.shape, generator=generator) * (student.scale != 0)
        own = Scratch(f"{scratch.folder.name}/one")
        own.clear()
        history = gauss_newton.fit(
            student, (COEFFICIENTS, TIMES), denoiser, training, validation, apart, batch_size=block.batch_size,
            at_once=at_once, steps=block.steps, seed=block.seed, scratch=own,
        )  # fmt: skip
        return {"first": history[0]["validation"], "best": min(row["validation"] for row in history)}

    lines = ["| start | " + " | ".join(f"NFE {n}" for n in NFES) + " |", "|---|" + "--:|" * len(NFES)]
    for schedule in tqdm(FIXED, "schedules", disable=None):
        cells = [
            scratch.once(f"{schedule}-{n}", lambda s=schedule, n=n: fitted(n, {"starts": [s]}))["best"] for n in NFES
        ]
        lines.append(f"| {schedule} | " + " | ".join(f"{value:.4f}" for value in cells) + " |")
    lines += ["", "| NFE | seed | start | coefficients | loss before | after |", "|--:|--:|---|---|--:|--:|"]
    for seed in tqdm(range(restarts), "restarts", disable=None):
        nfe, init, gaussian = 3 + seed % 8, INITS[seed % len(INITS)], seed % 2 == 1
        start = {"starts": [FIXED[seed % len(FIXED)]], "init": init, "seed": seed}
        found = scratch.once(f"restart-{seed}", lambda n=nfe, s=start, g=gaussian: fitted(n, s, g))
        kind = "Gaussian" if gaussian else "its own"
        lines.append(f"| {nfe} | {seed} | {init}, {start['starts'][0]} | {kind} | {found['first']:.3f} | "
                     f"{found['best']:.4f} |")  # fmt: skip
    write_text("docs/benchmarks/restarts.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
