"""Loading a features network by its name, for FID and related metrics or for the perceptual distance."""

from importlib import import_module
from typing import Any

import torch

from s4spipe.runtime.errors import unknown

# A package of s4spipe.features for each, with `load(path, mode)`. For FID: called with float32 images in [0, 255], it
# gives features [B, d], and its `resize` makes an image fit. For learning: it has `distance` of images in [-1, 1].
FOR_FID = ("digits", "inception")
FOR_DISTANCE = ("digits", "lpips")
MODES = ("clean", "legacy_tensorflow")  # of FID: what resizes the images for Inception


def load(network: str, path: str, device: torch.device, mode: str = "clean") -> Any:
    """Load a network from the file `path`, frozen, on `device`. Raises UserError for a file of another network."""
    if network not in FOR_FID + FOR_DISTANCE:
        raise unknown("features network", network, {*FOR_FID, *FOR_DISTANCE})
    net = import_module(f"s4spipe.features.{network}").load(path, mode)
    return net.to(device).eval().requires_grad_(False)
