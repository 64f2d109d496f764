"""Pipelines of images with flow-matching networks."""

import diffusers
import transformers

from support import pipes
from support.pipes import clip, t5

from . import text
from .parts import dynamic, euler, kl, qwen_vae, unset, wan_vae

GUIDED = {"guidance_scale": 3.0}
SMALL = {**GUIDED, "height": 8, "width": 8}
SHORT = SMALL | {"max_sequence_length": 8}
ROPE = (4, 4, 8)
IMAGES = unset("image_encoder", "feature_extractor")


def named(made, *suffixes):
    """Tokenizers and text encoders under their pipelines' names."""
    found = {}
    for (tokenizer, encoder), suffix in zip(made, suffixes or ("",), strict=True):
        found |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder}
    return found


def stable_diffusion_3():
    pipe = pipes.stable_diffusion_3()
    tokenizer, encoder = t5(12)
    pipe.register_modules(tokenizer_3=tokenizer, text_encoder_3=encoder)
    return pipe, SHORT


def stable_diffusion_3_pag():
    encoders = named((clip(6, projection=2), clip(4, projection=4), t5(12)), "", "_2", "_3")
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4,
        num_attention_heads=2, caption_projection_dim=8, joint_attention_dim=12, pooled_projection_dim=6,
    )  # fmt: skip
    pipe = diffusers.StableDiffusion3PAGPipeline(transformer=net, vae=kl(), scheduler=euler(shift=3.0), **encoders)
    return pipe, SHORT | {"pag_scale": 2.0}


def flux():
    return pipes.flux_pipeline(embedded_guidance=True), SHORT


def flux_network(**more):
    usual = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
             "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": ROPE}  # fmt: skip
    return usual | more


def chroma():
    """The network is shown where the prompt ends."""
    net = diffusers.ChromaTransformer2DModel(
        **flux_network(approximator_hidden_dim=8, approximator_layers=1, approximator_num_channels=16)
    )
    return diffusers.ChromaPipeline(transformer=net, vae=kl(), scheduler=euler(), **named([t5(12)]), **IMAGES), SHORT


def bria():
    net = diffusers.BriaTransformer2DModel(
        **flux_network(attention_head_dim=8, pooled_projection_dim=None, axes_dims_rope=(0, 4, 4))
    )
    pipe = diffusers.BriaPipeline(transformer=net, vae=kl(), scheduler=dynamic(), **named([t5(12)]), **IMAGES)
    return pipe, SHORT | {"height": 16, "width": 16}


def bria_fibo():
    net = diffusers.BriaFiboTransformer2DModel(**flux_network(
        attention_head_dim=8, joint_attention_dim=32, text_encoder_dim=16, pooled_projection_dim=None,
        axes_dims_rope=(0, 4, 4),
    ))  # fmt: skip
    pipe = diffusers.BriaFiboPipeline(transformer=net, vae=wan_vae(), scheduler=euler(), **named([text.smol(16)]))
    return pipe, SHORT | {"height": 32, "width": 32, "negative_prompt": "red"}  # it has an id of its own for none


def ovis():
    net = diffusers.OvisImageTransformer2DModel(**flux_network(out_channels=16, joint_attention_dim=16))
    encoders = named([text.qwen3(16, diffusers.OvisImagePipeline)])
    return diffusers.OvisImagePipeline(transformer=net, vae=kl(), scheduler=dynamic(), **encoders), SHORT


def longcat():
    net = diffusers.LongCatImageTransformer2DModel(
        **flux_network(in_channels=64, joint_attention_dim=16, pooled_projection_dim=16)
    )
    tokenizer, encoder = text.qwen25(16, diffusers.LongCatImagePipeline)
    pipe = diffusers.LongCatImagePipeline(
        transformer=net, vae=kl(16), scheduler=dynamic(), tokenizer=tokenizer, text_encoder=encoder,
        text_processor=text.processor(tokenizer, transformers.Qwen2_5_VLProcessor),
    )  # fmt: skip
    return pipe, SMALL | {"enable_prompt_rewrite": False, "enable_cfg_renorm": True}


def flux2_network():
    return diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip


def flux2_vae():
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip


def flux2_klein():
    encoders = named([text.qwen3(16, kind=transformers.Qwen3ForCausalLM)])
    pipe = diffusers.Flux2KleinPipeline(transformer=flux2_network(), vae=flux2_vae(), scheduler=dynamic(), **encoders)
    return pipe, SMALL | {"max_sequence_length": 24, "text_encoder_out_layers": [1]}


def aura_flow():
    net = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=4,
        num_attention_heads=2, caption_projection_dim=8, joint_attention_dim=12, out_channels=4, pos_embed_max_size=64,
    )  # fmt: skip
    encoders = named([text.umt5(12)])
    return diffusers.AuraFlowPipeline(transformer=net, vae=kl(), scheduler=euler(shift=1.73), **encoders), SHORT


def lumina2():
    """Shown 1 - t."""
    net = diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=8, num_layers=1, num_refiner_layers=1,
        num_attention_heads=1, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), cap_feat_dim=8,
        axes_lens=(64, 16, 16),
    )  # fmt: skip
    encoders = named([text.gemma2(8)])
    pipe = diffusers.Lumina2Pipeline(transformer=net, vae=kl(), scheduler=euler(shift=6.0), **encoders)
    return pipe, SMALL | {"height": 16, "width": 16, "max_sequence_length": 24, "system_prompt": "draw"}


