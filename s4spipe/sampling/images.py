"""Conversion from samples in [-1, 1] to images in [0, 255]."""

import numpy as np
import torch
from torch import Tensor


def to_255(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 255], without rounding or clipping, so that gradients can pass."""
    return (x + 1) * 127.5


def to_uint8(x: Tensor) -> np.ndarray:
    """[-1, 1] to 8-bit images."""
    return to_255(x).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
