"""Network evaluations until a loss is reached: S4S-Alt by Adam at the paper's settings, against Gauss-Newton.

Run as `python -m benchmarks.cost`, after `dvc repro teacher_pairs`. The loss to reach is the best that Adam got to.
Both see the same pairs, distance and validation pairs; evaluations spent on validation are not counted, as neither
needs them every epoch. Fits that are done are kept, so an interrupted run goes on from them.
"""

import click
import torch
from tqdm import tqdm

from benchmarks.common import Setting
from s4spipe import distance, stage, steps
from s4spipe.distill import gauss_newton, learn
from s4spipe.distill.fit import COEFFICIENTS, TIMES, fit
from s4spipe.distill.free import SHARES, TRIED, load, schedules, starts
from s4spipe.families import FAMILIES, Free, Times
from s4spipe.files import Scratch, fingerprint, write_text
from s4spipe.pairs import PAIRS, Pairs
from s4spipe.params import Params

NFES = (3, 4, 5, 6, 7, 8, 9, 10)
BOTH = (COEFFICIENTS, TIMES)


@stage.command
@click.option("--steps", "most", default=12, show_default=True, help="Of Gauss-Newton.")
def main(params: Params, most: int) -> None:
    setting, alt, settings = Setting(params), params.arm("s4s_alt"), params.fit
    blocks = [alt.model_dump(), settings.model_dump(), most]
    scratch = Scratch(fingerprint("cost", blocks, files=(params.model.weights, *PAIRS)))
    training, validation = (Pairs.load(path, setting.device, n) for path, n in
                            zip(PAIRS, (alt.pairs, settings.validation_pairs), strict=True))  # fmt: skip
    apart, at_once = distance.build(settings.distance), params.run.fit_batch_size
    denoiser = load(params, setting.device)

    def same_family(nfe: int) -> torch.nn.Module:
        t = steps.build(alt.steps, setting.noise, nfe)
        return FAMILIES["lms"](
            alt.init, setting.noise, t, nfe, alt.order, Times(setting.noise, t, alt.decoupling), False
        )

    def adam(nfe: int) -> dict:
        history = fit(same_family(nfe), learn.phases(alt), denoiser, training, validation, apart, seed=alt.seed,
                      batch_size=alt.batch_size, at_once=at_once, learning_rate=alt.learning_rate, radius=alt.radius,
                      scratch=Scratch(f"{scratch.folder.name}/adam-{nfe}"))  # fmt: skip
        return {"loss": [row["validation"] for row in history]}

    def newton(nfe: int, free: bool) -> dict:
        some = training.take(torch.arange(TRIED))
        tables = starts(settings, setting.noise, nfe) if free else ()
        student = (
            Free(min(tables, key=lambda t: gauss_newton.mean_distance(t, denoiser, some, apart, at_once)))
            if free
            else same_family(nfe)
        )
        history = gauss_newton.fit(student, BOTH, denoiser, training, validation, apart, batch_size=settings.batch_size,
                                   at_once=at_once, steps=most, seed=settings.seed,
                                   scratch=Scratch(f"{scratch.folder.name}/newton-{nfe}-{free}"))  # fmt: skip
        return {key: [row[name] for row in history] for key, name in (("loss", "validation"), ("spent", "evaluations"))}

    lines = ["| NFE | loss reached | Adam | Gauss-Newton, same family | ratio | Gauss-Newton, free | ratio |",
             "|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for nfe in tqdm(NFES, "NFEs", disable=None):
        loss = scratch.once(f"adam-{nfe}", lambda n=nfe: adam(n))["loss"]
        goal = min(loss)
        spent = loss.index(goal) * len(training) * nfe * (3 + (alt.radius > 0))
        row = [str(nfe), f"{goal:.4f}", f"{spent:,}"]
        for free in (False, True):
            found = scratch.once(f"newton-{nfe}-{free}", lambda n=nfe, f=free: newton(n, f))
            step = next((i for i, value in enumerate(found["loss"]) if value <= goal), None)
            if step is None:
                row += ["not reached", "-"]
                continue
            tried = len(schedules(settings)) * len(SHARES) * TRIED * nfe if free else 0
            cost = found["spent"][step] - step * len(validation) * nfe + tried
            row += [f"{cost:,}", f"{cost / spent:.2f}"]
        lines.append("| " + " | ".join(row) + " |")
    write_text("docs/benchmarks/cost.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
