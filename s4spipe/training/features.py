"""Training of the two features networks of handwritten digits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from s4spipe.features.digits import DigitFeatures, to_255
from s4spipe.runtime.files import write_tensors
from s4spipe.runtime.scratch import Scratch
from s4spipe.training import digits

# The network for FID, and the one that learning may use, which has another shape: what differs from the defaults of
# DigitFeatures.
SHAPES: dict[str, dict[str, Any]] = {
    "features": {},
    "perceptual": {"channels": [24, 48, 64], "kernel": 5, "width": 96},
}
TRAINING_IMAGES, BATCH_SIZE = 1500, 100


@dataclass(frozen=True)
class FeaturesTraining:
    """How a features network is trained.

    Attributes:
        epochs: passes over the training images.
        learning_rate: of AdamW, at the start; it falls to 0 by half a cosine.
        seed: of the first weights, the split and the batches.
    """

    epochs: int
    learning_rate: float
    seed: int


def train(
    path: str, training: FeaturesTraining, device: torch.device, scratch: Scratch, shape: Mapping[str, Any]
) -> float:
    """Train a classifier on 1,500 of the digits and write it to `path`.

    Small shifts and noise keep its features smooth around real digits. Progress is saved in `scratch` after every
    epoch, so that an interrupted run resumes.

    Args:
        path: where the network is written.
        training: how it is trained.
        device: where it is trained.
        scratch: where progress is saved.
        shape: a value of `SHAPES`.

    Returns the accuracy on the other 297 digits, in [0, 1].
    """
    images, labels = (tensor.to(device) for tensor in digits.images())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(training.seed)).to(device)
    used, held_out = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    torch.manual_seed(training.seed)
    net = DigitFeatures(**shape).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), training.learning_rate, weight_decay=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.epochs)
    parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "decay": decay}
    start, epochs = 0, training.epochs
    if saved := scratch.load("train"):
        start = saved["epoch"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    for epoch in tqdm(range(start, epochs), desc="train_features", total=epochs, initial=start, disable=None):
        rng = torch.Generator().manual_seed(training.seed * 100_003 + epoch)
        for batch in used[torch.randperm(len(used), generator=rng).to(device)].split(BATCH_SIZE):
            dy, dx = torch.randint(-1, 2, (2,), generator=rng).tolist()
            x = images[batch].roll((dy, dx), dims=(2, 3))
            x = x + 0.2 * torch.rand(1, generator=rng).item() * torch.randn(x.shape, generator=rng).to(device)
            loss = cross_entropy(net.head(net(to_255(x))), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay.step()
        scratch.save("train", {name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch + 1})

    net.eval()
    with torch.no_grad():
        correct = net.head(net(to_255(images[held_out]))).argmax(1) == labels[held_out]
    accuracy = correct.float().mean().item()
    metadata = {"accuracy": accuracy} | ({"shape": dict(shape)} if shape else {})
    write_tensors(path, {name: tensor.cpu() for name, tensor in net.state_dict().items()}, metadata)
    return accuracy
