"""The embedded default: a class-conditional diffusion model of scikit-learn's handwritten digits.

1,797 real grey images of 8x8 pixels (UCI "Optical Recognition of Handwritten Digits"), small enough that the model
trains in minutes on a laptop and its weights fit into git.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from s4spipe.errors import UserError
from s4spipe.files import Scratch, read_tensors, write_tensors
from s4spipe.models.digits.denoiser import EDMDenoiser
from s4spipe.noise import NoiseSchedule

WEIGHTS, IMAGES = "models/digits.safetensors", "models/digits.npy"  # where the pipeline puts them
SIGMA_DATA = 0.75  # standard deviation of the pixels in [-1, 1]
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


def noise_schedule(params: dict) -> NoiseSchedule:
    """That of the model, whatever its weights."""
    return EDMDenoiser.noise_schedule


def load(params: dict) -> EDMDenoiser:
    """The denoiser out of params["weights"]. Raises UserError for a file that is broken or holds another network."""
    from diffusers import UNet2DModel  # seconds to import, which only those who need a network should wait

    path = params["weights"]
    tensors, about = read_tensors(path)
    try:
        net = UNet2DModel(**about["unet"])
        net.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: does not hold a U-Net that s4spipe trained ({str(error).splitlines()[0]})") from None
    return denoiser_of(net, about)


def denoiser_of(net: nn.Module, about: dict) -> EDMDenoiser:
    config = net.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    return EDMDenoiser(net, about["sigma_data"], shape, (config.num_class_embeds or 1) - 1, about.get("shuffle", 1))


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """All images, float32 [1797, 1, 8, 8] in [-1, 1], and their labels, int64 [1797]."""
    from sklearn.datasets import load_digits  # a second to import, which only those who need images should wait

    data = load_digits()
    return torch.tensor(data.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(data.target)


def train(path: str, params: dict, device: torch.device, scratch: Scratch) -> None:
    """Train the model of the digits to `path`. params: those of `train_unet`, batch_size and label_dropout."""
    x0, labels = images()
    size = params["batch_size"]

    def draw(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        pick = torch.tensor(rng.integers(len(x0), size=size))
        dropped = torch.tensor(rng.random(size) < params["label_dropout"])
        return x0[pick], torch.where(dropped, 10, labels[pick])

    train_unet(path, {"unet": UNET, "sigma_data": SIGMA_DATA}, draw, params, device, scratch)


def train_unet(path: str, about: dict, draw: Callable, params: dict, device: torch.device, scratch: Scratch) -> None:
    """Train a U-Net under EDM's loss (Karras et al. 2022, Table 1) and write its EMA weights to `path`.

    about: of the network, as `load` reads it back: unet (its config), sigma_data, and shuffle where it has one. params:
    steps, learning_rate, ema, seed. draw: of a numpy generator, makes a batch of clean images and their labels.
    """
    from diffusers import UNet2DModel

    steps, sigma_data = params["steps"], about["sigma_data"]
    torch.manual_seed(params["seed"])
    net = UNet2DModel(**about["unet"]).to(device)
    ema = {name: weight.clone() for name, weight in net.state_dict().items()}
    denoiser = denoiser_of(net, about)
    optimizer = torch.optim.AdamW(net.parameters(), params["learning_rate"], weight_decay=1e-4, fused=True)

    start = 0
    if saved := scratch.load("train"):
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        ema, start = {k: v.to(device) for k, v in saved["ema"].items()}, saved["step"]

    for step in (bar := tqdm(range(start, steps), initial=start, total=steps, desc="train", disable=None)):
        for group in optimizer.param_groups:
            group["lr"] = params["learning_rate"] * learning_rate_factor(step / steps)
        # One generator per step, so that a resumed run draws what an undisturbed one draws.
        rng = np.random.default_rng((params["seed"], step))
        x0, labels = draw(rng)
        sigma = torch.tensor(np.exp(rng.normal(-0.5, 1.4, len(x0))), device=device)
        noise = torch.tensor(rng.standard_normal(x0.shape), device=device)
        x0, labels = x0.to(device), None if labels is None else labels.to(device)

        prediction = denoiser(x0 + sigma[:, None, None, None] * noise, sigma, labels)
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        loss = (weight[:, None, None, None] * (prediction - x0) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

        decay = min(params["ema"], (step + 1) / (step + 10))  # a short memory while the weights still move fast
        for name, tensor in net.state_dict().items():
            ema[name].lerp_(tensor, 1 - decay)
        if (step + 1) % max(1, steps // 10) == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
            state = {"net": net.state_dict(), "ema": ema, "optimizer": optimizer.state_dict(), "step": step + 1}
            scratch.save("train", state)

    write_tensors(path, {name: tensor.cpu() for name, tensor in ema.items()}, about)


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over the first 2 %, then half a cosine."""
    return min(progress / 0.02 + 1e-3, 0.5 * (1 + math.cos(math.pi * progress)))
