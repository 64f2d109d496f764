"""A flow-matching transformer of colour photographs, 16x16x3."""

from torch import nn

from benchmarks.rivals.problems import networks
from benchmarks.rivals.problems.pictures import Patches
from s4spipe.models import Denoiser, ModelSettings
from s4spipe.models.callable import DiffusersInterface

PATCHES = Patches({"astronaut.png": 3, "chelsea.png": 3, "coffee.png": 3, "motorcycle_left.png": 3}, 3, 16)
SETTINGS = {"shape": [3, 16, 16], "scheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}}


def network(weights: str) -> networks.DiT:
    """The network with the weights of a file; before its training if `weights` is empty."""
    return networks.trained(networks.DiT(channels=3, side=16, patch=2, width=64, depth=4, heads=4), weights)


def denoiser(net: nn.Module) -> Denoiser:
    return DiffusersInterface(net, ModelSettings(weights="", kind="callable", **SETTINGS))
