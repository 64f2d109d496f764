"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) from the package lpips, with its backbone from a local file."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from s4spipe.runtime.errors import UserError, needs
from s4spipe.runtime.files import missing

# By which torchvision's two networks are told apart.
FIRST_LAYERS: dict[tuple[int, ...], str] = {
    (64, 3, 3, 3): "vgg",
    (64, 3, 11, 11): "alex",
}


class LPIPS(nn.Module):
    """LPIPS of images in [-1, 1]. As in Consistency Models (Song et al. 2023, arXiv 2303.01469, App. C), images smaller
    than 256 pixels are first enlarged to 224."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """What LPIPS of images [B, 1 or 3, height, width] is the squared norm of, [B, m]: differences of the layers'
        normalised activations, times the roots of the learned channel weights (eq. 1)."""
        layers = []
        for lin, *maps in zip(self.net.lins, *map(self._layers, (x, y)), strict=True):
            a, b = (seen / (seen.norm(dim=1, keepdim=True) + 1e-10) for seen in maps)
            weights = lin.model[-1].weight[0]  # [channels, 1, 1], none below 0
            layers.append(((a - b) * weights.sqrt() / a[0, 0].numel() ** 0.5).flatten(1))
        return torch.cat(layers, 1)

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, sum of channels]: the spatial means of the backbone's layers, for images clipped to [-1, 1]."""
        return torch.cat([layer.mean(dim=(2, 3)) for layer in self._layers(images.clamp(-1, 1))], 1)

    def _layers(self, images: Tensor) -> Sequence[Tensor]:
        """The backbone's layers, each [B, channels, height, width]."""
        return self.net.net(self.net.scaling_layer(enlarged(images)))


def enlarged(images: Tensor) -> Tensor:
    images = images.float().expand(-1, 3, -1, -1)
    return images if images.shape[-1] >= 256 else interpolate(images, size=(224, 224), mode="bilinear")


def load(path: str, mode: str = "") -> LPIPS:
    """LPIPS over the backbone in `path`: torchvision's VGG-16 or AlexNet, as its tensors tell.

    The learned channel weights come with the package. Raises UserError if it is not installed, or for another file.
    """
    with needs("full", "perceptual.network: lpips"):
        import lpips
    tensors = backbone(path)
    shape: tuple[int, ...] = tuple(tensors.get("features.0.weight", torch.empty(0)).shape)
    name = FIRST_LAYERS.get(shape)
    if name is None:
        raise UserError(f"{path}: not the weights of torchvision's VGG-16 or AlexNet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips uses an old argument name of torchvision
        net = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    with torch.no_grad():
        for key, parameter in net.net.named_parameters():
            _, layer, kind = key.split(".")  # slice2.5.weight is torchvision's features.5.weight
            if (value := tensors.get(f"features.{layer}.{kind}")) is None or value.shape != parameter.shape:
                raise UserError(f"{path}: not all of torchvision's {name} (features.{layer}.{kind})")
            parameter.copy_(value)
    return LPIPS(net)


def backbone(path: str) -> dict[str, Tensor]:
    if not Path(path).exists():
        raise missing(path)
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, weights_only=True, map_location="cpu"))
    except Exception as error:  # of torch's and of safetensors' many kinds
        raise UserError(f"{path}: not a complete file of weights ({str(error).splitlines()[0][:150]})") from None
