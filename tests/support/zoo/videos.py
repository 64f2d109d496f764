"""Pipelines of videos."""

import diffusers
import transformers

from support import pipes
from support.pipes import SCALED, t5

from . import text
from .flows import kandinsky5, kandinsky5_encoders, named
from .images import SANA, parts
from .parts import LINEAR, ddim, euler, kl, solver, unset, wan_vae

GUIDED = {"guidance_scale": 3.0}
SMALL = {**GUIDED, "height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 8}
UNSEEN = unset("feature_extractor", "image_encoder")


def motion(**more):
    return diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2,
        motion_max_seq_length=8, **more,
    )  # fmt: skip


def animate(kind=diffusers.AnimateDiffPipeline, **more):
    scheduler = ddim(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
    pipe = kind(**parts(), motion_adapter=motion(), scheduler=scheduler, **UNSEEN, **more)
    return pipe, {**GUIDED, "height": 8, "width": 8, "num_frames": 3, "decode_chunk_size": 2}


def animate_pag():
    pipe, call = animate(diffusers.AnimateDiffPAGPipeline)
    return pipe, call | {"pag_scale": 2.0}


def animate_xl():
    made = pipes.stable_diffusion_xl().components | {"scheduler": ddim(), **UNSEEN}
    pipe = diffusers.AnimateDiffSDXLPipeline(**made, motion_adapter=motion(use_motion_mid_block=False))
    return pipe, {**GUIDED, "height": 8, "width": 8, "num_frames": 3}


def text_to_video():
    made = parts()
    made["unet"] = diffusers.UNet3DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, cross_attention_dim=12, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), norm_num_groups=4,
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    pipe = diffusers.TextToVideoSDPipeline(**made, scheduler=ddim())
    return pipe, {**GUIDED, "height": 8, "width": 8, "num_frames": 3}


def latte():
    net = diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=4, num_attention_heads=2, caption_channels=12,
        in_channels=4, cross_attention_dim=8, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, video_length=3,
    )  # fmt: skip
    scheduler = ddim(**LINEAR)
    pipe = diffusers.LattePipeline(transformer=net, vae=kl(), scheduler=scheduler, **named([t5(12)]))
    return pipe, {**GUIDED, "height": 8, "width": 8, "video_length": 3, "clean_caption": False}


def cogvideox():
    net = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=12,
        num_layers=1, sample_width=2, sample_height=2, sample_frames=5, patch_size=2, temporal_compression_ratio=4,
        max_text_seq_length=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(
        **SCALED, prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0,
        timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    pipe = diffusers.CogVideoXPipeline(transformer=net, vae=vae, scheduler=scheduler, **named([t5(12)]))
    return pipe, SMALL


def allegro():
    net = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=2, caption_channels=12,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    vae.enable_tiling()
    scheduler = ddim(**LINEAR)
    pipe = diffusers.AllegroPipeline(transformer=net, vae=vae, scheduler=scheduler, **named([t5(12)]))
    return pipe, SMALL | {"num_frames": 8, "clean_caption": False}


def easy_animate():
    net = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=1, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=16, num_layers=1, sample_width=8, sample_height=8, patch_size=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3), block_out_channels=(8, 8, 8, 8),
        latent_channels=4, layers_per_block=1, norm_num_groups=2, spatial_group_norm=False,
    )  # fmt: skip
    encoders = named([text.qwen2(16, diffusers.EasyAnimatePipeline)])
    pipe = diffusers.EasyAnimatePipeline(transformer=net, vae=vae, scheduler=euler(), **encoders)
    return pipe, {"guidance_scale": 1.0, "height": 16, "width": 16, "num_frames": 5}


def wan_network(kind=diffusers.WanTransformer3DModel, **more):
    return kind(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=12, freq_dim=8, ffn_dim=8, num_layers=1, rope_max_seq_len=16, **more,
    )  # fmt: skip


def wan():
    scheduler = solver(kind=diffusers.UniPCMultistepScheduler)
    return diffusers.WanPipeline(transformer=wan_network(), vae=wan_vae(), scheduler=scheduler,
                                 **named([text.umt5(12)])), SMALL  # fmt: skip


