"""Pipelines of diffusers with small random networks, and what to call them with."""

import diffusers
import torch
import transformers

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def autoencoder(latent_channels=4):
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), latent_channels=latent_channels, norm_num_groups=4, layers_per_block=1,
        shift_factor=0.1, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip


def unconditional():
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()), {"batch_size": 2}


def guided(prediction_type="epsilon"):
    """Stable Diffusion with embeddings of prompts instead of a text encoder."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=12, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(**SCALED, prediction_type=prediction_type, clip_sample=False, steps_offset=1)
    pipe = diffusers.StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    embeddings = torch.randn(2, 2, 5, 12)
    return pipe, {"prompt_embeds": embeddings[0], "negative_prompt_embeds": embeddings[1], "guidance_scale": 3.0,
                  "height": 8, "width": 8}  # fmt: skip


def classes():
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
        num_embeds_ada_norm=1000, norm_elementwise_affine=False,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    return diffusers.DiTPipeline(transformer, autoencoder(), scheduler), {"class_labels": [1, 7], "guidance_scale": 2.0}


def flow():
    """Stable Diffusion 3, without its text encoders."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4,
        num_attention_heads=2, caption_projection_dim=8, joint_attention_dim=12, pooled_projection_dim=6,
    )  # fmt: skip
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=autoencoder(),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    embeddings, pooled = torch.randn(2, 2, 5, 12), torch.randn(2, 2, 6)
    return pipe, {"prompt_embeds": embeddings[0], "negative_prompt_embeds": embeddings[1], "guidance_scale": 3.0,
                  "pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1],
                  "height": 8, "width": 8}  # fmt: skip


def flux():
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    )  # fmt: skip
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=autoencoder(), text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    return pipe, {"prompt_embeds": torch.randn(2, 5, 12), "pooled_prompt_embeds": torch.randn(2, 6), "height": 8,
                  "width": 8, "guidance_scale": 1.0}  # fmt: skip


def wan():
    """A video pipeline, without its text encoder and autoencoder."""
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    embeddings = torch.randn(2, 1, 5, 12)
    return pipe, {"prompt_embeds": embeddings[0], "negative_prompt_embeds": embeddings[1], "guidance_scale": 3.0,
                  "height": 32, "width": 48, "num_frames": 9}  # fmt: skip


# -- with text encoders, so that prompts can be given; and the others that can be saved to a folder ------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip(width, projection=None):
    """A tokenizer of letters and a text encoder."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=8)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=8, projection_dim=projection or width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=8, bos_token_id=52, eos_token_id=53,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return tokenizer, kind(config).eval()


def t5(width):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *((letter, -2.0) for letter in LETTERS)]
    tokenizer = transformers.T5TokenizerFast(vocab=pieces, model_max_length=8, extra_ids=0)
    config = transformers.T5Config(vocab_size=32, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return tokenizer, transformers.T5EncoderModel(config).eval()


def stable_diffusion(prediction_type="epsilon"):
    pipe, _ = guided(prediction_type)
    tokenizer, encoder = clip(12)
    pipe.register_modules(tokenizer=tokenizer, text_encoder=encoder)
    return pipe


def stable_diffusion_xl():
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=20, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 6,
    )  # fmt: skip
    (tokenizer, encoder), (tokenizer_2, encoder_2) = clip(12), clip(8, projection=6)
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(), text_encoder=encoder, text_encoder_2=encoder_2, tokenizer=tokenizer,
        tokenizer_2=tokenizer_2, unet=unet, scheduler=diffusers.EulerDiscreteScheduler(**SCALED),
        add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3():
    pipe, _ = flow()
    (tokenizer, encoder), (tokenizer_2, encoder_2) = clip(6, projection=2), clip(4, projection=4)
    text = {"tokenizer": tokenizer, "text_encoder": encoder, "tokenizer_2": tokenizer_2, "text_encoder_2": encoder_2}
    return diffusers.StableDiffusion3Pipeline(**pipe.components | text)


def flux_pipeline(embedded_guidance=False):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, axes_dims_rope=(4, 4, 8), guidance_embeds=embedded_guidance,
    )  # fmt: skip
    (tokenizer, encoder), (tokenizer_2, encoder_2) = clip(6), t5(12)
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=autoencoder(), text_encoder=encoder,
        tokenizer=tokenizer, text_encoder_2=encoder_2, tokenizer_2=tokenizer_2, transformer=transformer,
    )  # fmt: skip


def latent_unconditional():
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), norm_num_groups=4,
        layers_per_block=1, attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vqvae = diffusers.VQModel(
        block_out_channels=(8,), latent_channels=3, num_vq_embeddings=16, norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), scaling_factor=0.5,
    )  # fmt: skip
    return diffusers.LDMPipeline(vqvae=vqvae, unet=unet, scheduler=diffusers.DDIMScheduler(**SCALED, clip_sample=False))


def saved(pipe, folder):
    """The pipeline's folder, its networks not as diffusers initialises some of them, to give zero."""
    for name in ("unet", "transformer"):
        net = getattr(pipe, name, None)
        for parameter in net.parameters() if net is not None else ():
            if parameter.abs().max() == 0:
                torch.nn.init.normal_(parameter, std=0.1)
    pipe.save_pretrained(folder)
    return folder
