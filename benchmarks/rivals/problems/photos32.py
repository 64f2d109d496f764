"""A U-Net of photographs, 32x32x3, that predicts the velocity in continuous time, of a cosine's noise."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from benchmarks.rivals.problems import networks
from benchmarks.rivals.problems.pictures import Patches
from s4spipe.models import Denoiser
from s4spipe.models.noise import VPCosine

NAMES = ("china.jpg", "flower.jpg", "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
PATCHES = Patches(dict.fromkeys(NAMES, 3), 3, 32)
SHUFFLE = 4  # the network sees 8x8x48, which keeps distances, and so the ODE


class Velocity(Denoiser):
    """D(x, t) = alpha x - sigma v(x, lambda) around a network that predicts v = alpha eps - sigma x_0.

    See Salimans and Ho 2022, arXiv 2202.00512. Its time is lambda, in hundredths.
    """

    noise_schedule = VPCosine()
    sample_shape = (3 * SHUFFLE**2, 8, 8)

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        time, dtype = t.double(), next(self.net.parameters()).dtype
        alpha, sigma = (f(time).to(x.dtype)[:, None, None, None] for f in (self.noise_schedule.alpha,
                                                                           self.noise_schedule.sigma))  # fmt: skip
        shown = 100 * self.noise_schedule.lambda_(time)
        return alpha * x - sigma * self.net(x.to(dtype), shown.to(dtype)).sample.to(x.dtype)

    def encode(self, images: Tensor) -> Tensor:
        return pixel_unshuffle(images, SHUFFLE)

    def decode(self, x: Tensor) -> Tensor:
        return pixel_shuffle(x, SHUFFLE)


def network(weights: str = "") -> nn.Module:
    """The network with the weights of a file, or before its training."""
    return networks.trained(networks.unet(3 * SHUFFLE**2, (40, 48)), weights)


def denoiser(net: nn.Module) -> Denoiser:
    return Velocity(net)