def lumina():
    net = diffusers.LuminaNextDiT2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=8, num_layers=1, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, norm_eps=1e-5, learn_sigma=True, qk_norm=True, cross_attention_dim=8,
    )  # fmt: skip
    encoders = named([text.gemma(8)])
    pipe = diffusers.LuminaPipeline(transformer=net, vae=kl(), scheduler=euler(), **encoders)
    return pipe, SHORT | {"height": 16, "width": 16, "clean_caption": False}


def qwen_image():
    net = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    encoders = named([text.qwen25(16, diffusers.QwenImagePipeline)])
    pipe = diffusers.QwenImagePipeline(transformer=net, vae=qwen_vae(), scheduler=dynamic(), **encoders)
    call = {"true_cfg_scale": 3.0, "negative_prompt": "red", "height": 16, "width": 16, "max_sequence_length": 12}
    return pipe, call


def krea2():
    net = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=8, timestep_embed_dim=8, text_hidden_dim=16, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=1, text_intermediate_size=8, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2), rope_theta=1000.0,
    )  # fmt: skip
    encoders = named([text.qwen3vl(16, diffusers.Krea2Pipeline, kind=transformers.Qwen3VLModel)])
    pipe = diffusers.Krea2Pipeline(
        transformer=net, vae=qwen_vae(), scheduler=dynamic(), text_encoder_select_layers=(0, 2), **encoders
    )
    return pipe, SHORT | {"height": 16, "width": 16, "max_sequence_length": 16}


def nucleus():
    net = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4), moe_enabled=False, capacity_factors=[8.0],
    )  # fmt: skip
    tokenizer, encoder = text.qwen3vl(16, diffusers.NucleusMoEImagePipeline)
    pipe = diffusers.NucleusMoEImagePipeline(
        transformer=net, vae=qwen_vae(), scheduler=euler(), text_encoder=encoder,
        processor=text.processor(tokenizer, transformers.Qwen3VLProcessor),
    )  # fmt: skip
    return pipe, SHORT | {"height": 16, "width": 16, "max_sequence_length": 96, "return_index": -1}


def z_image():
    """Shown 1 - t; its network takes lists of latents and of prompts of any length, and its output has another sign."""
    net = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=1,
        n_kv_heads=1, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[128, 16, 16],
    )  # fmt: skip
    encoders = named([text.qwen3(16, diffusers.ZImagePipeline)])
    pipe = diffusers.ZImagePipeline(transformer=net, vae=kl(), scheduler=euler(shift=3.0), **encoders)
    return pipe, SHORT | {"max_sequence_length": 32, "cfg_normalization": False}


def omnigen():
    """Shown 1 - t, of one training step; its network encodes the prompts itself."""
    net = diffusers.OmniGenTransformer2DModel(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=2, intermediate_size=8, num_layers=1, in_channels=4,
        time_step_dim=4, rope_scaling={"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]},
    )  # fmt: skip
    tokenizer, _ = text.llama(16)
    scheduler = euler(invert_sigmas=True, num_train_timesteps=1)
    pipe = diffusers.OmniGenPipeline(transformer=net, vae=kl(blocks=4), scheduler=scheduler, tokenizer=tokenizer)
    return pipe, SMALL | {"height": 32, "width": 32}


def cogview4():
    net = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=1, out_channels=4,
        text_embed_dim=16, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    scheduler = euler(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear")
    pipe = diffusers.CogView4Pipeline(transformer=net, vae=kl(), scheduler=scheduler, **named([text.glm(16)]))
    return pipe, SMALL | {"height": 16, "width": 16, "max_sequence_length": 16, "negative_prompt": "red"}


def kandinsky5(channels):
    net = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=channels, in_text_dim=16, in_text_dim2=12, time_dim=8, out_visual_dim=channels,
        patch_size=(1, 2, 2), model_dim=8, ff_dim=8, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 2, 2),
        visual_cond=False, attention_type="regular",
    )  # fmt: skip
    return net


def kandinsky5_encoders(pipeline):
    tokenizer, encoder = text.qwen25(16, pipeline)
    return named(((text.processor(tokenizer, transformers.Qwen2_5_VLProcessor), encoder),
                  text.clip(12, length=77)), "", "_2")  # fmt: skip


def hunyuan_image():
    """With a guider, and an encoder for text in quotes."""
    net = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=(1, 1), guidance_embeds=False, text_embed_dim=16, text_embed_2_dim=8,
        rope_axes_dim=(4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32, 32, 32), layers_per_block=1,
        scaling_factor=0.476986, spatial_compression_ratio=8, sample_size=32,
    )  # fmt: skip
    guiders = {
        "guider": diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        "ocr_guider": diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    }
    encoders = named((text.qwen25(16, diffusers.HunyuanImagePipeline), text.byt5(8)), "", "_2")
    pipe = diffusers.HunyuanImagePipeline(transformer=net, vae=vae, scheduler=euler(shift=5.0), **encoders, **guiders)
    return pipe, {"height": 32, "width": 32}
