"""Networks of the confirmation models."""

import math
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, scaled_dot_product_attention

from s4spipe.runtime.files import read_tensors

if TYPE_CHECKING:
    from diffusers import UNet2DModel

Net = TypeVar("Net", bound=nn.Module)


def trained(net: Net, weights: str) -> Net:
    """The network with the weights of a file, which are kept in half precision; as it is if `weights` is empty."""
    if weights:
        net.load_state_dict({name: tensor.float() for name, tensor in read_tensors(weights)[0].items()})
    return net


def unet(channels: int, widths: tuple[int, int], classes: int | None = None) -> "UNet2DModel":
    """A U-Net of states [channels, 8, 8] with two levels.

    Args:
        channels: of a state.
        widths: of the levels.
        classes: the number of its class embeddings.
    """
    from diffusers import UNet2DModel  # takes seconds to import

    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=classes,
    )


def waves(time: Tensor, width: int) -> Tensor:
    """The usual embedding [B, width] of times [B] from 0 to 1000, or of places: waves of many lengths."""
    rates = torch.exp(-math.log(10_000) * torch.linspace(0, 1, width // 2, device=time.device))
    angles = time.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class DiTBlock(nn.Module):
    """Attention and an MLP, both modulated by the time (adaLN-Zero; Peebles and Xie 2023, arXiv 2212.09748)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Tokens [B, L, width] for tokens and time embeddings [B, width]."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(time)[:, None].chunk(6, 2)
        qkv = self.qkv(self.norms[0](x) * (1 + scale) + shift).unflatten(2, (3, self.heads, -1))
        seen = scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
        x = x + gate * self.out(seen)
        return x + gate_mlp * self.mlp(self.norms[1](x) * (1 + scale_mlp) + shift_mlp)


class DiT(nn.Module):
    """A small diffusion transformer, of images [channels, side, side] cut into tokens of patch x patch pixels."""

    def __init__(self, channels: int, side: int, patch: int, width: int, depth: int, heads: int):
        super().__init__()
        self.patch, self.rows, self.width = patch, side // patch, width
        self.tokens = nn.Conv2d(channels, width, patch, patch)
        rows = waves(2.0 * torch.arange(self.rows), width // 2)
        self.places = nn.Parameter(torch.cat([rows.repeat_interleave(self.rows, 0), rows.repeat(self.rows, 1)], 1))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, channels * patch**2)
        nn.init.zeros_(self.out.weight)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The prediction, as `sample` [B, channels, side, side], at times [B] from 0 to 1000."""
        x = self.tokens(sample).flatten(2).transpose(1, 2) + self.places
        time = self.time(waves(timestep, self.width))
        for block in self.blocks:
            x = block(x, time)
        out = self.out(self.norm(x)).transpose(1, 2).unflatten(2, (self.rows, self.rows))
        return pixel_shuffle(out, self.patch)


class Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Autoencoder(nn.Module):
    """A small variational autoencoder of images [3, 4 s, 4 s] in [-1, 1], with latents [4, s, s].

    `mean` and `std` [1, 4, 1, 1], which training sets, scale latents to unit variance.
    """

    LATENTS, CELL = 4, 4

    def __init__(self, width: int = 64):
        super().__init__()
        pixels = 3 * self.CELL**2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(self.CELL),
            nn.Conv2d(pixels, width, 3, padding=1),
            Residual(width),
            Residual(width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * self.LATENTS, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(self.LATENTS, width, 3, padding=1),
            Residual(width),
            Residual(width),
            nn.SiLU(),
            nn.Conv2d(width, pixels, 3, padding=1),
            nn.PixelShuffle(self.CELL),
            nn.Tanh(),
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(1, self.LATENTS, 1, 1))
        self.register_buffer("std", torch.ones(1, self.LATENTS, 1, 1))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, unscaled."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return mean, log_variance.clamp(-12, 4)

    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents of images, without noise."""
        return (self.posterior(images)[0] - self.mean) / self.std

    def decode(self, x: Tensor) -> Tensor:
        """Images of scaled latents."""
        return self.decoder(x * self.std + self.mean)
