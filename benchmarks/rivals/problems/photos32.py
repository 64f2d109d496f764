"""A U-Net of photographs, 32x32x3, that predicts the image, in continuous time and a cosine's noise."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from benchmarks.rivals.problems import networks
from benchmarks.rivals.problems.pictures import Patches
from s4spipe.models import Denoiser
from s4spipe.models.noise import VPCosine

NAMES = ("china.jpg", "flower.jpg", "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
PATCHES = Patches(dict.fromkeys(NAMES, 3), 3, 32)
SHUFFLE = 4  # the network sees 8x8x48, which keeps distances, and so the ODE
DETAIL = 0.05


class Sample(Denoiser):
    """D(x, t) = c_skip x + (1 - c_skip) F(x, lambda), of a network F that predicts x_0, with the time as lambda.

    A network that predicts noise or a velocity would have to pass 48 channels of noise on, and has 40 of its own. Those
    are enough for images. What details they lose, of a size of DETAIL, c_skip = DETAIL^2 / (DETAIL^2 + sigma^2) keeps.

    Attributes:
        least_sigma: below this, training weighs errors as at this level.
    """

    noise_schedule = VPCosine()
    sample_shape = (3 * SHUFFLE**2, 8, 8)
    least_sigma = 0.2

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        time, dtype = t.double(), next(self.net.parameters()).dtype
        shown = 100 * self.noise_schedule.lambda_(time)
        out = self.net(x.to(dtype), shown.to(dtype)).sample.to(x.dtype)
        skip = DETAIL**2 / (DETAIL**2 + self.noise_schedule.sigma(time) ** 2)
        return torch.lerp(out, x, skip.to(x.dtype)[:, None, None, None])

    def encode(self, images: Tensor) -> Tensor:
        return pixel_unshuffle(images, SHUFFLE)

    def decode(self, x: Tensor) -> Tensor:
        return pixel_shuffle(x, SHUFFLE)


def network(weights: str) -> nn.Module:
    """The network with the weights of a file; before its training if `weights` is empty."""
    return networks.trained(networks.unet(3 * SHUFFLE**2, (40, 48)), weights)


def denoiser(net: nn.Module) -> Denoiser:
    return Sample(net)
