"""Loading a features network by its name, for FID and related metrics or for the perceptual distance."""

from importlib import import_module
from typing import Any

import torch

from s4spipe.runtime.errors import unknown

# A package of s4spipe.features for each, with `load(path, mode)`; that of `callable` takes the user's function. For
# FID: called with float32 images in [0, 255], it gives features [B, d], and its `resize` makes an image fit. For
# learning: it has the `distance` of images in [-1, 1], and `embed`, which gives their features.
FOR_FID = ("digits", "inception", "dinov2", "random", "callable")
FOR_DISTANCE = ("digits", "lpips", "dinov2", "random", "callable")
MODES = ("clean", "legacy_tensorflow")  # of FID: what resizes the images for Inception


def load(
    network: str, path: str, device: torch.device, mode: str = "clean", source: str = "", key: str = "source"
) -> Any:
    """Load a network, frozen.

    Args:
        network: its name.
        path: the file of its weights.
        device: where it runs.
        mode: what resizes images for Inception.
        source: for `callable`, the function ("module:function") that returns the network.
        key: the key of params.yaml that `source` is from, for messages.

    Raises:
        UserError: for a file of another network, and for a function that cannot be used.
    """
    if network not in FOR_FID + FOR_DISTANCE:
        raise unknown("features network", network, {*FOR_FID, *FOR_DISTANCE})
    package = import_module(f"s4spipe.features.{network}")
    net = package.load(path, key, source) if network == "callable" else package.load(path, mode)
    return net.to(device).eval().requires_grad_(False)
