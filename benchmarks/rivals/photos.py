"""Two small models of natural images: patches of the photographs that scikit-learn ships.

Patches are 16x16x3, from the photographs at half their size. The denoiser sees them as 8x8x12 (torch's
pixel_unshuffle), which keeps distances, and so the ODE, and costs a quarter.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, pixel_unshuffle
from tqdm import tqdm

from s4spipe.files import Scratch, read_tensors, write_tensors
from s4spipe.images import to_255
from s4spipe.models import digits

SIDE, CELLS = 16, (4, 6)
ABOUT = {
    "unet": digits.UNET
    | {"in_channels": 12, "out_channels": 12, "num_class_embeds": None, "block_out_channels": [32, 48]},
    "sigma_data": 0.65,
    "shuffle": 2,
}
# What the fits may see, and what judges them: networks of other shapes, from other seeds.
NETWORKS = {"seen": ((32, 64, 64), 3, 1), "judge": ((24, 48, 96), 5, 2)}


def photographs() -> Tensor:
    """Both, float32 [2, 3, 213, 320] in [-1, 1]."""
    from sklearn.datasets import load_sample_images

    images = torch.tensor(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    return avg_pool2d(images.float() / 127.5 - 1, 2)


def patches(images: Tensor, rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
    """n patches [n, 3, 16, 16] at random places, half of them mirrored, and which of 2 x 4 x 6 places each is from."""
    rows, columns = images.shape[2] - SIDE + 1, images.shape[3] - SIDE + 1
    k, y, x = (torch.tensor(rng.integers(high, size=n)) for high in (len(images), rows, columns))
    ahead = torch.arange(SIDE)
    found = images[k[:, None, None], :, (y[:, None] + ahead)[:, :, None], (x[:, None] + ahead)[:, None, :]]
    found = found.permute(0, 3, 1, 2).contiguous()
    mirrored = torch.tensor(rng.random(n) < 0.5)
    found[mirrored] = found[mirrored].flip(3)
    places = (k * CELLS[0] + y * CELLS[0] // rows) * CELLS[1] + x * CELLS[1] // columns
    return found, places


def train_model(path: str, params: dict, device: torch.device, scratch: Scratch) -> None:
    """params: steps, batch_size, learning_rate, ema, seed."""
    images = photographs()

    def draw(rng: np.random.Generator) -> tuple[Tensor, None]:
        return pixel_unshuffle(patches(images, rng, params["batch_size"])[0], 2), None

    digits.train_unet(path, ABOUT, draw, params, device, scratch)


class PatchFeatures(nn.Module):
    """A classifier of where a patch is from; its last hidden layer are its features [B, 64].

    Images go in as float32 [B, 3, 16, 16] in [0, 255].
    """

    def __init__(self, channels: tuple[int, int, int], kernel: int):
        super().__init__()
        a, b, c = channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, a, kernel, padding=kernel // 2),
            nn.SiLU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(b, c, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(16 * c, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, 2 * CELLS[0] * CELLS[1])

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images / 127.5 - 1)

    def embed(self, images: Tensor) -> Tensor:
        """Features of images in [-1, 1], clipped to it."""
        return self(to_255(images.float().clamp(-1, 1)))


def train_features(path: str, which: str, steps: int = 1500) -> None:
    """Train a network of `NETWORKS`, and write it with its accuracy on patches it has not seen drawn."""
    channels, kernel, seed = NETWORKS[which]
    images = photographs()
    torch.manual_seed(seed)
    net = PatchFeatures(channels, kernel)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in tqdm(range(steps), f"features {which}", disable=None):
        rng = np.random.default_rng((seed, step))
        x, places = patches(images, rng, 100)
        x = x + 0.1 * rng.random() * torch.tensor(rng.standard_normal(x.shape), dtype=torch.float32)
        loss = cross_entropy(net.head(net(to_255(x))), places, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    net.eval()
    with torch.no_grad():
        x, places = patches(images, np.random.default_rng((seed, steps)), 4000)
        accuracy = (net.head(net(to_255(x))).argmax(1) == places).float().mean().item()
    write_tensors(path, net.state_dict(), {"which": which, "accuracy": accuracy})


def load_features(path: str, which: str) -> PatchFeatures:
    channels, kernel, _ = NETWORKS[which]
    net = PatchFeatures(channels, kernel)
    net.load_state_dict(read_tensors(path)[0])
    return net.eval().requires_grad_(False)
