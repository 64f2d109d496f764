"""The embedded default: a class-conditional diffusion model of scikit-learn's handwritten digits.

The data are 1,797 grey images of 8x8 pixels (UCI "Optical Recognition of Handwritten Digits"). The model is small
enough to train in minutes on a laptop, and to keep its weights in git.
"""

from s4spipe.models.digits.denoiser import EDMDenoiser
from s4spipe.models.digits.loading import denoiser_of, load, noise_schedule

__all__ = ["EDMDenoiser", "denoiser_of", "load", "noise_schedule"]
