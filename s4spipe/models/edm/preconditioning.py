"""EDM's, VP's and VE's preconditioning around a network (Karras et al. 2022, arXiv 2206.00364, Table 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from s4spipe.models.edm import unet
from s4spipe.runtime.errors import unknown

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]  # c_skip, c_out, c_in, c_noise, each [B]
# Arguments of a checkpoint that matter to its sampler or to speed, but not to the denoiser.
IGNORED = ("use_fp16", "sigma_min", "sigma_max", "epsilon_t")


@dataclass(frozen=True)
class EDM:
    """EDM's preconditioning. sigma_data is the standard deviation of the data."""

    sigma_data: float = 0.5

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """At sigma [B]."""
        total = (sigma**2 + self.sigma_data**2).sqrt()
        return self.sigma_data**2 / total**2, sigma * self.sigma_data / total, 1 / total, sigma.log() / 4


@dataclass(frozen=True)
class VP:
    """The preconditioning of the variance-preserving SDE. beta_d and beta_min are the slope and the start of beta(t)
    for t in [0, 1]; M is the number of times that the network was trained at."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """At sigma [B]."""
        t = ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d
        return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * t


@dataclass(frozen=True)
class VE:
    """The preconditioning of the variance-exploding SDE."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """At sigma [B]."""
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (0.5 * sigma).log()


# By its name in a checkpoint: the preconditioning, and its network if the arguments name none.
PRECONDITIONING: dict[str, tuple[type[EDM] | type[VP] | type[VE], str]] = {
    "EDMPrecond": (EDM, "DhariwalUNet"),
    "VPPrecond": (VP, "SongUNet"),
    "VEPrecond": (VE, "SongUNet"),
}


class Preconditioned(nn.Module):
    """D(x, sigma, labels) = c_skip x + c_out F(c_in x, c_noise, labels) (Table 1).

    Args:
        precond: EDMPrecond, VPPrecond or VEPrecond.
        kwargs: the arguments of its constructor, as the checkpoint has them; most are the network's.

    Raises UserError for a name or an argument that is not known.
    """

    def __init__(self, precond: str, kwargs: Mapping[str, Any]):
        super().__init__()
        if precond not in PRECONDITIONING:
            raise unknown("preconditioning", precond, PRECONDITIONING)
        preconditioning, name = PRECONDITIONING[precond]
        own = {entry.name for entry in fields(preconditioning)}
        self.preconditioning = preconditioning(**{key: kwargs[key] for key in own if key in kwargs})
        rest = {key: value for key, value in kwargs.items() if key not in {*own, *IGNORED, "model_type"}}
        self.model = unet.build(kwargs.get("model_type", name), rest)
        self.resolution = kwargs["img_resolution"]
        self.channels, self.label_dim = kwargs.get("img_channels", 3), kwargs.get("label_dim", 0)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], sigma [B], labels [B, label_dim] one-hot (None: no label). Returns the x0 prediction."""
        if self.label_dim and labels is None:
            labels = torch.zeros(len(x), self.label_dim, device=x.device)
        c_skip, c_out, c_in, c_noise = self.preconditioning.coefficients(sigma)
        dtype = next(self.parameters()).dtype
        wide = (slice(None), None, None, None)
        labels = None if labels is None else labels.to(dtype)
        out = self.model((c_in[wide] * x).to(dtype), c_noise.to(dtype), labels)
        return c_skip[wide] * x + c_out[wide] * out.to(x.dtype)
