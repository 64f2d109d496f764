"""One learned solver from the pipeline's parameters and pairs: the body of the stages fit_s4s and refine_s4s_alt."""

from collections.abc import Sequence

from s4spipe import distance, models, steps
from s4spipe.distill.fit import Phase, fit
from s4spipe.families import LMS, Times
from s4spipe.files import Scratch, fingerprint, write_json
from s4spipe.models.features import DigitFeatures
from s4spipe.pairs import Pairs
from s4spipe.params import Params, device

PAIRS = ("pairs/train.safetensors", "pairs/validation.safetensors")


def solver(name: str, nfe: int, phases: Sequence[Phase], params: Params) -> None:
    """Learn the solver that the parameters' block `name` describes; write solvers/<name>/<nfe>.json and its losses."""
    settings, on = getattr(params, name), device(params.run.device)
    denoiser = models.load(params.model.model_dump(), on)
    training = Pairs.load(PAIRS[0], on, settings.pairs)
    validation = Pairs.load(PAIRS[1], on, settings.validation_pairs)
    net = DigitFeatures.load(params.fid.features, on) if settings.distance == "perceptual" else None

    noise = denoiser.noise_schedule
    t = steps.build(settings.steps, noise, nfe)
    times = Times(noise, t, settings.decoupling) if hasattr(settings, "decoupling") else None
    student = LMS(settings.init, noise, t, settings.order, times)  # stays on the CPU: a few dozen numbers
    about = settings.model_dump()
    files = (params.model.weights, *PAIRS, *([params.fid.features] if net else []))
    scratch = Scratch(fingerprint(name, nfe, about, params.model.model_dump(), files=files))
    history = fit(
        student,
        phases,
        denoiser,
        training,
        validation,
        distance.build(settings.distance, net),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        radius=settings.radius,
        seed=settings.seed,
        scratch=scratch,
        description=f"{name} {nfe} NFE",
    )
    write_json(f"solvers/{name}/{nfe}.history.json", history)
    meta = {"family": "lms", "steps": settings.steps, "params": about, **student.table()}
    student(name, meta).save(f"solvers/{name}/{nfe}.json")
    scratch.clear()
