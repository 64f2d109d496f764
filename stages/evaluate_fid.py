"""FID and its kin of a solver's samples, and their distance to the teacher's samples from the same noises."""

import click
import numpy as np

from s4spipe import clip, features, fid, stage
from s4spipe.files import read_array, write_json
from s4spipe.params import Params, device

REAL = "statistics/real.safetensors"


@stage.command
@click.argument("solver")
@click.argument("nfe", type=int)
def main(params: Params, solver: str, nfe: int) -> None:
    on, settings = device(params.run.device), params.fid
    net = features.load(settings.network, settings.features, on, settings.mode)
    count = None if settings.count == "all" else settings.count
    samples = read_array(f"samples/{solver}-{nfe}.npy")[:count]
    teacher = read_array(f"samples/teacher-{params.teacher.nfe}.npy")[:count]
    seen = fid.features(samples, net, on)
    own = fid.statistics(seen)
    real = fid.load_statistics(REAL, seen.shape[1]) if settings.real else {}
    against_real = params.reference.source == "real"
    reference = real if against_real else fid.load_statistics(settings.reference, seen.shape[1])
    result = {"fid": fid.frechet_distance(*own, reference["mean"], reference["covariance"])}
    if real:
        result["fid_real"] = fid.frechet_distance(*own, real["mean"], real["covariance"])
    result["teacher_distance"] = rms(samples, teacher)
    if "features" in real:  # of real images, not of their statistics alone
        result["kid"] = fid.kernel_distance(real["features"], seen[: fid.KEPT])
        result["precision"], result["recall"] = fid.precision_recall(real["features"], seen[: fid.KEPT])
    if settings.clip:
        result["clip_score"] = clip.score(samples, params, on)
    # Rounded, so that the last digits of another processor do not count as a change.
    write_json(f"evaluations/{solver}-{nfe}.json", {key: round(float(value), 5) for key, value in result.items()})


def rms(samples: np.ndarray, others: np.ndarray, rows: int = 1000) -> float:
    """Root mean square difference of pixels in [-1, 1], a thousand images at a time."""
    total = 0.0
    for start in range(0, len(samples), rows):
        difference = (samples[start : start + rows].astype(np.float64) - others[start : start + rows]) / 127.5
        total += (difference**2).sum()
    return np.sqrt(total / samples.size)


if __name__ == "__main__":
    main()
