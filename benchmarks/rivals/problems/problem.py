"""A model to sample from, what the fits may see of its samples, and what judges them."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.rivals.problems import confirmation, mixture, photos
from s4spipe import models
from s4spipe.features.base import loading
from s4spipe.models import Denoiser, ModelSettings
from s4spipe.models.callable import EDMInterface

NAMES = ("digits", "photos", "mixture", *confirmation.MODELS)
WEIGHTS = {"digits": "../../models/digits.safetensors", "photos": photos.WEIGHTS}
FEATURES = {"seen": "../../models/perceptual.safetensors", "judge": "../../models/features.safetensors"}  # of digits
RANDOM = {"seen": (1, 96), "judge": (2, 64)}  # of the mixture: seed and width

FeatureFn = Callable[[Tensor], Tensor]  # samples [B, ...] -> features [B, d]


class Problem:
    """One of `NAMES`. Its networks are loaded when they are first used."""

    def __init__(self, name: str, device: torch.device):
        self.name, self.device = name, device

    @cached_property
    def denoiser(self) -> Denoiser:
        """The model, its convolutions laid out so that backward passes are quick, for all rows alike."""
        if self.name == "mixture":
            denoiser = EDMInterface(mixture.Mixture(), ModelSettings(weights="")).to(self.device).eval()
            return denoiser.requires_grad_(False).to(memory_format=torch.channels_last)
        if self.name in confirmation.MODELS:
            return confirmation.load(self.name, self.device)
        condition = "labels" if self.name == "digits" else "none"
        settings = ModelSettings(weights=WEIGHTS[self.name], kind="digits", condition=condition)
        return models.load(settings, self.device, channels_last=True)

    @cached_property
    def seen(self) -> FeatureFn:
        """What the fits may see."""
        return self._features("seen")

    @cached_property
    def judge(self) -> FeatureFn:
        """What judges the solvers, by a network that was trained apart from that of `seen`."""
        return self._features("judge")

    def _features(self, which: str) -> FeatureFn:
        if self.name == "mixture":
            return mixture.RandomFeatures(*RANDOM[which]).to(self.device).requires_grad_(False)
        if self.name == "digits":
            return loading.load("digits", FEATURES[which], self.device).embed
        if self.name in confirmation.MODELS:
            return confirmation.features(self.name, which, self.denoiser)
        net, decode = photos.load_features(which).to(self.device), self.denoiser.decode
        return lambda x: net.embed(decode(x))

    @property
    def data(self) -> Callable[[int], Tensor] | None:
        """Draws from the distribution that the model is of, where that is known."""
        return self.denoiser.net.data if self.name == "mixture" else None
