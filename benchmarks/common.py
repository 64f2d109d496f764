"""The model of params.yaml, loaded once for a benchmark."""

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from s4spipe.evaluation import fid, real
from s4spipe.features.base import frechet, loading
from s4spipe.features.base.frechet import Statistics
from s4spipe.learning.pairs import Pairs
from s4spipe.pipeline import stage
from s4spipe.pipeline.schema import Params
from s4spipe.sampling.batches import draw, synchronize
from s4spipe.sampling.images import to_uint8
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau

PAGES = Path("docs/results")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The wall-clock time of some work, with what it leaves running on a GPU."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


class Setting:
    """The model and what is measured with it.

    Attributes:
        params: the parameters of ./params.yaml.
        places: where the run lies.
        denoiser: the model, on its `device`.
        noise: its noise schedule.
    """

    def __init__(self, params: Params, channels_last: bool = False):
        self.params, self.places = params, stage.layout(params)
        self.denoiser = stage.load_model(params, channels_last=channels_last)
        self.device, self.noise = self.denoiser.device, self.denoiser.noise_schedule

    def draw(self, stream: str, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The first noises and conditions of a stream."""
        return draw(self.denoiser, stream, seed, range(count))

    @property
    def pair_files(self) -> tuple[Path, Path]:
        """The teacher's pairs, for training and for validation."""
        return self.places.pairs("train"), self.places.pairs("validation")

    def pairs(self, training: int, validation: int) -> tuple[Pairs, Pairs]:
        """The first pairs of both files."""
        first, second = self.pair_files
        return Pairs.load(first, self.device, training), Pairs.load(second, self.device, validation)

    @cached_property
    def net(self) -> torch.nn.Module:
        settings = self.params.fid
        return loading.load(settings.network, settings.features, self.device, settings.mode)

    @cached_property
    def references(self) -> dict[str, Statistics]:
        found = {
            "fid": fid.load_statistics(self.places.reference),
            "fid_real": real.read(self.params.fid.real, self.net, self.device),
        }
        return {key: (statistics["mean"], statistics["covariance"]) for key, statistics in found.items()}

    @torch.inference_mode()
    def fids(self, tableau: Tableau, x_T: torch.Tensor, condition: torch.Tensor | None) -> dict[str, float]:
        """`fid` and `fid_real` of the solver's samples."""
        images = []
        for index in torch.arange(len(x_T), device=self.device).split(self.params.run.batch_size):
            some = None if condition is None else condition[index]
            images.append(to_uint8(self.denoiser.decode(sample(self.denoiser, tableau, x_T[index], some))))
        generated = fid.statistics(fid.features(np.concatenate(images), self.net, self.device))
        return {key: frechet.distance(generated, reference) for key, reference in self.references.items()}
