"""What an evaluation of each preset's network costs, counted on networks of the published sizes without their weights.

Run as `python -m benchmarks.flops`; the figures stand in the presets, in their blocks `about`.
"""

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

from s4spipe.models.edm import Preconditioned

EDM = {"model_type": "SongUNet", "img_channels": 3, "augment_dim": 9}
ATTENTION = ("DownBlock2D", *["AttnDownBlock2D"] * 3), (*["AttnUpBlock2D"] * 3, "UpBlock2D")
CROSS = ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3), (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D")


def edm(size: int, channel_mult: list[int]):
    kwargs = EDM | {"img_resolution": size, "channel_mult": channel_mult}
    return lambda: Preconditioned("EDMPrecond", kwargs), lambda: (torch.empty(1, 3, size, size), torch.ones(1))


def text(batch: int, channels: int, side: int, width: int) -> tuple[torch.Tensor, ...]:
    return torch.empty(batch, channels, side, side), torch.ones(batch), torch.empty(batch, 77, width)


def xl_inputs() -> tuple:
    x, t, embeddings = text(1, 4, 128, 2048)
    return x, t, embeddings, None, None, None, None, {"text_embeds": torch.empty(1, 1280), "time_ids": torch.ones(1, 6)}


NETWORKS = {
    "cifar10": edm(32, [2, 2, 2]),
    "ffhq64, afhqv2_64": edm(64, [1, 2, 2, 2]),
    "lsun_bedroom": (
        lambda: diffusers.UNet2DModel(
            64, 3, 3, block_out_channels=(224, 448, 672, 896), down_block_types=ATTENTION[0],
            up_block_types=ATTENTION[1], attention_head_dim=32,
        ),
        lambda: (torch.empty(1, 3, 64, 64), torch.ones(1)),
    ),
    "imagenet256": (
        lambda: diffusers.UNet2DConditionModel(
            64, 3, 3, block_out_channels=(192, 384, 576, 960), cross_attention_dim=512, attention_head_dim=8,
            down_block_types=CROSS[0], up_block_types=CROSS[1],
        ),
        lambda: (torch.empty(1, 3, 64, 64), torch.ones(1), torch.empty(1, 1, 512)),
    ),
    "mscoco, sd15": (
        lambda: diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        lambda: text(1, 4, 64, 768),
    ),
    "dit_xl_256": (
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
            sample_size=32, patch_size=2, num_embeds_ada_norm=1000,
        ),
        lambda: (torch.empty(1, 4, 32, 32), torch.ones(1), torch.zeros(1, dtype=torch.long)),
    ),
    "sdxl": (
        lambda: diffusers.UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
            down_block_types=CROSS[0][:3], up_block_types=CROSS[1][1:], transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20], use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        ),
        xl_inputs,
    ),
    "sd3": (
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, pos_embed_max_size=192,
            joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
        ),
        lambda: (torch.empty(1, 16, 128, 128), torch.empty(1, 333, 4096), torch.empty(1, 2048), torch.ones(1)),
    ),
}  # fmt: skip


def main() -> None:
    print(f"{'preset':20} {'million parameters':>18} {'GFLOP per evaluation':>20}")
    for name, (network, inputs) in NETWORKS.items():
        with torch.device("meta"), torch.no_grad():
            net = network()
            with FlopCounterMode(display=False) as counter:
                net(*inputs())
        parameters = sum(p.numel() for p in net.parameters())
        print(f"{name:20} {parameters / 1e6:18.0f} {counter.get_total_flops() / 1e9:20.0f}")


if __name__ == "__main__":
    main()
