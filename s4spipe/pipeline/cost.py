"""Estimates of the cost of a run from params.yaml alone: network evaluations and disk space."""

from math import prod

from s4spipe.learning import adjoint, breeding, gauss_newton, refinement, starts, whitening
from s4spipe.pipeline import resolve
from s4spipe.pipeline.schema import FRECHET, GENOME, Learner, Params
from s4spipe.solvers.best_schedules import USUAL

SUSTAINED = 50e12  # assumed sustained floating-point operations per second of a large GPU
TANGENT = 3  # evaluations that take as long as one with a derivative in forward mode
# Evaluations of a Gauss-Newton step, per pair and NFE: one linearisation and one trial of the step.
NEWTON_STEP = adjoint.evaluations(1, 1 + gauss_newton.PROBES) + 1


def network_evaluations(params: Params) -> dict[str, int]:
    """Network evaluations by part of the pipeline. Under guidance, every evaluation of the denoiser is two of the
    network. Of rk45, which chooses its evaluations by itself, it is the most that its `nfe` allows.

    In learning, a backward pass counts as one evaluation, since it differentiates by the input and not by the weights.
    The forward pass counts twice, because the backward pass repeats it. Cached results are not subtracted. Features,
    decoding, LPIPS and retried steps are not counted.
    """
    each = 1 if params.model.guidance == 1.0 else 2
    teacher, total = params.teacher, sum(params.nfe)
    parts = {"teacher pairs": (teacher.train + teacher.validation) * teacher.nfe}
    for name in resolve.learned_solvers(params):
        settings, start = resolve.learner(params, name), params.starts[name]
        candidates = len(start.schedules) * max(1, len(start.skip))
        tried = min(starts.TRIAL_PAIRS, settings.pairs) * candidates if candidates > 1 else 0
        parts[f"learning {name}"] = (tried + _of_learner(settings)) * total
    refine = params.refine
    begun = (1 + adjoint.evaluations(1, 2)) * refine.pairs
    step = adjoint.evaluations(1, 1) * refine.pairs + refine.validation_pairs
    of_refine = sum(nfe * (begun + refinement.steps_at(refine.steps, nfe) * step) for nfe in params.nfe)
    for name in (*params.refined, *params.spanning):
        parts[f"learning {name}"] += of_refine
    parts["samples"] = params.sample.count * (teacher.nfe + len(resolve.solvers(params)) * total)
    if params.reference.source == "model":
        parts["reference for FID"] = params.reference.count * params.reference.nfe
    if "gits" in params.searched:
        parts["gits"] = params.gits.noises * params.gits.grid
    if params.statistics_for:
        own = params.statistics
        parts["statistics"] = own.samples * (own.nfe + 2 * TANGENT * own.grid)
    return {name: each * count for name, count in parts.items()}


def _of_learner(settings: Learner) -> int:
    """Network evaluations of learning, per evaluation of a sample."""
    if settings.optimizer == "gauss_newton":  # validation sees the steps, and means of them
        seen = settings.epochs + gauss_newton.AVERAGED - 1
        fit = settings.epochs * NEWTON_STEP * settings.batch_size + seen * settings.validation_pairs
        plain = settings.bands == 1 and settings.channels == "common"
        return fit if plain else 2 * fit  # of plain numbers, and then of bands
    if settings.optimizer in ("search", "evolution"):
        return _without_gradients(settings)
    epochs, whitened = settings.epochs, int(settings.learns != "times")
    if settings.learns == "alternating":
        epochs, whitened = 2 * settings.epochs * settings.alternations, settings.alternations
    if settings.learns in ("alternating", "joint"):
        epochs += settings.warmup_epochs
    each = (3 + (settings.radius > 0)) * settings.pairs + settings.validation_pairs
    return epochs * each + whitened * whitening.EVALUATIONS


def _without_gradients(settings: Learner) -> int:
    """The same of a search or an evolution. Of a search, the best so far may be another after every generation."""
    unit = settings.pairs + settings.validation_pairs if settings.reward or settings.distance == FRECHET else 0
    if settings.optimizer == "evolution":
        tried = 2 * settings.epochs * settings.batch_size
    else:
        seeds = len(breeding.SEEDS) if settings.family == GENOME else 1
        tried = seeds * len(USUAL) + settings.epochs * settings.batch_size
    return tried * settings.pairs + (settings.epochs + 1) * settings.validation_pairs + unit


def gpu_hours(params: Params, gflop: float) -> float:
    """GPU hours at a sustained 50 TFLOP/s, a third of an A100's peak in TF32. A measured speed is a better guide."""
    return sum(network_evaluations(params).values()) * gflop * 1e9 / SUSTAINED / 3600


def sample_bytes(params: Params, image: list[int]) -> int:
    """Bytes of all samples, uint8. DVC's cache holds them a second time on disks that cannot link files."""
    return len(resolve.cells(params)) * params.sample.count * prod(image)
