"""The confirmation models: settings that were chosen on the development models are only tried on these."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.rivals.problems import flow, guided, latent, networks, photos32
from benchmarks.rivals.problems.looks import Classifier, Restorer
from s4spipe.models import Denoiser

MODELS: dict[str, Any] = {"flow": flow, "guided": guided, "latent": latent, "photos32": photos32}
NETWORKS = ("seen", "judge")


def path(name: str, which: str = "") -> str:
    """The file of a model, or of one of its `NETWORKS`."""
    return f"confirmation/{name}{which and f'_{which}'}.safetensors"


def load(name: str, device: torch.device) -> Denoiser:
    """A model, frozen, with the guidance that it is sampled with."""
    module = MODELS[name]
    denoiser: Denoiser = module.denoiser(module.network(path(name)))
    denoiser.guide(getattr(module, "SETTINGS", {}).get("guidance", 1.0))
    return denoiser.to(device).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def look(name: str, which: str, weights: str = "") -> Classifier | Restorer:
    """One of the `NETWORKS` with the weights of a file, or before its training."""
    patches = MODELS[name].PATCHES
    if which == "seen":
        return networks.trained(Classifier(patches.channels, patches.side, len(patches.shrink)), weights)
    return networks.trained(Restorer(patches.channels, patches.side), weights)


def features(name: str, which: str, denoiser: Denoiser) -> Callable[[Tensor], Tensor]:
    """Features of a model's samples, of their images clipped to [-1, 1]."""
    net = look(name, which, path(name, which)).to(denoiser.device).eval().requires_grad_(False)
    return lambda x: net.features(denoiser.decode(x).float().clamp(-1, 1))
