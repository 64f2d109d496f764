"""A class-conditional U-Net of grey photographs and faces, 16x16, that predicts the noise, sampled with guidance 3."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from benchmarks.rivals.problems import networks
from benchmarks.rivals.problems.pictures import FACES, Patches
from s4spipe.models import Denoiser, ModelSettings
from s4spipe.models.callable import DiffusersInterface

NAMES = ("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "page.png", "text.png", FACES)
PATCHES = Patches(dict.fromkeys(NAMES, 2), 1, 16)  # the photograph is the class
SHUFFLE = 2  # the network sees 8x8x4, which keeps distances, and so the ODE, and costs a quarter
SETTINGS = {
    "shape": [4, 8, 8],
    "guidance": 3.0,
    "scheduler": {"prediction_type": "epsilon", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
}


class Labelled(nn.Module):
    """A U-Net with an embedding for each class, and one for none."""

    num_classes = len(NAMES)

    def __init__(self) -> None:
        super().__init__()
        self.unet = networks.unet(SHUFFLE**2, (32, 48), self.num_classes + 1)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if class_labels is None:
            class_labels = torch.full((len(sample),), self.num_classes, device=sample.device)
        return self.unet(sample, timestep, class_labels).sample

    def encode(self, images: Tensor) -> Tensor:
        return pixel_unshuffle(images, SHUFFLE)

    def decode(self, x: Tensor) -> Tensor:
        return pixel_shuffle(x, SHUFFLE)


def network(weights: str) -> Labelled:
    """The network with the weights of a file; before its training if `weights` is empty."""
    return networks.trained(Labelled(), weights)


def denoiser(net: nn.Module) -> Denoiser:
    return DiffusersInterface(net, ModelSettings(weights="", kind="callable", **SETTINGS))
