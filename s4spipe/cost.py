"""What a run will cost: network evaluations, and the images it leaves, from params.yaml alone."""

from math import prod

from s4spipe.params import S4S, Params

SUSTAINED = 50e12  # floating-point operations a second that a large GPU is taken to keep up


def network_evaluations(params: Params) -> dict[str, int]:
    """By part of the pipeline; under guidance every evaluation of the denoiser is two of the network.

    Learning counts a backward pass as two evaluations, and the forward pass twice, as the backward one repeats it. What
    is cached already is not subtracted; features, decoding, LPIPS and a Gauss-Newton step's retries are not counted.
    """
    each = 1 if params.model.guidance == 1.0 else 2
    teacher, total = params.teacher, sum(params.nfe)
    parts = {"teacher pairs": (teacher.train + teacher.validation) * teacher.nfe}
    blocks = {"s4s": params.s4s, "s4s_alt": params.arm("s4s_alt")} | {name: params.arm(name) for name in params.learned}
    for name, learn in blocks.items():
        epochs = learn.epochs if isinstance(learn, S4S) else learn.warmup_epochs + 2 * learn.epochs * learn.alternations
        if getattr(learn, "optimizer", "adam") == "gauss_newton":
            steps = (learn.batch_size * (2 * n + _perturbed(n)) + learn.validation_pairs * n for n in params.nfe)
            parts[f"learning {name}"] = epochs * sum(steps)
            continue
        passes = 4 + (learn.radius > 0)
        parts[f"learning {name}"] = (epochs * (passes * learn.pairs + learn.validation_pairs)) * total
    solvers = len(params.classical) + len(params.learned_solvers)
    parts["samples"] = params.sample.count * (teacher.nfe + solvers * total)
    if params.reference.source == "model":
        parts["reference for FID"] = params.reference.count * params.reference.nfe
    if "gits" in params.searched:
        parts["gits"] = params.gits.noises * params.gits.grid
    return {name: each * count for name, count in parts.items()}


def _perturbed(nfe: int) -> int:
    """The evaluations along the parameters of a Gauss-Newton step: those of GS with learned times, j (j + 1) and the
    times' nfe + 1 + j before evaluation j > 0; other families have fewer."""
    return sum(j * (j + 1) + nfe + 1 + j for j in range(1, nfe))


def gpu_hours(params: Params, gflop: float) -> float:
    """At 50 TFLOP/s sustained, a third of what an A100 does in TF32; a measured speed is a better guide."""
    return sum(network_evaluations(params).values()) * gflop * 1e9 / SUSTAINED / 3600


def sample_bytes(params: Params, image: list[int]) -> int:
    """Of all arrays of samples, uint8; DVC's cache holds them once more where the disk cannot share."""
    arrays = 1 + len(params.nfe) * (len(params.classical) + len(params.learned_solvers))
    return arrays * params.sample.count * prod(image)
