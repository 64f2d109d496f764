"""Learn a solver from the teacher's pairs, as its block in `learners` of params.yaml says."""

import dataclasses
from functools import partial

import click
import torch

import s4spipe
from s4spipe.learning import adam, distance, frequency, gauss_newton, starts, whitening
from s4spipe.learning.families import LMS, Banded, Family, Times
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task, check_history, plain
from s4spipe.pipeline import resolve, stage
from s4spipe.pipeline.layout import Cell
from s4spipe.pipeline.schema import Learner, Params
from s4spipe.runtime import distributed
from s4spipe.runtime.files import write_json
from s4spipe.runtime.scratch import Scratch, fingerprint, signature
from s4spipe.sampling.tableau import Tableau, load_all
from s4spipe.sampling.tableau.basis import PLAIN, Basis


@stage.divided
@click.argument("folder", type=click.Choice(["solvers", "fits"]))
@click.argument("name")
@click.argument("nfe", type=int)
def main(params: Params, folder: str, name: str, nfe: int) -> None:
    settings, places, cell = resolve.learner(params, name), stage.layout(params), Cell(name, nfe)
    denoiser = stage.load_model(params, channels_last=settings.optimizer == "gauss_newton")
    training = Pairs.load(places.pairs("train"), denoiser.device, settings.pairs)
    validation = Pairs.load(places.pairs("validation"), denoiser.device, settings.validation_pairs)
    seeing = params.perceptual if settings.distance == "perceptual" else None
    net = stage.features_network(params, "perceptual", denoiser.device) if seeing else None
    distance_fn = distance.build(settings.distance, net, denoiser.decode)
    trial = training.take(torch.arange(min(starts.TRIAL_PAIRS, len(training))))
    micro_batch_size = params.run.micro_batch_size

    def loss(table: Tableau) -> float:
        return gauss_newton.mean_distance(table, denoiser, trial, distance_fn, micro_batch_size)

    candidates = load_all(places.starts(cell))
    starts.check_noise(candidates, denoiser.noise_schedule)
    if settings.late is False:
        candidates = starts.early(candidates, name)
    start = starts.choose(candidates, loss)
    ends = training.x_0 if denoiser.frequencies else training.x_0.flatten(1)  # such have no bands
    basis = frequency.bands(ends, settings.bands, settings.channels)
    files = [params.model.weights, places.starts(cell), places.pairs("train"), places.pairs("validation")]
    files += [seeing.weights] if seeing else []
    model, block = dataclasses.asdict(stage.model_settings(params)), settings.model_dump(exclude_none=True)
    scratch = Scratch(fingerprint(name, nfe, block, model, whitening.PAIRS, files=tuple(files)))
    newton = settings.optimizer == "gauss_newton"
    student = student_of(settings, start, PLAIN if newton else basis)  # stays on the CPU: a few dozen numbers
    task = Task(student, denoiser, training, validation, scratch, settings.seed, micro_batch_size, f"{name} {nfe} NFE")
    if newton:
        learns = {"coefficients": (COEFFICIENTS,), "times": (TIMES,), "joint": (COEFFICIENTS, TIMES)}[settings.learns]
        fit = partial(gauss_newton.fit, learns=learns, distance=distance_fn, batch_size=settings.batch_size,
                      steps=settings.epochs)  # fmt: skip
        student, history = gauss_newton.widened(task, basis, fit)
    else:
        rates = adam.Adam(settings.batch_size, settings.learning_rate, settings.radius)
        history = adam.fit(task, phases(settings), distance_fn, rates)
    check_history(history, task.description)
    if not distributed.is_main():
        return
    solver_path, history_path = places.learned(folder, cell)
    meta = {
        "family": settings.family,
        **start.meta,
        "model": denoiser.identity,
        "pairs": signature(places.pairs("train").parent),
        "s4spipe": s4spipe.__version__,
        "params": block,
        **student.metadata(),
    }
    write_json(history_path, plain(history))
    student(name, meta).save(solver_path)
    scratch.clear()


def student_of(settings: Learner, start: Tableau, basis: Basis) -> Family:
    """The family to learn. Raises UserError for a start that it cannot have."""
    times = None
    if settings.family != "free" and settings.learns != "coefficients":
        times = Times(start.noise, start.t, settings.decoupling)
    options = {key: getattr(settings, key) for key in ("order", "consistent", "shared")}
    options["late"] = settings.late is not False
    student = Banded.of(settings.family, start, times, basis, **options)
    if settings.gaussian and isinstance(student, LMS):
        student.randomise(settings.seed)
    return student


def phases(settings: Learner) -> list[adam.Phase]:
    """The phases of learning by Adam."""
    if settings.learns == "alternating":
        return adam.s4s_alt(settings.alternations, settings.epochs, settings.warmup_epochs)
    if settings.learns == "joint":
        return adam.joint(settings.epochs, settings.warmup_epochs)
    if settings.learns == "coefficients":
        return adam.s4s(settings.epochs)
    return [adam.Phase((TIMES,), settings.epochs)]


if __name__ == "__main__":
    main()
