"""Train the model of photographs' patches, and the two networks that look at its samples."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pixel_unshuffle
from tqdm import tqdm

from benchmarks.rivals import params
from benchmarks.rivals.problems import photos
from s4spipe.features.digits import to_255
from s4spipe.runtime.files import write_tensors
from s4spipe.runtime.scratch import Scratch, fingerprint
from s4spipe.training.unet import UNET, UNetTraining, train_unet

METADATA = {
    "unet": UNET | {"in_channels": 12, "out_channels": 12, "num_class_embeds": None, "block_out_channels": [32, 48]},
    "sigma_data": 0.65,
    "shuffle": 2,
}


def main() -> None:
    settings = params.load()["training"]
    for which in photos.NETWORKS:
        train_features(which)
    scratch = Scratch(fingerprint("photos", settings))
    train_model(UNetTraining(**settings), torch.device("cpu"), scratch)
    scratch.clear()


def train_model(training: UNetTraining, device: torch.device, scratch: Scratch) -> None:
    """Train the denoiser of patches and write it."""
    images = photos.photographs()

    def draw(rng: np.random.Generator, n: int) -> tuple[Tensor, None]:
        return pixel_unshuffle(photos.patches(images, rng, n)[0], 2), None

    train_unet(photos.WEIGHTS, METADATA, draw, training, device, scratch)


def train_features(which: str, steps: int = 1500) -> None:
    """Train a network of `photos.NETWORKS`, and write it with its accuracy on patches it has not seen drawn."""
    channels, kernel, seed = photos.NETWORKS[which]
    images = photos.photographs()
    torch.manual_seed(seed)
    net = photos.PatchFeatures(channels, kernel)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in tqdm(range(steps), f"features {which}", disable=None):
        rng = np.random.default_rng((seed, step))
        x, places = photos.patches(images, rng, 100)
        x = x + 0.1 * rng.random() * torch.tensor(rng.standard_normal(x.shape), dtype=torch.float32)
        loss = cross_entropy(net.head(net(to_255(x))), places, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    net.eval()
    with torch.no_grad():
        x, places = photos.patches(images, np.random.default_rng((seed, steps)), 4000)
        accuracy = (net.head(net(to_255(x))).argmax(1) == places).float().mean().item()
    write_tensors(photos.path(which), net.state_dict(), {"which": which, "accuracy": accuracy})


if __name__ == "__main__":
    main()
