"""The networks of EDM's published checkpoints, with the same parameter names, for inference.

`SongUNet` is DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456), `DhariwalUNet` is ADM (Dhariwal and Nichol 2021,
arXiv 2105.05233), both as configured by EDM (Karras et al. 2022, arXiv 2206.00364, App. F.3 and Table 7).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from s4spipe.models.edm.layers import Block, BlockConfig, Conv, ConvDown, Fourier, Positional, Resample, norm
from s4spipe.runtime.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The arguments of both networks, with the names and meanings that they have in a checkpoint.

    Attributes:
        img_resolution: side of the image in pixels.
        img_channels: channels of the image, in and out.
        label_dim: number of classes; 0 for an unconditional network.
        augment_dim: width of the augmentation labels, which are zero when sampling; 0 for none.
        model_channels: the unit of all widths.
        channel_mult: for each level, from the full resolution down, its width in units of `model_channels`.
        channel_mult_emb: the width of the embedding of noise level and class, in the same units.
        num_blocks: residual blocks per level on the way down.
        attn_resolutions: sides, in pixels, of the levels with self-attention.
        dropout, label_dropout: used in training only; ignored here.
    """

    img_resolution: int
    img_channels: int = 3
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int
    channel_mult: Sequence[int]
    channel_mult_emb: int = 4
    num_blocks: int
    attn_resolutions: Sequence[int]
    dropout: float = 0.10
    label_dropout: float = 0.0

    @property
    def levels(self) -> list["Level"]:
        """The levels, from the full resolution down."""
        sides = [self.img_resolution >> index for index in range(len(self.channel_mult))]
        return [
            Level(f"{side}x{side}", self.model_channels * mult, side in self.attn_resolutions)
            for side, mult in zip(sides, self.channel_mult, strict=True)
        ]


class Level(NamedTuple):
    """A resolution of a U-Net: its name in layer names, its channels, and whether it has self-attention."""

    size: str
    channels: int
    attention: bool


@dataclass(frozen=True, kw_only=True)
class SongUNetConfig(UNetConfig):
    """The arguments of SongUNet; the defaults are those of DDPM++.

    Attributes:
        embedding_type: embedding of the noise level: positional (DDPM++) or fourier (NCSN++).
        channel_mult_noise: width of its first layer, in units of `model_channels`.
        encoder_type: standard, skip or residual (NCSN++). The last two add the downsampled image, or features of it, at
            every level.
        decoder_type: standard or skip. With skip, the output is the sum of images from every level.
        resample_filter: filter of up- and downsampling; [1, 3, 3, 1] in NCSN++.

    Raises UserError for an unknown type.
    """

    model_channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: Sequence[int] = (16,)
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: Sequence[int] = (1, 1)

    def __post_init__(self) -> None:
        for what, known in (
            ("embedding_type", ("positional", "fourier")),
            ("encoder_type", ("standard", "skip", "residual")),
            ("decoder_type", ("standard", "skip")),
        ):
            if (name := getattr(self, what)) not in known:
                raise unknown(what, name, known)


@dataclass(frozen=True, kw_only=True)
class DhariwalUNetConfig(UNetConfig):
    """The arguments of DhariwalUNet; the defaults are those of ADM on ImageNet 64x64."""

    model_channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: Sequence[int] = (32, 16, 8)


class SongUNet(nn.Module):
    """DDPM++ (the defaults), or NCSN++ (Fourier embedding, residual encoder, filter 1 3 3 1)."""

    map_noise: nn.Module

    def __init__(self, config: SongUNetConfig):
        super().__init__()
        embedding = config.model_channels * config.channel_mult_emb
        noise = config.model_channels * config.channel_mult_noise
        fourier = config.embedding_type == "fourier"
        self.map_noise = Fourier(noise) if fourier else Positional(noise, endpoint=True)
        self.map_label = nn.Linear(config.label_dim, noise) if config.label_dim else None
        self.map_augment = nn.Linear(config.augment_dim, noise, bias=False) if config.augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, embedding), nn.Linear(embedding, embedding)
        blocks = BlockConfig(embedding, math.sqrt(0.5), 1e-6, config.resample_filter, project=True, adaptive=False)
        self.enc, widths = _song_encoder(config, blocks)
        self.dec = _song_decoder(config, blocks, widths)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        """x [B, C, H, W], the noise level as the network sees it [B], labels [B, label_dim]. Shaped like x."""
        emb = self.map_noise(noise)
        emb = emb.unflatten(1, (2, -1)).flip(1).flatten(1)  # sines first
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        emb = silu(self.map_layer1(silu(self.map_layer0(emb))))

        skips: list[Tensor] = []
        auxiliary = x
        for name, layer in self.enc.items():
            if "aux_down" in name:
                auxiliary = layer(auxiliary)
            elif "aux_skip" in name:
                x = skips[-1] = x + layer(auxiliary)
            elif "aux_residual" in name:
                x = skips[-1] = auxiliary = (x + layer(auxiliary)) / math.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        out, normed = None, x
        for name, layer in self.dec.items():
            if "aux_up" in name:
                out = layer(out)
            elif "aux_norm" in name:
                normed = layer(x)
            elif "aux_conv" in name:
                now = layer(silu(normed))
                out = now if out is None else out + now
            else:
                x = layer(torch.cat([x, skips.pop()], 1) if x.shape[1] != layer.in_channels else x, emb)
        assert out is not None
        return out


