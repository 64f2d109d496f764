"""EDM preconditioning around a diffusers U-Net (Karras et al. 2022, arXiv 2206.00364, Table 1)."""

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.noise import VE


class EDMDenoiser(Denoiser):
    """D(x, sigma, condition): the x0 prediction of a U-Net F trained under EDM preconditioning.

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), with c_noise = ln(sigma).

    Args:
        net: F, a diffusers U-Net. The index after the last class stands for no label.
        sigma_data: standard deviation of the pixels of the training images, in [-1, 1].
        sample_shape: [C, H, W] of one x.
        num_classes: number of classes; 0 for an unconditional model.
        shuffle: above 1, every shuffle^2 channels of x are the pixels of a square with that side, from which torch's
            pixel_shuffle makes the image.
    """

    noise_schedule = VE(sigma_min=0.002, sigma_max=80.0)

    def __init__(
        self,
        net: nn.Module,
        sigma_data: float,
        sample_shape: tuple[int, ...],
        num_classes: int = 0,
        shuffle: int = 1,
    ):
        super().__init__()
        self.net, self.sigma_data, self.shuffle = net, sigma_data, shuffle
        self.sample_shape, self.num_classes = tuple(sample_shape), num_classes
        self.null_condition = num_classes if num_classes else None

    def decode(self, x: Tensor) -> Tensor:
        return pixel_shuffle(x, self.shuffle)

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        s = t.view(-1, *[1] * (x.ndim - 1))
        c_skip = self.sigma_data**2 / (s**2 + self.sigma_data**2)
        c_out = s * self.sigma_data / (s**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (s**2 + self.sigma_data**2).sqrt()
        dtype = next(self.net.parameters()).dtype
        out = self.net((c_in * x).to(dtype), t.log().to(dtype), condition).sample
        return c_skip * x + c_out * out.to(x.dtype)
