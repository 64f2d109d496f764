"""A sheet of one solver's samples, without the pipeline."""

import time
from pathlib import Path

import torch

from s4spipe import models
from s4spipe.images import to_uint8
from s4spipe.pairs import draw
from s4spipe.params import Params, device
from s4spipe.report import figures
from s4spipe.sampling import sample as run
from s4spipe.tableau import Tableau


@torch.inference_mode()
def sample(params: Params, tableau: Tableau, count: int, seed: int, path: Path) -> float:
    """Write the sheet; returns the seconds that sampling took. The noises are those of the stage `sample`."""
    on = device(params.run.device)
    denoiser = models.load(params.model.model_dump(), on)
    x_T, condition = draw(denoiser, "sample", seed, range(count), params.model.condition != "none")
    started, images = time.perf_counter(), []
    for rows in torch.arange(count).split(params.run.batch_size):
        chosen = None if condition is None else condition[rows].to(on)
        images.append(torch.from_numpy(to_uint8(denoiser.decode(run(denoiser, tableau, x_T[rows].to(on), chosen)))))
    seconds = time.perf_counter() - started
    sheet = figures.sample_sheet([(tableau.name, torch.cat(images).numpy())], f"{tableau.nfe} evaluations")
    figures.save(sheet, path)
    return seconds
