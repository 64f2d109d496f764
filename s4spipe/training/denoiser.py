"""Training of the embedded denoiser of handwritten digits."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s4spipe.runtime.scratch import Scratch
from s4spipe.training.digits import images
from s4spipe.training.unet import SIGMA_DATA, UNET, UNetTraining, train_unet

NO_LABEL = 10


@dataclass(frozen=True)
class DigitsTraining(UNetTraining):
    """How the denoiser of digits is trained.

    Attributes:
        label_dropout: share of the training images without their label, so that the model is unconditional too.
    """

    label_dropout: float


def train(path: str, training: DigitsTraining, device: torch.device, scratch: Scratch) -> None:
    """Train the denoiser and write it to `path`; an interrupted run resumes from what it left in `scratch`."""
    x0, labels = images()

    def draw(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        pick = torch.tensor(rng.integers(len(x0), size=n))
        dropped = torch.tensor(rng.random(n) < training.label_dropout)
        return x0[pick], torch.where(dropped, NO_LABEL, labels[pick])

    train_unet(path, {"unet": UNET, "sigma_data": SIGMA_DATA}, draw, training, device, scratch)
