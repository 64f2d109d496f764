"""One learned solver from the pipeline's parameters and pairs: the body of every stage that learns."""

from s4spipe import distance, features, models, ranks
from s4spipe.distill import gauss_newton
from s4spipe.distill.fit import COEFFICIENTS, TIMES, Phase, fit, s4s, s4s_alt
from s4spipe.families import FAMILIES, Times
from s4spipe.files import Scratch, fingerprint, write_json
from s4spipe.pairs import PAIRS, Pairs, origin
from s4spipe.params import S4S, Arm, Params, device
from s4spipe.tableau import Tableau


def phases(settings: S4S | Arm) -> list[Phase]:
    """What learns when; an arm that learns one thing alone has all the epochs of an alternation for it."""
    if isinstance(settings, S4S):
        return s4s(settings.epochs)
    if settings.learns == "both":
        return s4s_alt(settings.alternations, settings.epochs, settings.warmup_epochs, settings.joint)
    total = settings.warmup_epochs + 2 * settings.epochs * settings.alternations
    return [Phase((TIMES if settings.learns == "times" else COEFFICIENTS,), total)]


def solver(name: str, nfe: int, settings: S4S | Arm, params: Params) -> None:
    """Learn the solver that `settings` describe, from the steps of fits/<name>/<nfe>.start.json; write
    fits/<name>/<nfe>.json and its losses beside it."""
    on = device(params.run.device)
    denoiser = models.load(params.model.model_dump(), on, compiled=params.run.compile)
    training = Pairs.load(PAIRS[0], on, settings.pairs)
    validation = Pairs.load(PAIRS[1], on, settings.validation_pairs)
    seeing = params.perceptual if settings.distance == "perceptual" else None
    net = features.load(seeing.network, seeing.weights, on) if seeing else None
    apart = distance.build(settings.distance, net, denoiser.decode)

    start = params.fit_path(name, f"{nfe}.start")
    noise, t = denoiser.noise_schedule, Tableau.load(start).t
    plan = phases(settings)
    times = Times(noise, t, settings.decoupling) if any(TIMES in phase.learns for phase in plan) else None
    family = getattr(settings, "family", "lms")
    rows = (getattr(settings, key, False) for key in ("consistent", "shared"))
    # It stays on the CPU: a few dozen numbers.
    student = FAMILIES[family](settings.init, noise, t, nfe, settings.order, times, *rows)
    if getattr(settings, "gaussian", False):
        student.randomise(settings.seed)
    about = settings.model_dump()
    files = (params.model.weights, start, *PAIRS, *([seeing.weights] if seeing else []))
    scratch = Scratch(fingerprint(name, nfe, about, params.model.model_dump(), files=files))
    given = (denoiser, training, validation, apart)
    options = {"batch_size": settings.batch_size, "at_once": params.run.fit_batch_size, "seed": settings.seed}
    options |= {"scratch": scratch, "description": f"{name} {nfe} NFE"}
    if getattr(settings, "optimizer", "adam") == "gauss_newton":
        learns = tuple(dict.fromkeys(what for phase in plan for what in phase.learns))
        history = gauss_newton.fit(student, learns, *given, steps=sum(phase.epochs for phase in plan), **options)
    else:
        rates = {"learning_rate": settings.learning_rate, "radius": settings.radius}
        history = fit(student, plan, *given, **rates, **options)
    if not ranks.first():
        return
    write_json(params.fit_path(name, f"{nfe}.history"), history)
    meta = {"family": family, "steps": settings.steps, **origin(denoiser), "params": about, **student.table()}
    student(name, meta).save(params.fit_path(name, nfe))
    scratch.clear()
