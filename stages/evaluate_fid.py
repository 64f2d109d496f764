"""What is measured of a solver: FID and its kin, the distance to the teacher's samples from the same noises, the cost;
with a row of samples, a few trajectories, and for a learned solver its file with what was measured of it."""

import dataclasses

import click
import numpy as np

from s4spipe import clip, features, fid, ranks, stage, strip, trajectories
from s4spipe.files import read_array, read_json, read_tensors, write_json
from s4spipe.params import NO_IMAGES, Params, device
from s4spipe.tableau import Tableau

REAL = "statistics/real.safetensors"


@stage.divided
@click.argument("solver")
@click.argument("nfe", type=int)
def main(params: Params, solver: str, nfe: int) -> None:
    cell, teacher, settings = f"{solver}-{nfe}", f"teacher-{params.teacher.nfe}", params.fid
    count = None if settings.count == "all" else settings.count
    samples = read_array(f"samples/{cell}.npy")[:count]
    on = device(params.run.device)
    seen = fid.features(samples, features.load(settings.network, settings.features, on, settings.mode), on)
    if not ranks.first():
        return
    result = quality(params, seen)
    result["teacher_distance"] = rms(samples, read_array(f"samples/{teacher}.npy")[:count])
    if settings.clip:
        result["clip_score"] = clip.score(samples, params, on)
    # Rounded, so that the last digits of another processor do not count as a change.
    result = {key: round(float(value), 5) for key, value in result.items()}
    tableau = Tableau.load(params.table_path(solver, nfe))
    about = read_json(f"samples/{cell}.json")
    cost = {key: about[key] for key in ("nfe", "depth", "network_calls", "seconds_per_sample")}
    path, ideal = (read_tensors(f"samples/{name}.safetensors")[0]["states"] for name in (cell, teacher))
    plane = trajectories.in_plane(path, ideal).numpy().round(4).tolist()
    strip.write(f"evaluations/{cell}.png", samples)
    shown = {"images": min(strip.LENGTH, len(samples)), "trajectories": plane}
    if solver in params.learned_solvers:
        shown["history"] = read_json(params.fit_path(solver, f"{nfe}.history"))
        measured = result | {"samples": len(samples), "network": settings.network, "mode": settings.mode}
        measured["reference"] = params.reference.source
        dataclasses.replace(tableau, meta=tableau.meta | {"measured": measured}).save(params.solver_path(solver, nfe))
    write_json(f"evaluations/{cell}.json", result | cost | {"steps": tableau.meta["steps"]} | shown)


def quality(params: Params, seen: np.ndarray) -> dict[str, float]:
    """FID of the samples' features `seen`, and against real images, if there are any, KID, precision and recall."""
    own = fid.statistics(seen)
    real = fid.load_statistics(REAL, seen.shape[1]) if params.fid.real != NO_IMAGES else {}
    against_real = params.reference.source == "real"
    reference = real if against_real else fid.load_statistics(params.fid.reference, seen.shape[1])
    result = {"fid": fid.frechet_distance(*own, reference["mean"], reference["covariance"])}
    if real:
        result["fid_real"] = fid.frechet_distance(*own, real["mean"], real["covariance"])
    if "features" in real:  # of real images, not of their statistics alone
        result["kid"] = fid.kernel_distance(real["features"], seen[: fid.KEPT])
        result["precision"], result["recall"] = fid.precision_recall(real["features"], seen[: fid.KEPT])
    return result


def rms(samples: np.ndarray, others: np.ndarray, rows: int = 1000) -> float:
    """Root mean square difference of pixels in [-1, 1], a thousand images at a time."""
    total = 0.0
    for start in range(0, len(samples), rows):
        difference = (samples[start : start + rows].astype(np.float64) - others[start : start + rows]) / 127.5
        total += (difference**2).sum()
    return np.sqrt(total / samples.size)


if __name__ == "__main__":
    main()