def _song_encoder(config: SongUNetConfig, blocks: BlockConfig) -> tuple[nn.ModuleDict, list[int]]:
    """The layers on the way down, and the channels of all feature maps for the way up."""
    enc, widths = nn.ModuleDict(), [config.model_channels]
    auxiliary, resample_filter = config.img_channels, config.resample_filter
    for index, (size, channels, attention) in enumerate(config.levels):
        out = widths[-1]
        if index == 0:
            enc[f"{size}_conv"] = Conv(config.img_channels, out, 3)
        else:
            enc[f"{size}_down"] = Block(out, out, blocks, down=True)
            widths.append(out)
            if config.encoder_type == "skip":
                enc[f"{size}_aux_down"] = Resample(down=True, resample_filter=resample_filter)
                enc[f"{size}_aux_skip"] = Conv(auxiliary, out, 1)
            if config.encoder_type == "residual":
                enc[f"{size}_aux_residual"] = ConvDown(auxiliary, out, 3, resample_filter=resample_filter)
                auxiliary = out
        for i in range(config.num_blocks):
            enc[f"{size}_block{i}"] = Block(widths[-1], channels, blocks, heads=int(attention))
            widths.append(channels)
    return enc, widths


def _song_decoder(config: SongUNetConfig, blocks: BlockConfig, widths: list[int]) -> nn.ModuleDict:
    """The layers on the way up; the last block of a level has its self-attention."""
    dec, out, skips = nn.ModuleDict(), widths[-1], list(widths)
    last, summed = len(config.levels) - 1, config.decoder_type == "skip"
    for index, (size, channels, attention) in reversed(list(enumerate(config.levels))):
        if index == last:
            dec[f"{size}_in0"], dec[f"{size}_in1"] = Block(out, out, blocks, heads=1), Block(out, out, blocks)
        else:
            dec[f"{size}_up"] = Block(out, out, blocks, up=True)
        for i in range(config.num_blocks + 1):
            heads = int(attention and i == config.num_blocks)
            dec[f"{size}_block{i}"] = Block(out + skips.pop(), channels, blocks, heads=heads)
            out = channels
        if summed and index < last:
            dec[f"{size}_aux_up"] = Resample(up=True, resample_filter=config.resample_filter)
        if summed or index == 0:
            dec[f"{size}_aux_norm"] = norm(out, 1e-6)
            dec[f"{size}_aux_conv"] = Conv(out, config.img_channels, 3)
    return dec


class DhariwalUNet(nn.Module):
    """ADM."""

    def __init__(self, config: DhariwalUNetConfig):
        super().__init__()
        width = config.model_channels
        embedding = width * config.channel_mult_emb
        self.map_noise = Positional(width, endpoint=False)
        self.map_augment = nn.Linear(config.augment_dim, width, bias=False) if config.augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(width, embedding), nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(config.label_dim, embedding, bias=False) if config.label_dim else None
        blocks = BlockConfig(embedding, 1.0, 1e-5, (1, 1), project=False, adaptive=True)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        widths = [config.levels[0].channels]
        for index, (size, channels, attention) in enumerate(config.levels):
            if index == 0:
                self.enc[f"{size}_conv"] = Conv(config.img_channels, channels, 3)
            else:
                self.enc[f"{size}_down"] = Block(widths[-1], widths[-1], blocks, down=True)
                widths.append(widths[-1])
            for i in range(config.num_blocks):
                self.enc[f"{size}_block{i}"] = Block(widths[-1], channels, blocks, heads=_heads(channels, attention))
                widths.append(channels)
        out = widths[-1]
        for index, (size, channels, attention) in reversed(list(enumerate(config.levels))):
            if index == len(config.levels) - 1:
                self.dec[f"{size}_in0"] = Block(out, out, blocks, heads=_heads(out, True))
                self.dec[f"{size}_in1"] = Block(out, out, blocks)
            else:
                self.dec[f"{size}_up"] = Block(out, out, blocks, up=True)
            for i in range(config.num_blocks + 1):
                heads = _heads(channels, attention)
                self.dec[f"{size}_block{i}"] = Block(out + widths.pop(), channels, blocks, heads=heads)
                out = channels
        self.out_norm, self.out_conv = norm(out, 1e-5), Conv(out, config.img_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        """x [B, C, H, W], the noise level as the network sees it [B], labels [B, label_dim]. Shaped like x."""
        emb = self.map_layer1(silu(self.map_layer0(self.map_noise(noise))))
        emb = silu(emb if self.map_label is None else emb + self.map_label(labels))
        skips = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            x = layer(torch.cat([x, skips.pop()], 1) if x.shape[1] != layer.in_channels else x, emb)
        return self.out_conv(silu(self.out_norm(x)))


def _heads(channels: int, attention: bool) -> int:
    """Heads of 64 channels each."""
    return channels // 64 if attention else 0


NETWORKS: dict[str, tuple[type[nn.Module], type[UNetConfig]]] = {
    "SongUNet": (SongUNet, SongUNetConfig),
    "DhariwalUNet": (DhariwalUNet, DhariwalUNetConfig),
}


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network in `NETWORKS` by its name, built from the arguments in a checkpoint.

    Raises UserError for an unknown name or argument.
    """
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    network, config = NETWORKS[name]
    known = [entry.name for entry in fields(config)]
    for key in arguments:
        if key not in known:
            raise UserError(f"{name} has no argument {key!r}: choose from {', '.join(sorted(known))}")
    if "img_resolution" not in arguments:
        raise UserError("the network's arguments have no img_resolution")
    return network(config(**arguments))
