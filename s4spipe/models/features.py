"""The features network of the embedded default: what Inception is to photographs, for 8x8 digits."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from s4spipe.errors import UserError
from s4spipe.files import Scratch, read_tensors, write_tensors
from s4spipe.images import to_255
from s4spipe.models import digits


class DigitFeatures(nn.Module):
    """A classifier of digits whose last hidden layer serves FID and whose layers serve the perceptual distance.

    Images go in as clean-fid gives them: float32 [B, 1, 8, 8] in [0, 255].
    """

    dimension = 64

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.SiLU()),
                nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.SiLU()),
                nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU()),
            ]
        )
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, self.dimension), nn.SiLU())
        self.head = nn.Linear(self.dimension, 10)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The activations of every layer, each [B, channels, height, width]."""
        x, maps = images / 127.5 - 1, []
        for layer in self.layers:
            maps.append(x := layer(x))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 64]."""
        return self.last(self.maps(images)[-1])

    @classmethod
    def load(cls, path: str, device: torch.device) -> "DigitFeatures":
        """Raises UserError for a file that is missing, truncated or of another network."""
        net = cls()
        tensors, _ = read_tensors(path)
        try:
            net.load_state_dict(tensors)
        except RuntimeError:
            raise UserError(f"{path}: not the weights of the digits' features network") from None
        return net.to(device).eval().requires_grad_(False)


def train(path: str, params: dict, device: torch.device, scratch: Scratch) -> float:
    """Train the classifier on 1,500 of the digits and write it to `path`; returns its accuracy on the other 297.

    params: epochs, learning_rate, seed. Small shifts and noise keep its features smooth around real digits.
    """
    images, labels = (tensor.to(device) for tensor in digits.images())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(params["seed"])).to(device)
    training, held_out = order[:1500], order[1500:]
    torch.manual_seed(params["seed"])
    net = DigitFeatures().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), params["learning_rate"], weight_decay=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, params["epochs"])
    start = 0
    if saved := scratch.load("train"):
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        decay.load_state_dict(saved["decay"])
        start = saved["epoch"]

    for epoch in tqdm(range(start, params["epochs"]), "train_features", params["epochs"], initial=start, disable=None):
        rng = torch.Generator().manual_seed(params["seed"] * 100_003 + epoch)
        for batch in training[torch.randperm(len(training), generator=rng).to(device)].split(100):
            dy, dx = torch.randint(-1, 2, (2,), generator=rng).tolist()
            x = images[batch].roll((dy, dx), dims=(2, 3))
            x = x + 0.2 * torch.rand(1, generator=rng).item() * torch.randn(x.shape, generator=rng).to(device)
            loss = cross_entropy(net.head(net(to_255(x))), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay.step()
        scratch.save(
            "train",
            {
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "decay": decay.state_dict(),
                "epoch": epoch + 1,
            },
        )

    net.eval()
    with torch.no_grad():
        correct = net.head(net(to_255(images[held_out]))).argmax(1) == labels[held_out]
    accuracy = correct.float().mean().item()
    write_tensors(path, {name: tensor.cpu() for name, tensor in net.state_dict().items()}, {"accuracy": accuracy})
    return accuracy
