"""Small stand-ins, with random weights, for the large files that presets download."""

import diffusers
import numpy as np
import torch
import transformers
from torch import nn

from s4spipe.models.edm import Preconditioned
from s4spipe.runtime.files import write_tensors
from support import pipes


class Features(nn.Module):
    """Inception's interface: images of [0, 255] go in resized, or `layers` take them normalised."""

    def __init__(self, dimension: int):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, dimension))

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.layers((x - 128) / 128)


def inception(path, dimension=32):
    torch.manual_seed(0)
    torch.jit.script(Features(dimension)).save(str(path))
    return path


def alexnet(path):
    """The convolutions of torchvision's AlexNet, which LPIPS uses."""
    torch.manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    weights = {f"features.{i}.weight": 0.05 * torch.randn(shape) for i, shape in shapes.items()}
    torch.save(weights | {f"features.{i}.bias": torch.zeros(shape[0]) for i, shape in shapes.items()}, path)
    return path


def edm(path):
    """A converted EDM checkpoint of 8x8 pixels."""
    torch.manual_seed(0)
    kwargs = {"model_type": "SongUNet", "img_resolution": 8, "img_channels": 3, "channel_mult": [1, 2], "num_blocks": 1,
              "attn_resolutions": [4], "augment_dim": 9, "model_channels": 16}  # fmt: skip
    net = Preconditioned("EDMPrecond", kwargs)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    write_tensors(path, dict(net.state_dict()), {"edm": {"precond": "EDMPrecond", "kwargs": kwargs}})
    return path


def class_conditional_ldm(folder):
    pipe = pipes.latent_unconditional()
    pipe.register_modules(unet=diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), norm_num_groups=4,
        layers_per_block=1, attention_head_dim=2, cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ))  # fmt: skip
    pipes.saved(pipe, folder)
    write_tensors(folder / "class_embedding.safetensors", {"weight": torch.randn(5, 12)})
    return folder


def statistics(path, dimension=32):
    rng = np.random.default_rng(0)
    np.savez(path, mu=rng.standard_normal(dimension), sigma=np.eye(dimension))
    return path


def clip(folder):
    """A CLIP model of images of 16x16 pixels, its tokenizer knows letters; the model and its processor too."""
    torch.manual_seed(0)
    tokenizer, text = pipes.clip(8, projection=6)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text.config.to_dict(), vision_config=vision, projection_dim=6)
    model = transformers.CLIPModel(config).eval()
    model.text_model.load_state_dict(text.text_model.state_dict())
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    processor = transformers.CLIPProcessor(images, tokenizer)
    for part in (model, processor):
        part.save_pretrained(folder)
    return model, processor, text
