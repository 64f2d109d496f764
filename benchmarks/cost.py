"""Network evaluations until a loss is reached: S4S-Alt by Adam at the paper's settings, against Gauss-Newton.

Run as `python -m benchmarks.cost`, after `dvc repro teacher_pairs`. The loss to reach is the best that Adam got to.
Both see the same pairs, distance and validation pairs; evaluations spent on validation are not counted, as neither
needs them every epoch. An interrupted run keeps the fits that are done.
"""

import click
import torch
from tqdm import tqdm

from benchmarks.common import PAGES, Setting
from s4spipe.learning import adam, distance, gauss_newton, starts
from s4spipe.learning.families import Family, Free
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task
from s4spipe.pipeline import resolve, stage
from s4spipe.pipeline.schema import Params
from s4spipe.pipeline.tables import candidates
from s4spipe.runtime.files import write_text
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN
from s4spipe.solvers import registry
from stages import learn

NFES = (3, 4, 5, 6, 7, 8, 9, 10)


@stage.command
@click.option("--steps", default=12, show_default=True, help="Of Gauss-Newton.")
def main(params: Params, steps: int) -> None:
    setting = Setting(params, channels_last=True)
    alt, alt_start = resolve.learner(params, "s4s_alt"), params.starts["s4s_alt"]
    free, free_start = resolve.learner(params, "free"), params.starts["free"]
    blocks = [block.model_dump() for block in (alt, alt_start, free, free_start)]
    scratch = Scratch(fingerprint("cost", blocks, steps, files=(params.model.weights, *setting.pair_files)))
    training, validation = setting.pairs(alt.pairs, free.validation_pairs)
    distance_fn, micro_batch_size = distance.build(free.distance), params.run.micro_batch_size
    trial = training.take(torch.arange(starts.TRIAL_PAIRS))

    def same_family(nfe: int) -> Family:
        start = registry.make(alt_start.solver, alt_start.schedules[0], setting.noise, nfe)
        return learn.student_of(alt, start, PLAIN)

    def task(student: Family, name: str, seed: int) -> Task:
        own = Scratch(f"{scratch.folder.name}/{name}")
        return Task(student, setting.denoiser, training, validation, own, seed, micro_batch_size, name)

    def by_adam(nfe: int) -> dict:
        rates = adam.Adam(alt.batch_size, alt.learning_rate, alt.radius)
        history = adam.fit(task(same_family(nfe), f"adam-{nfe}", alt.seed), learn.phases(alt), distance_fn, rates)
        return {"loss": [row["validation"] for row in history]}

    def loss(table: Tableau) -> float:
        return gauss_newton.mean_distance(table, setting.denoiser, trial, distance_fn, micro_batch_size)

    def by_gauss_newton(nfe: int, of_free: bool) -> dict:
        tables = candidates("free", free_start, setting.noise, nfe) if of_free else []
        student = Free(starts.choose(tables, loss)) if of_free else same_family(nfe)
        history = gauss_newton.fit(task(student, f"newton-{nfe}-{of_free}", free.seed), (COEFFICIENTS, TIMES),
                                   distance_fn, free.batch_size, steps)  # fmt: skip
        columns = (("loss", "validation"), ("spent", "evaluations"))
        return {key: [row[name] for row in history] for key, name in columns} | {"tried": len(tables)}

    lines = ["| NFE | loss reached | Adam | Gauss-Newton, same family | ratio | Gauss-Newton, free | ratio |",
             "|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for nfe in tqdm(NFES, "NFEs", disable=None):
        losses = scratch.once(f"adam-{nfe}", lambda n=nfe: by_adam(n))["loss"]
        goal = min(losses)
        spent = losses.index(goal) * len(training) * nfe * (3 + (alt.radius > 0))
        row = [str(nfe), f"{goal:.4f}", f"{spent:,}"]
        for of_free in (False, True):
            found = scratch.once(f"newton-{nfe}-{of_free}", lambda n=nfe, f=of_free: by_gauss_newton(n, f))
            step = next((i for i, value in enumerate(found["loss"]) if value <= goal), None)
            if step is None:
                row += ["not reached", "-"]
                continue
            cost = found["spent"][step] - step * len(validation) * nfe + found["tried"] * len(trial) * nfe
            row += [f"{cost:,}", f"{cost / spent:.2f}"]
        lines.append("| " + " | ".join(row) + " |")
    write_text(PAGES / "benchmarks/cost.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
