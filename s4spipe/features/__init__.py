"""Networks that look at images: for FID and its kin, and for the perceptual distance."""

from importlib import import_module

import torch

from s4spipe.errors import unknown

# A module here for each, with `load(path, mode)`. For FID: called with float32 images in [0, 255], it gives features
# [B, d], and its `resize` makes an image fit. For the perceptual distance: it has `distance` of images in [-1, 1].
FOR_FID = ("digits", "inception")
FOR_DISTANCE = ("digits", "lpips")
MODES = ("clean", "legacy_tensorflow")  # of FID: what resizes the images for Inception


def load(network: str, path: str, device: torch.device, mode: str = "clean") -> torch.nn.Module:
    """The named network out of the file `path`, frozen, on `device`. Raises UserError for a file that is not it."""
    if network not in FOR_FID + FOR_DISTANCE:
        raise unknown("features network", network, {*FOR_FID, *FOR_DISTANCE})
    net = import_module(f"{__name__}.{network}").load(path, mode)
    return net.to(device).eval().requires_grad_(False)