def sky_reels():
    net = wan_network(diffusers.SkyReelsV2Transformer3DModel)
    scheduler = solver(8.0, diffusers.UniPCMultistepScheduler)
    return diffusers.SkyReelsV2Pipeline(transformer=net, vae=wan_vae(), scheduler=scheduler,
                                        **named([text.umt5(12)])), SMALL  # fmt: skip


def sana_video():
    net = diffusers.SanaVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=1, attention_head_dim=12, num_layers=1,
        num_cross_attention_heads=1, cross_attention_head_dim=12, cross_attention_dim=12, caption_channels=8,
        sample_size=8, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=16,
    )  # fmt: skip
    pipe = diffusers.SanaVideoPipeline(transformer=net, vae=wan_vae(), scheduler=solver(8.0),
                                       **named([text.gemma2(8)]))  # fmt: skip
    return pipe, SANA | {"frames": 5, "complex_human_instruction": []}


def mochi():
    net = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=8,
        in_channels=12, text_embed_dim=16, time_embed_dim=4, max_sequence_length=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    )  # fmt: skip
    scheduler = euler(invert_sigmas=True)
    pipe = diffusers.MochiPipeline(transformer=net, vae=vae, scheduler=scheduler, **named([t5(16)]))
    return pipe, SMALL | {"num_frames": 7}


def ltx():
    """Its tokens are no patches of 2x2."""
    net = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=12,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, timestep_conditioning=False, patch_size=1,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, patch_size_t=1,
    )  # fmt: skip
    scheduler = euler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
                      max_image_seq_len=4096, shift_terminal=0.1)  # fmt: skip
    pipe = diffusers.LTXPipeline(transformer=net, vae=vae, scheduler=scheduler, **named([t5(12)]))
    return pipe, SMALL | {"height": 32, "width": 32}


def hunyuan_vae(channels):
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=channels, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8,) * 4, layers_per_block=1,
        norm_num_groups=4, mid_block_add_attention=False,
    )  # fmt: skip


def hunyuan_video():
    """The network takes the guidance scale."""
    net = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    encoders = named((text.llama(16), text.clip(8, length=77)), "", "_2")
    pipe = diffusers.HunyuanVideoPipeline(transformer=net, vae=hunyuan_vae(4), scheduler=euler(shift=7.0), **encoders)
    return pipe, SMALL | {"prompt_template": {"template": "{}", "crop_start": 0}}


def hunyuan_video_15():
    """With a guider."""
    net = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=8,
        rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
    )  # fmt: skip
    pipeline = diffusers.HunyuanVideo15Pipeline
    encoders = named((text.qwen25(16, pipeline, kind=transformers.Qwen2_5_VLTextModel), text.byt5(8)), "", "_2")
    pipe = pipeline(
        transformer=net, vae=vae, scheduler=euler(shift=5.0), guider=diffusers.ClassifierFreeGuidance(3.0), **encoders
    )
    return pipe, {"height": 16, "width": 16, "num_frames": 5}


def kandinsky5_video():
    net = kandinsky5(4)
    encoders = kandinsky5_encoders(diffusers.Kandinsky5T2VPipeline)
    pipe = diffusers.Kandinsky5T2VPipeline(transformer=net, vae=hunyuan_vae(4), scheduler=euler(shift=5.0), **encoders)
    return pipe, SMALL | {"height": 32, "width": 32, "max_sequence_length": 16}


def motif_video():
    """With a guider, and channels of its state that are no latents."""
    net = diffusers.MotifVideoTransformer3DModel(
        in_channels=33, out_channels=16, num_attention_heads=1, attention_head_dim=12, num_layers=1,
        num_single_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    pipe = diffusers.MotifVideoPipeline(
        transformer=net, vae=wan_vae(), scheduler=euler(shift=7.0), feature_extractor=None,
        guider=diffusers.AdaptiveProjectedGuidance(), **named([text.t5gemma2(16)]),
    )  # fmt: skip
    return pipe, {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16}
