"""Training of a small U-Net under EDM's loss (Karras et al. 2022, arXiv 2206.00364)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s4spipe.models.digits import EDMDenoiser, denoiser_of
from s4spipe.runtime.errors import needs
from s4spipe.runtime.files import write_tensors
from s4spipe.runtime.scratch import Scratch

SIGMA_DATA = 0.75  # standard deviation of the digits' pixels in [-1, 1]
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [32, 48],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": 16,
    "num_class_embeds": 11,  # ten digits, and one for "no label"
}

# Given a generator and n: n clean images [n, C, H, W], and their labels [n] or None for an unconditional model.
DrawBatch = Callable[[np.random.Generator, int], tuple[Tensor, Tensor | None]]
Loss = Callable[[np.random.Generator], Tensor]  # of a batch that the generator draws


@dataclass(frozen=True)
class UNetTraining:
    """How a U-Net is trained.

    Attributes:
        steps: of the optimizer.
        batch_size: images per step.
        learning_rate: of AdamW, after the warm-up.
        ema: decay per step of the moving average of the weights, which is what is kept.
        seed: of the first weights, the batches and the noise.
    """

    steps: int
    batch_size: int
    learning_rate: float
    ema: float
    seed: int


def train_unet(
    path: str,
    metadata: Mapping[str, Any],
    draw: DrawBatch,
    training: UNetTraining,
    device: torch.device,
    scratch: Scratch,
) -> None:
    """Train a U-Net and write the moving average (EMA) of its weights to `path`.

    Args:
        path: where the weights are written.
        metadata: metadata of the file, as `models.digits.load` reads it: `unet` (the config of a diffusers
            UNet2DModel), sigma_data, and shuffle if it is not 1.
        draw: makes the batches.
        training: how the U-Net is trained.
        device: where it is trained.
        scratch: where progress is saved ten times, so that an interrupted run resumes.
    """
    with needs("diffusers", "training a U-Net"):
        from diffusers import UNet2DModel

    torch.manual_seed(training.seed)
    net = UNet2DModel(**metadata["unet"]).to(device)
    denoiser = denoiser_of(net, metadata)

    def loss(rng: np.random.Generator) -> Tensor:
        return edm_loss(denoiser, *draw(rng, training.batch_size), rng)

    minimise(net, loss, training, scratch, "train")
    write_tensors(path, {name: tensor.cpu() for name, tensor in net.state_dict().items()}, metadata)


def minimise(net: torch.nn.Module, loss: Loss, training: UNetTraining, scratch: Scratch, label: str) -> None:
    """Minimise a loss over a network's weights, which are then the moving average (EMA) of those on the way.

    Progress is saved ten times in `scratch`, so that an interrupted run resumes. Every step has a generator of its own,
    so that a resumed run draws the same as an uninterrupted one.
    """
    steps = training.steps
    optimizer = torch.optim.AdamW(net.parameters(), training.learning_rate, weight_decay=1e-4, fused=True)
    ema = {name: weight.clone() for name, weight in net.state_dict().items()}
    start = 0
    if saved := scratch.load("train"):
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        ema, start = {name: weight.to(ema[name].device) for name, weight in saved["ema"].items()}, saved["step"]
    for step in (bar := tqdm(range(start, steps), label, initial=start, total=steps, disable=None)):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * learning_rate_factor(step / steps)
        value = loss(np.random.default_rng((training.seed, step)))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay = min(training.ema, (step + 1) / (step + 10))  # a short memory while the weights still change fast
        for name, tensor in net.state_dict().items():
            ema[name].lerp_(tensor, 1 - decay)
        if (step + 1) % max(1, steps // 10) == 0:
            bar.set_postfix(loss=f"{value.item():.3f}")
            state = {"net": net.state_dict(), "ema": ema, "optimizer": optimizer.state_dict(), "step": step + 1}
            scratch.save("train", state)
    net.load_state_dict(ema)


def edm_loss(denoiser: EDMDenoiser, x0: Tensor, labels: Tensor | None, rng: np.random.Generator) -> Tensor:
    """EDM's loss, a scalar: E lambda(sigma) |D(x0 + sigma eps, sigma, labels) - x0|^2 (Table 1), with ln(sigma) drawn
    from N(-0.5, 1.4^2).

    Args:
        x0: clean images [B, C, H, W].
        labels: [B], or None.
        rng: draws sigma and eps.
    """
    device, sigma_data = denoiser.device, denoiser.sigma_data
    sigma = torch.tensor(np.exp(rng.normal(-0.5, 1.4, len(x0))), device=device)
    noise = torch.tensor(rng.standard_normal(x0.shape), device=device)
    x0, labels = x0.to(device), None if labels is None else labels.to(device)
    prediction = denoiser(x0 + sigma[:, None, None, None] * noise, sigma, labels)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return (weight[:, None, None, None] * (prediction - x0) ** 2).mean()


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over the first 2 % of the training, then half a cosine; progress is in [0, 1]."""
    return min(progress / 0.02 + 1e-3, 0.5 * (1 + math.cos(math.pi * progress)))
