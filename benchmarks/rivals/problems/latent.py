"""A U-Net in the latents of a small autoencoder, of what a microscope, a telescope and an eye doctor see, 32x32x3."""

from torch import Tensor, nn

from benchmarks.rivals.problems import networks
from benchmarks.rivals.problems.pictures import Patches
from s4spipe.models import Denoiser, ModelSettings
from s4spipe.models.callable import DiffusersInterface

PATCHES = Patches({"hubble_deep_field.jpg": 2, "ihc.png": 2, "retina.jpg": 4}, 3, 32)
SETTINGS = {  # Stable Diffusion's noise
    "shape": [4, 8, 8],
    "scheduler": {
        "prediction_type": "epsilon",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
}


class Latent(nn.Module):
    """A U-Net of latents, with the autoencoder that they are of."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = networks.unet(networks.Autoencoder.LATENTS, (32, 64))
        self.autoencoder = networks.Autoencoder()

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return self.unet(sample, timestep).sample

    def encode(self, images: Tensor) -> Tensor:
        return self.autoencoder.encode(images)

    def decode(self, x: Tensor) -> Tensor:
        return self.autoencoder.decode(x)


def network(weights: str) -> Latent:
    """The network with the weights of a file; before its training if `weights` is empty."""
    return networks.trained(Latent(), weights)


def denoiser(net: nn.Module) -> Denoiser:
    return DiffusersInterface(net, ModelSettings(weights="", kind="callable", **SETTINGS))
