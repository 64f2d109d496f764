"""Pre-trained models: one package per kind, and their common part in `base`."""

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.base.loading import KINDS, identity, load, noise_schedule
from s4spipe.models.base.settings import ModelSettings

__all__ = ["KINDS", "Denoiser", "ModelSettings", "identity", "load", "noise_schedule"]
