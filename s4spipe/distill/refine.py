"""The solver `free`, refined to be distributed as the teacher: the body of the stage `refine`."""

from s4spipe import features, ranks
from s4spipe.distill import frechet
from s4spipe.distill.free import NAME, load
from s4spipe.families import Free
from s4spipe.files import Scratch, fingerprint, write_json
from s4spipe.pairs import PAIRS, Pairs
from s4spipe.params import Params, device
from s4spipe.tableau import Tableau


def refine(nfe: int, params: Params) -> None:
    """Refine what `fit` has learned; write fits/free/<nfe>.json and its losses beside it."""
    settings, on, fitted = params.refine, device(params.run.device), params.fit_path(NAME, f"{nfe}.fitted")
    denoiser = load(params, on)
    training = Pairs.load(PAIRS[0], on, settings.pairs)
    validation = Pairs.load(PAIRS[1], on, settings.validation_pairs)
    seeing, about = params.perceptual, settings.model_dump()
    net = features.load(seeing.network, seeing.weights, on)
    files = (params.model.weights, fitted, seeing.weights, *PAIRS)
    scratch = Scratch(fingerprint("refine", nfe, about, params.model.model_dump(), files=files))
    start = Tableau.load(fitted)
    student = Free(start)
    history = frechet.refine(
        student,
        denoiser,
        training,
        validation,
        lambda x: net.embed(denoiser.decode(x)),
        at_once=params.run.fit_batch_size,
        steps=settings.steps,
        seed=settings.seed,
        scratch=scratch,
        description=f"refine {nfe} NFE",
    )
    if not ranks.first():
        return
    write_json(params.fit_path(NAME, f"{nfe}.history"), history)
    student(NAME, start.meta | {"refined": about}).save(params.fit_path(NAME, nfe))
    scratch.clear()
