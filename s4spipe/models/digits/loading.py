"""Loading a U-Net that `s4spipe.training.unet` trained."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from s4spipe.models.base.settings import ModelSettings
from s4spipe.models.digits.denoiser import EDMDenoiser
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.checks import check_shapes, is_number, whole
from s4spipe.runtime.errors import UserError, needs, shown
from s4spipe.runtime.files import read_tensors

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def noise_schedule(settings: ModelSettings) -> NoiseSchedule:
    """The noise schedule of the model, whatever its weights."""
    return EDMDenoiser.noise_schedule


def load(settings: ModelSettings) -> EDMDenoiser:
    """The denoiser in settings.weights. Raises UserError for a file that is broken or holds another network."""
    with needs("diffusers", "a model of kind digits"):
        from diffusers import UNet2DModel  # takes seconds to import
    path = settings.weights
    tensors, metadata = read_tensors(path)
    try:
        if not isinstance(metadata, dict):
            raise TypeError("no description of a network")
        unet = metadata["unet"]
        if unet.get("layers_per_block", 0) > len(tensors):
            raise RuntimeError(f"{unet['layers_per_block']} layers of {len(tensors)} tensors")
        check_shapes(lambda: UNet2DModel(**unet), tensors)
        net = UNet2DModel(**unet)
        net.load_state_dict(tensors)
        return denoiser_of(net, metadata)
    except Exception as error:  # a damaged description makes diffusers and torch raise any kind
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"{path}: does not hold a U-Net that s4spipe trained ({reason})") from None


def denoiser_of(net: "UNet2DModel", metadata: Mapping[str, Any]) -> EDMDenoiser:
    """The denoiser around a U-Net, unconditional if the U-Net has no class embeddings.

    Args:
        net: the U-Net.
        metadata: metadata of its file: sigma_data and, if the U-Net's channels are squares of pixels, their side
            `shuffle`.

    Raises:
        UserError: for a sigma_data or a shuffle that does not go with the U-Net.
    """
    config = net.config
    sigma_data, shuffle = metadata["sigma_data"], whole("shuffle", metadata.get("shuffle", 1))
    if not (is_number(sigma_data) and 0 < sigma_data < math.inf):
        raise UserError(f"sigma_data must be a positive number, got {shown(sigma_data)}")
    if config.in_channels % shuffle**2:
        raise UserError(f"shuffle {shuffle} needs a multiple of {shuffle**2} channels, got {config.in_channels}")
    shape = (config.in_channels, config.sample_size, config.sample_size)
    num_classes = (config.num_class_embeds or 1) - 1
    return EDMDenoiser(net, sigma_data, shape, num_classes, shuffle)
