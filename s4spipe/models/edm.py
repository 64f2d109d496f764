"""EDM preconditioning around a diffusers U-Net (Karras et al. 2022, arXiv 2206.00364, Table 1)."""

import torch
from torch import Tensor, nn

from s4spipe.noise import VE


class EDMDenoiser(nn.Module):
    """D(x, sigma, condition): the x0 prediction of a U-Net F trained under EDM preconditioning.

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), with c_noise = ln(sigma).

    Under guidance w it is D(no label) + w (D(label) - D(no label)) (Ho and Salimans 2022, arXiv 2207.12598), the two
    evaluated as one batch; w = 1 is the plain conditional model.

    Attributes: `noise_schedule`, `sample_shape` (C, H, W), `num_classes` (0: unconditional), `no_label` (the class
    index that stands for "no label").
    """

    noise_schedule = VE(sigma_min=0.002, sigma_max=80.0)

    def __init__(
        self,
        net: nn.Module,
        sigma_data: float,
        sample_shape: tuple[int, ...],
        num_classes: int = 0,
        guidance: float = 1.0,
    ):
        super().__init__()
        self.net, self.sigma_data, self.guidance = net, sigma_data, guidance
        self.sample_shape, self.num_classes, self.no_label = tuple(sample_shape), num_classes, num_classes

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t = sigma (scalar or [B]), condition: class indices [B] or None. Returns x0 prediction."""
        sigma = t.to(x.dtype).expand(len(x))
        labels = self.no_label if condition is None else condition
        if self.num_classes:
            labels = torch.as_tensor(labels, device=x.device).expand(len(x))
        if condition is None or self.guidance == 1.0:
            return self.precondition(x, sigma, labels)
        nothing = torch.full_like(labels, self.no_label)
        both = self.precondition(x.repeat(2, 1, 1, 1), sigma.repeat(2), torch.cat([labels, nothing]))
        conditional, unconditional = both.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def precondition(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        s = sigma.view(-1, *[1] * (x.ndim - 1))
        c_skip = self.sigma_data**2 / (s**2 + self.sigma_data**2)
        c_out = s * self.sigma_data / (s**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (s**2 + self.sigma_data**2).sqrt()
        dtype = next(self.net.parameters()).dtype
        out = self.net((c_in * x).to(dtype), sigma.log().to(dtype), labels).sample
        return c_skip * x + c_out * out.to(x.dtype)
