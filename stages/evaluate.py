"""Measure a solver's samples: FID and related metrics, and the distance to the teacher's samples from the same noises.
Also keep a row of samples and a few trajectories for the report."""

import math
from collections.abc import Iterable

import click
import numpy as np
import torch

from s4spipe.evaluation import clip, fid, thumbnails, trajectories
from s4spipe.features.base import frechet
from s4spipe.pipeline import stage
from s4spipe.pipeline.layout import NONE, Cell
from s4spipe.pipeline.schema import Params
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_array, read_json, read_tensors, write_json


@stage.divided
@click.argument("solver")
@click.argument("nfe", type=int)
def main(params: Params, solver: str, nfe: int) -> None:
    settings, places, cell = params.fid, stage.layout(params), Cell(solver, nfe)
    teacher = Cell("teacher", params.teacher.nfe)
    count = None if settings.count == "all" else settings.count
    samples = read_array(places.samples(cell, "images.npy"))[:count]
    device = stage.device(params)
    net = stage.features_network(params, "fid", device)
    parts = fid.features(samples, net, device)
    if not distributed.is_main():
        for _ in parts:  # makes its share of them
            pass
        return
    result = quality(params, parts)
    result["teacher_distance"] = rms(samples, read_array(places.samples(teacher, "images.npy"))[:count])
    if settings.clip != "none":
        prompts = read_json(places.samples(cell, "prompts.json"))
        result["clip_score"] = clip.score(samples, prompts, settings.clip, device)
    result = rounded(result, cell)
    states, ideal = (
        read_tensors(places.samples(c, "states.safetensors"), "states")[0]["states"] for c in (cell, teacher)
    )
    thumbnails.write(places.evaluation(cell, "samples.png"), samples)
    write_json(
        places.evaluation(cell, "trajectories.json"), trajectories.in_plane(states, ideal).numpy().round(4).tolist()
    )
    about = {"samples": len(samples), "thumbnails": min(thumbnails.LENGTH, len(samples))}
    write_json(places.evaluation(cell, "metrics.json"), result | read_json(places.samples(cell, "about.json")) | about)


def quality(params: Params, parts: Iterable[torch.Tensor]) -> dict[str, float]:
    """FID from the samples' features, which come in parts; if there are real images, also FID, KID, precision and
    recall against them."""
    places, has_real = stage.layout(params), params.fid.real != NONE
    own, rows = fid.statistics_and_rows(parts, np.arange(fid.MOST if has_real else 0))
    dimension = len(own[0])
    real = fid.load_statistics(places.real, dimension) if has_real else {}
    against_real = params.reference.source == "real"
    reference = real if against_real else fid.load_statistics(places.reference, dimension)
    result = {"fid": frechet.distance(own, (reference["mean"], reference["covariance"]))}
    if real:
        result["fid_real"] = frechet.distance(own, (real["mean"], real["covariance"]))
    if "features" in real:  # real images, not only their statistics
        known, first = real["features"].numpy(), rows.double().numpy()
        result["kid"] = fid.kernel_distance(known, first)
        result["precision"], result["recall"] = fid.precision_recall(known, first)
    return result


def rounded(result: dict[str, float], cell: Cell) -> dict[str, float]:
    """Metrics with 5 digits, so that the last ones on another processor do not count as a change.

    Raises UserError for one that is not finite.
    """
    for key, value in result.items():
        if not math.isfinite(value):
            raise UserError(f"{cell}: its {key} is not finite; check the images or statistics that fid.real names, and "
                            "the weights of fid.features")  # fmt: skip
    return {key: round(float(value), 5) for key, value in result.items()}


def rms(samples: np.ndarray, others: np.ndarray, rows: int = 1000) -> float:
    """The root mean square difference of pixels in [-1, 1], computed a thousand images at a time."""
    total = 0.0
    for start in range(0, len(samples), rows):
        difference = (samples[start : start + rows].astype(np.float64) - others[start : start + rows]) / 127.5
        total += (difference**2).sum()
    return float(np.sqrt(total / samples.size))


if __name__ == "__main__":
    main()
