"""Pipelines of images whose networks were trained with a table of betas."""

import diffusers

from support import pipes
from support.pipes import SCALED, t5

from . import text
from .parts import LINEAR, ddim, deep, kl, solver, unet, unset
from .text import clip

GUIDED = {"guidance_scale": 3.0}
SMALL = {**GUIDED, "height": 8, "width": 8}
SAFE = {**unset("safety_checker", "feature_extractor", "image_encoder"), "requires_safety_checker": False}


def stable_diffusion():
    return pipes.stable_diffusion(), SMALL


def stable_diffusion_xl():
    return pipes.stable_diffusion_xl(), SMALL


def parts(width=12, **more):
    tokenizer, encoder = clip(width)
    return {"vae": kl(), "tokenizer": tokenizer, "text_encoder": encoder, "unet": unet(width, **more)}


def stable_diffusion_pag():
    pipe = diffusers.StableDiffusionPAGPipeline(**parts(), scheduler=ddim(), **SAFE)
    return pipe, SMALL | {"pag_scale": 2.0}


def stable_diffusion_xl_pag():
    made = pipes.stable_diffusion_xl().components
    made = {key: part for key, part in made.items() if key not in ("image_encoder", "feature_extractor")}
    pipe = diffusers.StableDiffusionXLPAGPipeline(**made, add_watermarker=False)
    return pipe, SMALL | {"pag_scale": 2.0}


def gligen():
    made = parts(attention_type="gated")
    safe = unset("safety_checker", "feature_extractor") | {"requires_safety_checker": False}
    call = SMALL | {"gligen_phrases": ["cat"], "gligen_boxes": [[0.1, 0.2, 0.5, 0.6]]}
    return diffusers.StableDiffusionGLIGENPipeline(**made, scheduler=ddim(), **safe), call


def text_to_image_ldm():
    tokenizer, encoder = clip(12, length=77)
    pipe = diffusers.LDMTextToImagePipeline(
        vqvae=kl(), bert=encoder, tokenizer=tokenizer, unet=unet(12), scheduler=ddim()
    )
    return pipe, SMALL


def stable_unclip():
    from diffusers.pipelines.stable_diffusion import stable_unclip_image_normalizer as module

    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, embedding_dim=6, num_layers=1, num_embeddings=8
    )
    (tokenizer, encoder), (prior_tokenizer, prior_encoder) = clip(12), clip(6, projection=6)
    pipe = diffusers.StableUnCLIPPipeline(
        prior_tokenizer=prior_tokenizer, prior_text_encoder=prior_encoder, prior=prior,
        prior_scheduler=diffusers.DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2",
                                                variance_type="fixed_small_log", clip_sample_range=5.0),
        image_normalizer=module.StableUnCLIPImageNormalizer(embedding_dim=6),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"), tokenizer=tokenizer,
        text_encoder=encoder, vae=kl(), scheduler=ddim(prediction_type="v_prediction"),
        unet=unet(12, class_embed_type="projection", projection_class_embeddings_input_dim=12),
    )  # fmt: skip
    return pipe, SMALL | {"prior_num_inference_steps": 2}


def deep_floyd():
    """Of pixels, and with a learned variance."""
    tokenizer, encoder = t5(12)
    net = unet(
        32, in_channels=3, out_channels=6, encoder_hid_dim=12, attention_head_dim=4, addition_embed_type="text",
        addition_embed_type_num_heads=2, cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), norm_num_groups=4,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", act_fn="gelu",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True, sample_max_value=1.5,
        dynamic_thresholding_ratio=0.95,
    )  # fmt: skip
    pipe = diffusers.IFPipeline(
        tokenizer=tokenizer, text_encoder=encoder, unet=net, scheduler=scheduler, requires_safety_checker=False,
        **unset("safety_checker", "feature_extractor", "watermarker"),
    )  # fmt: skip
    return pipe, SMALL | {"clean_caption": False}


def kandinsky3():
    tokenizer, encoder = t5(12)
    net = diffusers.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=8, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(8, 16), cross_attention_dim=8, encoder_hid_dim=12,
    )  # fmt: skip
    movq = diffusers.VQModel(
        block_out_channels=(8, 8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 4, latent_channels=4,
        up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=4, num_vq_embeddings=12, vq_embed_dim=4,
        layers_per_block=1,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False, steps_offset=1)
    pipe = diffusers.Kandinsky3Pipeline(
        tokenizer=tokenizer, text_encoder=encoder, unet=net, scheduler=scheduler, movq=movq
    )
    return pipe, {**GUIDED, "height": 64, "width": 64}


def pixart_network():
    return diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=4, num_attention_heads=2, caption_channels=12,
        in_channels=4, cross_attention_dim=8, out_channels=8, norm_num_groups=4,
    )  # fmt: skip


PIXART = SMALL | {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 8}


def pixart(kind=diffusers.PixArtAlphaPipeline, **more):
    tokenizer, encoder = t5(12)
    scheduler = diffusers.DPMSolverMultistepScheduler(**LINEAR)
    return kind(tokenizer=tokenizer, text_encoder=encoder, vae=kl(), transformer=pixart_network(),
                scheduler=scheduler, **more), PIXART  # fmt: skip


def pixart_sigma():
    return pixart(diffusers.PixArtSigmaPipeline)


def pixart_sigma_pag():
    pipe, call = pixart(diffusers.PixArtSigmaPAGPipeline)
    return pipe, call | {"pag_scale": 2.0}


def hunyuan_dit(kind=diffusers.HunyuanDiTPipeline, **more):
    (tokenizer, encoder), (tokenizer_2, encoder_2) = text.bert(8), text.t5(16)
    net = diffusers.HunyuanDiT2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        cross_attention_dim=8, cross_attention_dim_t5=16, pooled_projection_dim=6, hidden_size=16,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.03, prediction_type="v_prediction",
        steps_offset=1, clip_sample=False,
    )  # fmt: skip
    pipe = kind(
        vae=kl(), text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=encoder_2, tokenizer_2=tokenizer_2,
        transformer=net, scheduler=scheduler, requires_safety_checker=False,
        **unset("safety_checker", "feature_extractor"), **more,
    )  # fmt: skip
    return pipe, {**GUIDED, "height": 16, "width": 16, "use_resolution_binning": False}


def hunyuan_dit_pag():
    pipe, call = hunyuan_dit(diffusers.HunyuanDiTPAGPipeline)
    return pipe, call | {"pag_scale": 2.0}


def cogview3():
    tokenizer, encoder = t5(12)
    net = diffusers.CogView3PlusTransformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2, out_channels=4,
        text_embed_dim=12, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(
        **SCALED, clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=4.0,
        timestep_spacing="trailing",
    )  # fmt: skip
    pipe = diffusers.CogView3PlusPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=kl(), transformer=net, scheduler=scheduler
    )
    return pipe, SMALL | {"max_sequence_length": 8}


def sana_network(**more):
    return diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=8, **more,
    )  # fmt: skip


SANA = {**GUIDED, "height": 32, "width": 32, "max_sequence_length": 8, "use_resolution_binning": False,
        "complex_human_instruction": None, "clean_caption": False}  # fmt: skip


def sana(kind=diffusers.SanaPipeline, **more):
    tokenizer, encoder = text.gemma2(8)
    return kind(
        tokenizer=tokenizer, text_encoder=encoder, vae=deep(), transformer=sana_network(), scheduler=solver(), **more
    ), SANA


def sana_pag():
    pipe, call = sana(diffusers.SanaPAGPipeline)
    return pipe, call | {"pag_scale": 2.0}
