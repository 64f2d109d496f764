"""The inputs of the network of each pipeline, and the x0 prediction from its output.

Adapters do what the pipelines do between two scheduler steps: the same inputs, the same classifier-free guidance (in
one batched call) and the same decoding.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from torch import Tensor

from s4spipe.models.base import dry_call, prediction
from s4spipe.models.base.denoiser import Denoiser, few
from s4spipe.models.base.settings import ModelSettings
from s4spipe.models.diffusers.folder import check_shards, index, load_part, scheduler_config
from s4spipe.models.diffusers.prompts import Prompts
from s4spipe.runtime.errors import UserError, shown


def component(folder: Path, name: str) -> Any:
    """Load one network of a pipeline. Only classes of diffusers are allowed: no code in the folder is ever run."""
    library, cls = index(folder)[name]
    if library != "diffusers":
        raise UserError(f"{folder}: its {name} comes from {library}, but only networks of diffusers are loaded")
    network = getattr(diffusers, cls, None) if isinstance(cls, str) and cls.isidentifier() else None
    if not (isinstance(network, type) and issubclass(network, diffusers.ModelMixin)):
        raise UserError(f"{folder}: its {name} is {str(cls)[:80]!r}, which is no network of diffusers")
    check_shards(folder)
    return load_part(network, folder, name)


class Unconditional(Denoiser):
    """DDPMPipeline: a U-Net in pixel space. All other adapters derive from it.

    `output` calls the network; `channels` and `size` give the shape of x.
    """

    NET = "unet"

    def __init__(self, folder: Path, settings: ModelSettings):
        super().__init__()
        self.net = component(folder, self.NET)
        training = prediction.read(scheduler_config(folder))
        if training.inverted:
            raise UserError("its scheduler has invert_sigmas, but this pipeline's time does not run the other way")
        self.noise_schedule, self.to_x0 = training.noise, training.to_x0
        self.time_scale = training.time_scale
        self.build(folder, settings)
        self.sample_shape = (self.channels, *self.size(settings))

    def build(self, folder: Path, settings: ModelSettings) -> None:
        """Load what the pipeline has besides its network, and learn from the network's config what it needs."""
        config = self.net.config
        if config.get("class_embed_type") is not None:
            raise UserError(
                f"its {self.NET} has class_embed_type {config['class_embed_type']!r}, which is not supported"
            )
        if config.get("time_cond_proj_dim") and not isinstance(self, Text):
            raise UserError(f"its {self.NET} has a guidance embedding (time_cond_proj_dim), which only text-to-image "
                            "pipelines are given")  # fmt: skip
        self.num_classes = config.get("num_class_embeds") or 0

    @property
    def channels(self) -> int:
        return self.net.config.in_channels

    def size(self, settings: ModelSettings) -> tuple[int, int]:
        """Height and width of x, from the network's config."""
        if settings.size:
            raise UserError(f"model.size: this pipeline makes images of its network's own size, got {settings.size}; "
                            "leave it out")  # fmt: skip
        return pair(getattr(self.net.config, "sample_size", None))

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        dtype = next(self.net.parameters()).dtype
        out = dry_call.output(self.output(x.to(dtype), self.time_scale * t.to(torch.float32), condition), x)
        wide = (slice(None), *[None] * (x.ndim - 1))
        alpha, sigma = (f(t)[wide].to(x.dtype) for f in (self.noise_schedule.alpha, self.noise_schedule.sigma))
        return self.to_x0(x, out, alpha, sigma)

    def output(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The network's output at states x and at its own times t (`time_scale` times those of the schedule)."""
        labels = {} if condition is None else {"class_labels": condition}
        return self.net(x, t, **labels).sample

    def set_precision(self, precision: torch.dtype) -> None:
        """Set the precision of the weights too: otherwise large networks would not fit in memory."""
        super().set_precision(precision)
        self.net.to(precision)


class Latent(Unconditional):
    """LDMPipeline: a model of an autoencoder's latents, with class embeddings if its folder has some.

    Class-conditional LDMs (Rombach et al. 2022, arXiv 2112.10752) attend to one row of a table. It is the tensor
    "weight" [classes + 1, width] of class_embedding.safetensors; the last row stands for no class.
    """

    VAE = "vqvae"
    classes: torch.nn.Embedding | None

    def build(self, folder: Path, settings: ModelSettings) -> None:
        super().build(folder, settings)
        self.vae = component(folder, self.VAE)
        with torch.no_grad():
            image = self.decode(torch.zeros(1, self.channels, 8, 8))
        if not image.isfinite().all():
            raise UserError(f"its {self.VAE} gives numbers that are not finite: check its weights")
        self.classes, table = None, folder / "class_embedding.safetensors"
        if table.exists():
            self.classes = torch.nn.Embedding.from_pretrained(load_file(table)["weight"])
            self.num_classes = self.null_condition = len(self.classes.weight) - 1

    @property
    def scale(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def size(self, settings: ModelSettings) -> tuple[int, int]:
        if not settings.size:
            return pair(getattr(self.net.config, "sample_size", None))
        step = self.scale * self.patch
        if settings.size % step:
            raise UserError(f"model.size: must be a multiple of {step} for this pipeline, got {settings.size}")
        return (settings.size // self.scale,) * 2

    @property
    def patch(self) -> int:
        """Latents per token of a transformer, along one side; 1 for a U-Net."""
        return getattr(self.net.config, "patch_size", None) or 1

    def output(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None or self.classes is None:
            return super().output(x, t, condition)
        return self.net(x, t, encoder_hidden_states=self.classes(condition)[:, None].to(x.dtype)).sample

    def decode(self, x: Tensor) -> Tensor:
        dtype = next(self.vae.parameters()).dtype
        return torch.cat([self.vae.decode(self.unscaled(part.to(dtype))).sample for part in few(x)])

    def unscaled(self, x: Tensor) -> Tensor:
        """Latents in the scale of the autoencoder."""
        return x / self.vae.config.scaling_factor


class DiT(Latent):
    """DiTPipeline: a class-conditional model of latents. The index after the last class stands for no class."""

    NET, VAE = "transformer", "vae"

    def build(self, folder: Path, settings: ModelSettings) -> None:
        super().build(folder, settings)
        self.num_classes = self.null_condition = self.net.config.num_embeds_ada_norm

    def output(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return self.net(x, timestep=t, class_labels=condition).sample


class Text(Latent):
    """StableDiffusionPipeline: a condition is the index of an embedded prompt.

    A network that was distilled under guidance takes the guidance scale as an input (Meng et al. 2023, arXiv
    2210.03142; latent consistency models). It is then not guided a second time.
    """

    VAE = "vae"
    in_order = True
    embedded: float | None = None  # the guidance scale, as an input of the network

    def build(self, folder: Path, settings: ModelSettings) -> None:
        super().build(folder, settings)
        if settings.condition == "prompts":
            if settings.embeddings is None:
                raise UserError("the model's settings need `embeddings`, the file of the stage `prompts`")
            self.prompts = Prompts(settings.embeddings)
            self.num_classes, self.null_condition = len(self.prompts), self.prompts.null_condition

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input of the network."""
        return bool(self.net.config.get("time_cond_proj_dim"))

    def guide(self, guidance: float) -> None:
        if self.embeds_guidance:
            self.embedded = guidance
        else:
            super().guide(guidance)

    def output(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            raise UserError("model.condition: must be prompts for a text-to-image model")
        return self.under(x, t, self.prompts.rows(condition, x))

    def under(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.net(x, t, encoder_hidden_states=text["embeds"], timestep_cond=self.scale_of_guidance(x)).sample

    def scale_of_guidance(self, x: Tensor) -> Tensor | None:
        """The embedded guidance scale [B, time_cond_proj_dim], as the pipeline embeds it; None without."""
        if self.embedded is None:
            return None
        w, width = torch.full((len(x),), self.embedded - 1.0), self.net.config.time_cond_proj_dim
        return diffusers.StableDiffusionPipeline.get_guidance_scale_embedding(self, w, width).to(x.device, x.dtype)


class TextXL(Text):
    """StableDiffusionXLPipeline: also uses a pooled embedding, and the size of the uncropped image."""

    def under(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        pixels = [side * self.scale for side in x.shape[2:]]
        time_ids = x.new_tensor([*pixels, 0, 0, *pixels]).expand(len(x), -1)
        added = {"text_embeds": text["pooled"], "time_ids": time_ids}
        w = self.scale_of_guidance(x)
        return self.net(x, t, timestep_cond=w, encoder_hidden_states=text["embeds"], added_cond_kwargs=added).sample

    def unscaled(self, x: Tensor) -> Tensor:
        config = self.vae.config
        if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
            return super().unscaled(x)
        mean, std = (x.new_tensor(value).view(1, -1, 1, 1) for value in (config.latents_mean, config.latents_std))
        return super().unscaled(x * std) + mean


class Text3(Text):
    """StableDiffusion3Pipeline: flow matching."""

    NET = "transformer"

    def under(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.net(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=text["embeds"],
            pooled_projections=text["pooled"],
        ).sample

    def unscaled(self, x: Tensor) -> Tensor:
        if self.vae.config.shift_factor is None:
            raise UserError("its vae has no shift_factor, which this pipeline adds to latents: it is that of another")
        return super().unscaled(x) + self.vae.config.shift_factor


class Flux(Text3):
    """FluxPipeline: flow matching on 2x2 patches. Guidance is an input of the network, if it has one."""

    def build(self, folder: Path, settings: ModelSettings) -> None:
        super().build(folder, settings)
        self.time_scale = 1.0  # the network multiplies by 1000 itself

    @property
    def embeds_guidance(self) -> bool:
        return self.net.config.guidance_embeds

    @property
    def channels(self) -> int:
        return self.net.config.in_channels // 4

    @property
    def patch(self) -> int:
        return 2  # packed by the pipeline

    def size(self, settings: ModelSettings) -> tuple[int, int]:
        return super().size(settings) if settings.size else (128, 128)

    def under(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        batch, channels, height, width = x.shape
        pipeline = diffusers.FluxPipeline
        out = self.net(
            hidden_states=pipeline._pack_latents(x, batch, channels, height, width),
            timestep=t.to(x.dtype),
            guidance=None if self.embedded is None else t.new_full((batch,), self.embedded),
            pooled_projections=text["pooled"],
            encoder_hidden_states=text["embeds"],
            txt_ids=x.new_zeros(text["embeds"].shape[1], 3),
            img_ids=pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, x.device, x.dtype),
        ).sample
        return pipeline._unpack_latents(out, height, width, 1)


ADAPTERS = {
    "DDPMPipeline": Unconditional,
    "DDIMPipeline": Unconditional,
    "LDMPipeline": Latent,
    "DiTPipeline": DiT,
    "StableDiffusionPipeline": Text,
    "StableDiffusionXLPipeline": TextXL,
    "StableDiffusion3Pipeline": Text3,
    "FluxPipeline": Flux,
}


def pair(size: Any) -> tuple[int, int]:
    """Height and width, of one number or two. Raises UserError for anything else."""
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise UserError(f"the config of its network needs one or two whole numbers for sample_size, got {shown(size)}")
    return sides
