"""What a run will cost: network evaluations, and the images it leaves, from params.yaml alone."""

from math import prod

from s4spipe.distill import adjoint, free, gauss_newton
from s4spipe.params import S4S, Params

SUSTAINED = 50e12  # floating-point operations a second that a large GPU is taken to keep up
NEWTON = adjoint.cost(1, 1 + gauss_newton.PROBES) + 1  # evaluations of a Gauss-Newton step for a pair, by NFE


def network_evaluations(params: Params) -> dict[str, int]:
    """By part of the pipeline; under guidance every evaluation of the denoiser is two of the network.

    Learning counts a backward pass as one evaluation, since it is by the input alone and not by the weights, and the
    forward pass twice, as the backward one repeats it. What is cached already is not subtracted; features, decoding,
    LPIPS and retries of steps are not counted.
    """
    each = 1 if params.model.guidance == 1.0 else 2
    teacher, total = params.teacher, sum(params.nfe)
    parts = {"teacher pairs": (teacher.train + teacher.validation) * teacher.nfe}
    blocks = {"s4s": params.s4s, "s4s_alt": params.arm("s4s_alt")} | {name: params.arm(name) for name in params.learned}
    for name, learn in blocks.items():
        epochs = learn.epochs if isinstance(learn, S4S) else learn.warmup_epochs + 2 * learn.epochs * learn.alternations
        if getattr(learn, "optimizer", "adam") == "gauss_newton":
            parts[f"learning {name}"] = _newton(epochs, learn.batch_size, learn.validation_pairs) * total
            continue
        passes = 3 + (learn.radius > 0)
        parts[f"learning {name}"] = (epochs * (passes * learn.pairs + learn.validation_pairs)) * total
    fit, refine = params.fit, params.refine
    tried = min(free.TRIED, fit.pairs) * len(free.schedules(fit)) * len(free.SHARES)
    of_fit = tried + _newton(fit.steps, fit.batch_size, fit.validation_pairs)
    of_refine = adjoint.cost(1, 2) * refine.pairs
    of_refine += refine.steps * (adjoint.cost(1, 1) * refine.pairs + refine.validation_pairs)
    parts["learning free"] = (of_fit + of_refine) * total
    solvers = len(params.classical) + len(params.learned_solvers)
    parts["samples"] = params.sample.count * (teacher.nfe + solvers * total)
    if params.reference.source == "model":
        parts["reference for FID"] = params.reference.count * params.reference.nfe
    if "gits" in params.searched:
        parts["gits"] = params.gits.noises * params.gits.grid
    return {name: each * count for name, count in parts.items()}


def _newton(steps: int, batch_size: int, validation_pairs: int) -> int:
    """Of a fit by Gauss-Newton, for each evaluation of a sample; validation sees the steps, and means of them."""
    return steps * NEWTON * batch_size + (steps + gauss_newton.KEPT - 1) * validation_pairs


def gpu_hours(params: Params, gflop: float) -> float:
    """At 50 TFLOP/s sustained, a third of what an A100 does in TF32; a measured speed is a better guide."""
    return sum(network_evaluations(params).values()) * gflop * 1e9 / SUSTAINED / 3600


def sample_bytes(params: Params, image: list[int]) -> int:
    """Of all arrays of samples, uint8; DVC's cache holds them once more where the disk cannot share."""
    arrays = 1 + len(params.nfe) * (len(params.classical) + len(params.learned_solvers))
    return arrays * params.sample.count * prod(image)
