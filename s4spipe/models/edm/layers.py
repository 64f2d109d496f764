"""Layers of EDM's U-Nets. The names of their parameters and buffers are those of the published checkpoints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, silu


class Resample(nn.Module):
    """Doubles (`up`) or halves (`down`) height and width with a small filter, per channel.

    Args:
        resample_filter: the filter along one axis; in 2D it is its outer product with itself, with sum 1.
    """

    resample_filter: Tensor | None

    def __init__(self, *, up: bool = False, down: bool = False, resample_filter: Sequence[int] = (1, 1)):
        super().__init__()
        self.up, self.down = up, down
        f = torch.tensor(resample_filter, dtype=torch.float32)
        self.register_buffer("resample_filter", torch.outer(f, f)[None, None] / f.sum() ** 2 if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, C, H', W']."""
        if self.resample_filter is None:
            return x
        channels = x.shape[1]
        weight = self.resample_filter.expand(channels, -1, -1, -1)
        if self.up:
            return conv_transpose2d(x, 4 * weight, groups=channels, stride=2, padding=self.margin)
        return conv2d(x, weight, groups=channels, stride=2, padding=self.margin)

    @property
    def margin(self) -> int:
        """The padding with which the sides are exactly doubled or halved."""
        return 0 if self.resample_filter is None else (self.resample_filter.shape[-1] - 1) // 2


class Conv(Resample):
    """A convolution after the resampling, if there is any. Its weights come from a checkpoint."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
    ):
        super().__init__(up=up, down=down, resample_filter=resample_filter)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H', W']."""
        return conv2d(super().forward(x), self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class ConvDown(Conv):
    """A convolution followed by halving, with a single padding before both (`fused_resample` in EDM)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, resample_filter: Sequence[int]):
        super().__init__(inputs, outputs, kernel, down=True, resample_filter=resample_filter)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / 2, W / 2]."""
        assert self.resample_filter is not None
        x = conv2d(x, self.weight, padding=self.weight.shape[-1] // 2 + self.margin)
        x = conv2d(x, self.resample_filter.expand(x.shape[1], -1, -1, -1), groups=x.shape[1], stride=2)
        return x + self.bias.to(x.dtype)[:, None, None]


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation with at least 4 channels per group and at most 32 groups."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


@dataclass(frozen=True)
class BlockConfig:
    """The settings that all blocks of a network share.

    Attributes:
        embedding: width of the embedding of the noise level.
        scale: factor on the sum of a residual and its skip connection.
        eps: epsilon of the group normalisations.
        resample_filter: as for `Resample`.
        project: whether a skip connection that resamples has a convolution even if the channels do not change.
        adaptive: whether the embedding scales the features as well as shifting them.
    """

    embedding: int
    scale: float
    eps: float
    resample_filter: Sequence[int]
    project: bool
    adaptive: bool


class Block(nn.Module):
    """A residual block with the embedding of the noise level inside, and self-attention after it.

    Args:
        heads: heads of the self-attention; 0 for none.
        up, down: whether the block doubles or halves height and width.
    """

    skip: Resample | None

    def __init__(
        self, inputs: int, outputs: int, config: BlockConfig, *, heads: int = 0, up: bool = False, down: bool = False
    ):
        super().__init__()
        self.in_channels, self.heads, self.scale, self.adaptive = inputs, heads, config.scale, config.adaptive
        resample_filter = config.resample_filter
        self.norm0 = norm(inputs, config.eps)
        self.conv0 = Conv(inputs, outputs, 3, up=up, down=down, resample_filter=resample_filter)
        self.affine = nn.Linear(config.embedding, outputs * (2 if config.adaptive else 1))
        self.norm1 = norm(outputs, config.eps)
        self.conv1 = Conv(outputs, outputs, 3)
        self.skip = None
        if outputs != inputs or (config.project and (up or down)):
            self.skip = Conv(inputs, outputs, 1, up=up, down=down, resample_filter=resample_filter)
        elif up or down:
            self.skip = Resample(up=up, down=down, resample_filter=resample_filter)
        if heads:
            self.norm2 = norm(outputs, config.eps)
            self.qkv, self.proj = Conv(outputs, 3 * outputs, 1), Conv(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, inputs, H, W] and the embedding [B, width] -> [B, outputs, H', W']."""
        y = self.conv0(silu(self.norm0(x)))
        shift = self.affine(embedding)[:, :, None, None].to(y.dtype)
        if self.adaptive:
            gain, shift = shift.chunk(2, dim=1)
            y = silu(shift + self.norm1(y) * (gain + 1))
        else:
            y = silu(self.norm1(y + shift))
        y = self.scale * (self.conv1(y) + (x if self.skip is None else self.skip(x)))
        return self.attend(y) if self.heads else y

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over the H W pixels, with a residual connection; the softmax is in float32."""
        b, c, height, width = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(b * self.heads, c // self.heads, 3, height * width).unbind(2)
        weights = torch.einsum("ncq,nck->nqk", q.float(), k.float() / math.sqrt(k.shape[1])).softmax(2).to(v.dtype)
        return self.scale * (x + self.proj(torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape)))


class Positional(nn.Module):
    """Cosines and sines of a number [B], as [B, channels], at wavelengths from 2 pi to 2 pi 10,000 (or just below it,
    without `endpoint`)."""

    def __init__(self, channels: int, *, endpoint: bool):
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        powers = torch.arange(half, dtype=torch.float32, device=x.device) / (half - self.endpoint)
        return waves(x, (1 / 10_000) ** powers)


class Fourier(nn.Module):
    """Cosines and sines of a number [B], as [B, channels], at random frequencies that the checkpoint has."""

    freqs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        return waves(x, 2 * math.pi * self.freqs)


def waves(x: Tensor, frequencies: Tensor) -> Tensor:
    """Cosines, then sines, of x [B] at angular frequencies [n]: [B, 2 n]."""
    angles = torch.outer(x, frequencies.to(x.dtype))
    return torch.cat([angles.cos(), angles.sin()], 1)
