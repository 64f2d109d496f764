"""From a pre-trained model to one callable: (x, t, condition) -> x0 prediction."""

import torch

from s4spipe.errors import UserError
from s4spipe.files import read_tensors
from s4spipe.models.edm import EDMDenoiser
from s4spipe.noise import NoiseSchedule


def noise_schedule(model_params: dict) -> NoiseSchedule:
    """The noise schedule of the model that `model_params` names, without loading its network."""
    return EDMDenoiser.noise_schedule


def load(model_params: dict, device: torch.device | str = "cpu") -> EDMDenoiser:
    """The denoiser that `model_params` (the block `model` of params.yaml) names, frozen, on `device`.

    It is called as (x, t, condition) and has `noise_schedule`, `sample_shape` and `num_classes`. Raises UserError for a
    file that is missing, truncated or holds another network.
    """
    from diffusers import UNet2DModel  # seconds to import, which only those who need a network should wait

    path = model_params["weights"]
    tensors, about = read_tensors(path)
    try:
        net = UNet2DModel(**about["unet"])
        net.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: does not hold a U-Net that s4spipe trained ({str(error).splitlines()[0]})") from None
    config = net.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    guidance = model_params.get("guidance", 1.0)
    denoiser = EDMDenoiser(net, about["sigma_data"], shape, (config.num_class_embeds or 1) - 1, guidance)
    return denoiser.to(device).eval().requires_grad_(False)
