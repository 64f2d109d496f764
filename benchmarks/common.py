"""The model of params.yaml, loaded once for a benchmark."""

from functools import cached_property

import numpy as np
import torch

from s4spipe import features, fid, models
from s4spipe.images import to_uint8
from s4spipe.pairs import draw
from s4spipe.params import Params, device
from s4spipe.sampling import sample
from s4spipe.tableau import Tableau


class Setting:
    """Attributes: `params`, the `device`, the `denoiser` on it, and its `noise` schedule."""

    def __init__(self, params: Params):
        self.params, self.device = params, device(params.run.device)
        self.denoiser = models.load(self.params.model.model_dump(), self.device)
        self.noise = self.denoiser.noise_schedule

    def draw(self, stream: str, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The first noises and labels of a stream, on the device."""
        return tuple(tensor.to(self.device) for tensor in draw(self.denoiser, stream, seed, range(count)))

    @cached_property
    def net(self) -> torch.nn.Module:
        settings = self.params.fid
        return features.load(settings.network, settings.features, self.device, settings.mode)

    @cached_property
    def references(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        real = fid.real(self.params.fid.real, self.net, self.device)
        statistics = {"fid": fid.load_statistics(self.params.fid.reference), "fid_real": real}
        return {
            key: tuple(np.asarray(found[part]) for part in ("mean", "covariance")) for key, found in statistics.items()
        }

    @torch.inference_mode()
    def fids(self, tableau: Tableau, x_T: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """`fid` and `fid_real` of the solver's samples."""
        size = self.params.run.batch_size
        batches = zip(x_T.split(size), labels.split(size), strict=True)
        images = np.concatenate([to_uint8(sample(self.denoiser, tableau, x, condition)) for x, condition in batches])
        generated = fid.statistics(fid.features(images, self.net, self.device))
        return {key: fid.frechet_distance(*generated, *reference) for key, reference in self.references.items()}
