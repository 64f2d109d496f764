"""The embedded default: a class-conditional diffusion model of scikit-learn's handwritten digits.

1,797 real grey images of 8x8 pixels (UCI "Optical Recognition of Handwritten Digits"), small enough that the model
trains in minutes on a laptop and its weights fit into git.
"""

import math

import numpy as np
import torch
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
    config = net.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    return EDMDenoiser(net, about["sigma_data"], shape, (config.num_class_embeds or 1) - 1)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """All images, float32 [1797, 1, 8, 8] in [-1, 1], and their labels, int64 [1797]."""
    from sklearn.datasets import load_digits  # a second to import, which only those who need images should wait

    data = load_digits()
    return torch.tensor(data.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(data.target)


def train(path: str, params: dict, device: torch.device, scratch: Scratch) -> None:
    """Train the U-Net under EDM's loss (Karras et al. 2022, Table 1) and write its EMA weights to `path`.

    params: steps, batch_size, learning_rate, ema, label_dropout, seed.
    """
    from diffusers import UNet2DModel

    steps, batch = params["steps"], params["batch_size"]
    x0, labels = (tensor.to(device) for tensor in images())
    torch.manual_seed(params["seed"])
    net = UNet2DModel(**UNET).to(device)
    ema = {name: weight.clone() for name, weight in net.state_dict().items()}
    denoiser = EDMDenoiser(net, SIGMA_DATA, (1, 8, 8), num_classes=10)
    optimizer = torch.optim.AdamW(net.parameters(), params["learning_rate"], weight_decay=1e-4, fused=True)

    start = 0
    if saved := scratch.load("train"):
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        ema, start = {k: v.to(device) for k, v in saved["ema"].items()}, saved["step"]

    for step in (bar := tqdm(range(start, steps), initial=start, total=steps, desc="train_digits", disable=None)):
        for group in optimizer.param_groups:
            group["lr"] = params["learning_rate"] * learning_rate_factor(step / steps)
        # One generator per step, so that a resumed run draws what an undisturbed one draws.
        rng = np.random.default_rng((params["seed"], step))
        pick = torch.tensor(rng.integers(len(x0), size=batch), device=device)
        dropped = torch.tensor(rng.random(batch) < params["label_dropout"], device=device)
        sigma = torch.tensor(np.exp(rng.normal(-0.5, 1.4, batch)), device=device)
        noise = torch.tensor(rng.standard_normal((batch, 1, 8, 8)), device=device)

        noisy = x0[pick] + sigma[:, None, None, None] * noise
        prediction = denoiser(noisy, sigma, torch.where(dropped, denoiser.nothing, labels[pick]))
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        loss = (weight[:, None, None, None] * (prediction - x0[pick]) ** 2).mean()
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

    write_tensors(path, {name: tensor.cpu() for name, tensor in ema.items()}, {"unet": UNET, "sigma_data": SIGMA_DATA})


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over the first 2 %, then half a cosine."""
    return min(progress / 0.02 + 1e-3, 0.5 * (1 + math.cos(math.pi * progress)))
