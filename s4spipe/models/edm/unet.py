"""The networks of EDM's published checkpoints, with their names of parameters, for inference.

`SongUNet` is DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456), `DhariwalUNet` is ADM (Dhariwal and Nichol 2021,
arXiv 2105.05233), both as configured by EDM (Karras et al. 2022, arXiv 2206.00364, App. F.3 and Table 7).
`Preconditioned` puts one of them under EDM's, VP's or VE's preconditioning (Table 1).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, silu

from s4spipe.errors import UserError, unknown


class Conv(nn.Module):
    """A convolution with resampling by a small filter before it, or after it (`fused`, when going down); a kernel of 0
    resamples alone."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, up=False, down=False, resample_filter=(1, 1), fused=False
    ):
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        self.up, self.down, self.fused = up, down, fused
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.empty(outputs)) if kernel else None
        f = torch.tensor(resample_filter, dtype=torch.float32)
        self.register_buffer("resample_filter", torch.outer(f, f)[None, None] / f.sum() ** 2 if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2 if self.weight is not None else 0
        if self.down and self.fused:
            x = conv2d(x, self.weight, padding=padding + self._margin)
            x = conv2d(x, self._filter(self.out_channels), groups=self.out_channels, stride=2)
            return x + self.bias.to(x.dtype)[:, None, None]
        if self.up:
            x = conv_transpose2d(x, 4 * self._filter(x.shape[1]), groups=x.shape[1], stride=2, padding=self._margin)
        if self.down:
            x = conv2d(x, self._filter(x.shape[1]), groups=x.shape[1], stride=2, padding=self._margin)
        return x if self.weight is None else conv2d(x, self.weight, self.bias, padding=padding)

    @property
    def _margin(self) -> int:
        return (self.resample_filter.shape[-1] - 1) // 2

    def _filter(self, channels: int) -> Tensor:
        return self.resample_filter.to(self.bias.dtype if self.bias is not None else None).expand(channels, -1, -1, -1)


def norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class Block(nn.Module):
    """A residual block with the noise's embedding in its middle, and attention after it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        heads: int = 0,
        up: bool = False,
        down: bool = False,
        scale: float,
        eps: float,
        resample_filter: Sequence[int],
        project: bool,
        adaptive: bool,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.heads = inputs, outputs, heads
        self.scale, self.adaptive = scale, adaptive
        resampling = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = norm(inputs, eps)
        self.conv0 = Conv(inputs, outputs, 3, **resampling)
        self.affine = nn.Linear(embedding, outputs * (2 if adaptive else 1))
        self.norm1 = norm(outputs, eps)
        self.conv1 = Conv(outputs, outputs, 3)
        self.skip = None
        if outputs != inputs or up or down:
            self.skip = Conv(inputs, outputs, 1 if project or outputs != inputs else 0, **resampling)
        if heads:
            self.norm2 = norm(outputs, eps)
            self.qkv, self.proj = Conv(outputs, 3 * outputs, 1), Conv(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
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
        b, c, height, width = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(b * self.heads, c // self.heads, 3, height * width).unbind(2)
        weights = torch.einsum("ncq,nck->nqk", q.float(), k.float() / math.sqrt(k.shape[1])).softmax(2).to(v.dtype)
        return self.scale * (x + self.proj(torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape)))


def positions(x: Tensor, channels: int, endpoint: bool) -> Tensor:
    """Sinusoids of a number [B], as [B, channels]."""
    half = channels // 2
    frequencies = (1 / 10_000) ** (torch.arange(half, dtype=torch.float32, device=x.device) / (half - endpoint))
    return waves(x, frequencies)


def waves(x: Tensor, frequencies: Tensor) -> Tensor:
    angles = torch.outer(x, frequencies.to(x.dtype))
    return torch.cat([angles.cos(), angles.sin()], 1)


class Fourier(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        return waves(x, 2 * math.pi * self.freqs)


def levels(resolution: int, channel_mult: Sequence[int]) -> list[tuple[int, int, int, str]]:
    """Every level of a U-Net: its number, multiple of the channels, resolution, and that as in the names of layers."""
    halved = [resolution >> level for level in range(len(channel_mult))]
    return [
        (level, mult, res, f"{res}x{res}") for level, (mult, res) in enumerate(zip(channel_mult, halved, strict=True))
    ]


class SongUNet(nn.Module):
    """DDPM++ (the defaults), or NCSN++ (Fourier embedding, residual encoder, filter 1 3 3 1)."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,  # of training
        label_dropout: float = 0.0,  # of training
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
    ):
        super().__init__()
        _one_of("embedding_type", embedding_type, ("positional", "fourier"))
        _one_of("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _one_of("decoder_type", decoder_type, ("standard", "skip"))
        embedding, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        self.noise_channels = noise

        def block(inputs: int, outputs: int, attention: bool = False, **options) -> Block:
            return Block(inputs, outputs, embedding, heads=int(attention), scale=math.sqrt(0.5), eps=1e-6,
                         resample_filter=resample_filter, project=True, adaptive=False, **options)  # fmt: skip

        if embedding_type == "fourier":
            self.map_noise = Fourier(noise)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, embedding), nn.Linear(embedding, embedding)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        out, auxiliary, last = in_channels, in_channels, len(channel_mult) - 1
        resampling = {"down": True, "resample_filter": resample_filter}
        for level, mult, res, size in levels(img_resolution, channel_mult):
            if level == 0:
                self.enc[f"{size}_conv"] = Conv(out, model_channels, 3)
                out = model_channels
            else:
                self.enc[f"{size}_down"] = block(out, out, down=True)
                if encoder_type == "skip":
                    self.enc[f"{size}_aux_down"] = Conv(auxiliary, auxiliary, 0, **resampling)
                    self.enc[f"{size}_aux_skip"] = Conv(auxiliary, out, 1)
                if encoder_type == "residual":
                    self.enc[f"{size}_aux_residual"] = Conv(auxiliary, out, 3, fused=True, **resampling)
                    auxiliary = out
            for i in range(num_blocks):
                self.enc[f"{size}_block{i}"] = block(out, model_channels * mult, res in attn_resolutions)
                out = model_channels * mult
        skips = [layer.out_channels for name, layer in self.enc.items() if "aux" not in name]
        for level, mult, res, size in reversed(levels(img_resolution, channel_mult)):
            if level == last:
                self.dec[f"{size}_in0"], self.dec[f"{size}_in1"] = block(out, out, True), block(out, out)
            else:
                self.dec[f"{size}_up"] = block(out, out, up=True)
            for i in range(num_blocks + 1):
                attention = i == num_blocks and res in attn_resolutions
                self.dec[f"{size}_block{i}"] = block(out + skips.pop(), model_channels * mult, attention)
                out = model_channels * mult
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < last:
                    up = Conv(out_channels, out_channels, 0, up=True, resample_filter=resample_filter)
                    self.dec[f"{size}_aux_up"] = up
                self.dec[f"{size}_aux_norm"] = norm(out, 1e-6)
                self.dec[f"{size}_aux_conv"] = Conv(out, out_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        if hasattr(self, "map_noise"):
            emb = self.map_noise(noise)
        else:
            emb = positions(noise, self.noise_channels, endpoint=True)
        emb = emb.unflatten(1, (2, -1)).flip(1).flatten(1)  # sines first
        if self.map_label is not None:
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        emb = silu(self.map_layer1(silu(self.map_layer0(emb))))

        skips, auxiliary = [], x
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
        out = None
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
        return out


class DhariwalUNet(nn.Module):
    """ADM."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,  # of training
        label_dropout: float = 0.0,  # of training
    ):
        super().__init__()
        embedding = model_channels * channel_mult_emb
        self.noise_channels = model_channels

        def block(inputs: int, outputs: int, attention: bool = False, **options) -> Block:
            return Block(inputs, outputs, embedding, heads=outputs // 64 if attention else 0, scale=1.0, eps=1e-5,
                         resample_filter=(1, 1), project=False, adaptive=True, **options)  # fmt: skip

        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(model_channels, embedding), nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(label_dim, embedding, bias=False) if label_dim else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        out = in_channels
        for level, mult, res, size in levels(img_resolution, channel_mult):
            if level == 0:
                self.enc[f"{size}_conv"] = Conv(out, model_channels * mult, 3)
                out = model_channels * mult
            else:
                self.enc[f"{size}_down"] = block(out, out, down=True)
            for i in range(num_blocks):
                self.enc[f"{size}_block{i}"] = block(out, model_channels * mult, res in attn_resolutions)
                out = model_channels * mult
        skips = [layer.out_channels for layer in self.enc.values()]
        for level, mult, res, size in reversed(levels(img_resolution, channel_mult)):
            if level == len(channel_mult) - 1:
                self.dec[f"{size}_in0"], self.dec[f"{size}_in1"] = block(out, out, True), block(out, out)
            else:
                self.dec[f"{size}_up"] = block(out, out, up=True)
            for i in range(num_blocks + 1):
                self.dec[f"{size}_block{i}"] = block(out + skips.pop(), model_channels * mult, res in attn_resolutions)
                out = model_channels * mult
        self.out_norm, self.out_conv = norm(out, 1e-5), Conv(out, out_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.map_layer1(silu(self.map_layer0(positions(noise, self.noise_channels, endpoint=False))))
        emb = silu(emb if self.map_label is None else emb + self.map_label(labels))
        skips = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            x = layer(torch.cat([x, skips.pop()], 1) if x.shape[1] != layer.in_channels else x, emb)
        return self.out_conv(silu(self.out_norm(x)))


NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


def _edm(sigma: Tensor, sigma_data: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = (sigma**2 + sigma_data**2).sqrt()
    return sigma_data**2 / total**2, sigma * sigma_data / total, 1 / total, sigma.log() / 4


def _vp(sigma: Tensor, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000) -> tuple[Tensor, ...]:
    t = ((beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt() - beta_min) / beta_d
    return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), (M - 1) * t


def _ve(sigma: Tensor) -> tuple[Tensor, ...]:
    return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (0.5 * sigma).log()


PRECONDITIONING = {"EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve}


class Preconditioned(nn.Module):
    """D(x, sigma, labels) = c_skip x + c_out F(c_in x, c_noise, labels) (EDM, Table 1).

    precond: EDMPrecond, VPPrecond or VEPrecond; kwargs: the constructor's arguments as the checkpoint has them.

    Raises UserError for a name or an argument that is not known.
    """

    def __init__(self, precond: str, kwargs: dict):
        super().__init__()
        _one_of("preconditioning", precond, PRECONDITIONING)
        if "img_resolution" not in kwargs:
            raise UserError("the network's arguments have no img_resolution")
        kwargs = dict(kwargs)
        self.coefficients = PRECONDITIONING[precond]
        self.options = {key: kwargs.pop(key) for key in ("sigma_data", "beta_d", "beta_min", "M") if key in kwargs}
        self.channels, self.resolution = kwargs.pop("img_channels", 3), kwargs["img_resolution"]
        self.label_dim = kwargs.get("label_dim", 0)
        for ignored in ("use_fp16", "sigma_min", "sigma_max", "epsilon_t"):  # they matter to sampling, or to speed
            kwargs.pop(ignored, None)
        name = kwargs.pop("model_type", "SongUNet" if precond != "EDMPrecond" else "DhariwalUNet")
        _one_of("network", name, NETWORKS)
        try:
            self.model = NETWORKS[name](in_channels=self.channels, out_channels=self.channels, **kwargs)
        except TypeError as error:
            raise UserError(f"{name} has other arguments than these: {str(error).split(') ', 1)[-1]}") from None

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], sigma [B], labels [B, label_dim] one-hot (None: no label). Returns the x0 prediction."""
        if self.label_dim and labels is None:
            labels = torch.zeros(len(x), self.label_dim, device=x.device)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma, **self.options)
        dtype = next(self.parameters()).dtype
        wide = (slice(None), None, None, None)
        labels = None if labels is None else labels.to(dtype)
        out = self.model((c_in[wide] * x).to(dtype), c_noise.to(dtype), labels)
        return c_skip[wide] * x + c_out[wide] * out.to(x.dtype)


def _one_of(what: str, name: str, known) -> None:
    if name not in known:
        raise unknown(what, name, known)
