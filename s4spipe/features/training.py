"""Training the features network of the embedded default."""

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from s4spipe.features.digits import DigitFeatures
from s4spipe.files import Scratch, write_tensors
from s4spipe.images import to_255
from s4spipe.models import digits

# The judge, and what the fits may see, which is a network of another shape; and where the pipeline puts their weights.
SHAPES = {"features": {}, "perceptual": {"channels": [24, 48, 64], "kernel": 5, "width": 96}}
WEIGHTS = {name: f"models/{name}.safetensors" for name in SHAPES}


def train(path: str, params: dict, device: torch.device, scratch: Scratch, shape: dict) -> float:
    """Train the classifier on 1,500 of the digits and write it to `path`; returns its accuracy on the other 297.

    params: epochs, learning_rate, seed. shape: of a DigitFeatures, what is not its default. Small shifts and noise keep
    its features smooth around real digits.
    """
    images, labels = (tensor.to(device) for tensor in digits.images())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(params["seed"])).to(device)
    training, held_out = order[:1500], order[1500:]
    torch.manual_seed(params["seed"])
    net = DigitFeatures(**shape).to(device)
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
    about = {"accuracy": accuracy} | ({"shape": shape} if shape else {})
    write_tensors(path, {name: tensor.cpu() for name, tensor in net.state_dict().items()}, about)
    return accuracy
