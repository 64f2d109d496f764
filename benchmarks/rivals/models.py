"""The three models of the comparison, each with what the fits may see of its samples, and what judges them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.rivals import mixture, photos
from s4spipe import features, models
from s4spipe.models.callable import EDMInterface
from s4spipe.models.denoiser import Denoiser

NAMES = ("digits", "photos", "mixture")
FOLDER = "models"


@dataclass(frozen=True)
class Model:
    """`seen` and `judge` make features [B, d] of samples x, by networks that were trained apart; `data` draws from
    what the denoiser is of, where that is known."""

    denoiser: Denoiser
    seen: Callable[[Tensor], Tensor]
    judge: Callable[[Tensor], Tensor]
    data: Callable[[int], Tensor] | None = None


def load(name: str, device: torch.device) -> Model:
    """Convolutions laid out so that backward passes are quick, for all rows alike."""
    model = _load(name, device)
    model.denoiser.to(memory_format=torch.channels_last)
    return model


def _load(name: str, device: torch.device) -> Model:
    if name == "digits":
        block = {"kind": "digits", "weights": "../../models/digits.safetensors", "condition": "labels"}
        nets = [
            features.load("digits", f"../../models/{file}.safetensors", device) for file in ("perceptual", "features")
        ]
        return Model(models.load(block, device), *(net.embed for net in nets))
    if name == "photos":
        denoiser = models.load(
            {"kind": "digits", "weights": f"{FOLDER}/photos.safetensors", "condition": "none"}, device
        )
        nets = [
            photos.load_features(f"{FOLDER}/photos_{which}.safetensors", which).to(device) for which in photos.NETWORKS
        ]
        return Model(denoiser, *(lambda x, net=net: net.embed(denoiser.decode(x)) for net in nets))
    denoiser = EDMInterface(mixture.Mixture(), {}).to(device).eval().requires_grad_(False)
    nets = [mixture.RandomFeatures(seed, width).to(device).requires_grad_(False) for seed, width in ((1, 96), (2, 64))]
    return Model(denoiser, *nets, denoiser.net.data)
