"""Conversion from samples in [-1, 1] to images in [0, 255]."""

import numpy as np
import torch
from torch import Tensor

from s4spipe.runtime.errors import UserError


def to_uint8(x: Tensor) -> np.ndarray:
    """[n, 1 or 3, H, W] in [-1, 1] to 8-bit images.

    Raises UserError for another shape, and for numbers that are not finite: they would become black pixels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UserError(f"images need 1 or 3 channels, as [n, channels, height, width], got {list(x.shape)}; a model "
                        "of latents needs a `decode`")  # fmt: skip
    if bad := int((~x.isfinite().flatten(1).all(1)).sum()):
        raise UserError(f"the images are not finite (NaN or infinite) for {bad} of {len(x)} samples, after decoding; "
                        "try model.precision bfloat16 or float32, and check the autoencoder's weights")  # fmt: skip
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
