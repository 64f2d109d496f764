"""Parts that many pipelines of the zoo have: schedulers, autoencoders, networks."""

import diffusers

from support.pipes import SCALED

LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}


def ddim(**more):
    betas = {} if "beta_schedule" in more else SCALED
    return diffusers.DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **more)


def euler(**more):
    return diffusers.FlowMatchEulerDiscreteScheduler(**more)


def dynamic(**more):
    """As Flux.1 dev's: the shift depends on the size of the image."""
    return euler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
                 max_image_seq_len=4096, shift=3.0, **more)  # fmt: skip


def solver(shift=3.0, kind=diffusers.DPMSolverMultistepScheduler):
    """A scheduler of models with betas, which samples a flow model."""
    return kind(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift)


def kl(channels=4, blocks=1, **more):
    """An autoencoder of images; each block but one halves the sides."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * blocks, latent_channels=channels, norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        **{"shift_factor": 0.1, "scaling_factor": 0.4} | more,
    )  # fmt: skip


def wan_vae(**more):
    """Sides are divided by 8, and 4 frames after the first are one."""
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True], **more
    )


def qwen_vae():
    """Sides are divided by 4."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1] * 4, latents_std=[0.9] * 4,
    )  # fmt: skip


def deep():
    """Sana's autoencoder; sides are divided by 4."""
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
        encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip


def unet(width, kind=diffusers.UNet2DConditionModel, **more):
    """A U-Net that attends to text of this width."""
    usual = {
        "sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
        "attention_head_dim": 2, "cross_attention_dim": width,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return kind(**usual | more)


def vocoder(bins=8):
    import transformers

    return transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(
        model_in_dim=bins, sampling_rate=16000, upsample_initial_channel=8, upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    ))  # fmt: skip


def unset(*names):
    return dict.fromkeys(names)
