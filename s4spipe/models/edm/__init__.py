"""EDM's published checkpoints (Karras et al. 2022, arXiv 2206.00364): the networks, and a reader of the pickles as
data.

The weights are NVIDIA's, licensed for non-commercial use only (CC BY-NC-SA 4.0).
"""

from s4spipe.models.edm.denoiser import EDMCheckpoint
from s4spipe.models.edm.loading import convert, load, noise_schedule
from s4spipe.models.edm.preconditioning import Preconditioned
from s4spipe.models.edm.reader import read

__all__ = ["EDMCheckpoint", "Preconditioned", "convert", "load", "noise_schedule", "read"]
