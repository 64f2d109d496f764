"""The solver `free`, whose every number is learned, fitted to the teacher's pairs: the body of the stage `fit`."""

from collections.abc import Iterator

import torch

from s4spipe import classical, distance, models, ranks, steps
from s4spipe.distill import gauss_newton
from s4spipe.distill.fit import COEFFICIENTS, TIMES
from s4spipe.errors import UserError
from s4spipe.families import Free, late
from s4spipe.files import Scratch, fingerprint, write_json
from s4spipe.noise import NoiseSchedule
from s4spipe.pairs import PAIRS, Pairs, origin
from s4spipe.params import Fit, Params, device
from s4spipe.tableau import Tableau

NAME = "free"
SHARES = (0.0, 0.1, 0.2, 0.3)  # of the range of lambda that a start crosses without the network
ALWAYS = "logsnr"  # a schedule that is tried besides those named
TRIED = 64  # pairs that tell the starts apart


def schedules(settings: Fit) -> list[steps.Schedule]:
    """Those that a fit tries."""
    return [*settings.starts, *([] if ALWAYS in settings.starts else [ALWAYS])]


def starts(settings: Fit, noise: NoiseSchedule, nfe: int) -> Iterator[Tableau]:
    """Classical solvers on each of the `schedules`, from several later parts of the way on. From one schedule alone
    a fit may end in a poor minimum.

    Raises UserError for a solver that cannot spend `nfe` evaluations.
    """
    for schedule in schedules(settings):
        t = steps.build(schedule, noise, len(classical.costs(settings.init, nfe)))
        for share in SHARES:
            yield late(settings.init, noise, t, share, nfe, {"steps": schedule, "share": share})


def load(params: Params, on: torch.device) -> models.Denoiser:
    """The model, its convolutions laid out so that backward passes are quick: on two cores by a third."""
    denoiser = models.load(params.model.model_dump(), on, compiled=params.run.compile)
    return denoiser.to(memory_format=torch.channels_last)


def fit(nfe: int, params: Params) -> None:
    """Learn from the pairs; write fits/free/<nfe>.fitted.json and its losses beside it."""
    settings, on = params.fit, device(params.run.device)
    denoiser = load(params, on)
    training = Pairs.load(PAIRS[0], on, settings.pairs)
    validation = Pairs.load(PAIRS[1], on, settings.validation_pairs)
    apart, about = distance.build(settings.distance), settings.model_dump()
    scratch = Scratch(fingerprint("fit", nfe, about, params.model.model_dump(), files=(params.model.weights, *PAIRS)))
    some, at_once = training.take(torch.arange(min(TRIED, len(training)))), params.run.fit_batch_size

    def loss(table: Tableau) -> float:
        return gauss_newton.mean_distance(table, denoiser, some, apart, at_once)

    try:
        student = Free(min(starts(settings, denoiser.noise_schedule, nfe), key=loss))
    except UserError as error:
        raise UserError(f"params.yaml: fit: {error}") from None
    history = gauss_newton.fit(
        student,
        (COEFFICIENTS, TIMES),
        denoiser,
        training,
        validation,
        apart,
        batch_size=settings.batch_size,
        at_once=at_once,
        steps=settings.steps,
        seed=settings.seed,
        scratch=scratch,
        description=f"fit {nfe} NFE",
    )
    if not ranks.first():
        return
    write_json(params.fit_path(NAME, f"{nfe}.fitted.history"), history)
    meta = {"family": NAME, **student.start.meta, **origin(denoiser), "params": about}
    student(NAME, meta).save(params.fit_path(NAME, f"{nfe}.fitted"))
    scratch.clear()
