"""Pipelines of sounds."""

import diffusers
import transformers

from support.pipes import t5

from . import text
from .flows import named
from .parts import ddim, euler, unet, vocoder

GUIDED = {"guidance_scale": 3.0}


def kl(**more):
    """Of spectrograms of 8 bands; it halves the sides."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), in_channels=1, out_channels=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip


def audio_ldm():
    tokenizer, config, _ = text.clap(8)
    encoder = transformers.ClapTextModelWithProjection(config).eval()
    net = unet(
        None, class_embed_type="simple_projection", projection_class_embeddings_input_dim=8,
        class_embeddings_concat=True, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=(8, 16),
    )  # fmt: skip
    pipe = diffusers.AudioLDMPipeline(
        vae=kl(), unet=net, scheduler=ddim(), vocoder=vocoder(), tokenizer=tokenizer, text_encoder=encoder
    )
    return pipe, {**GUIDED, "audio_length_in_s": 0.004}


def audio_ldm2():
    """A language model continues the prompt, and the network attends to both."""
    tokenizer, _, config = text.clap(8)
    tokenizer_2, encoder_2 = t5(12)
    net = unet(
        None, kind=diffusers.AudioLDM2UNet2DConditionModel, cross_attention_dim=([None, 8, 12],) * 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    language = transformers.GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=16, n_positions=64)
    language.max_new_tokens = 4
    pipe = diffusers.AudioLDM2Pipeline(
        vae=kl(), unet=net, scheduler=ddim(), vocoder=vocoder(), tokenizer=tokenizer, tokenizer_2=tokenizer_2,
        text_encoder=transformers.ClapModel(config).eval(), text_encoder_2=encoder_2,
        feature_extractor=transformers.ClapFeatureExtractor(), language_model=transformers.GPT2LMHeadModel(language),
        projection_model=diffusers.AudioLDM2ProjectionModel(
            text_encoder_dim=8, text_encoder_1_dim=12, langauge_model_dim=8
        ),
    )  # fmt: skip
    return pipe, {**GUIDED, "audio_length_in_s": 0.004, "max_new_tokens": 4}


def stable_audio_3():
    net = diffusers.StableAudio3DiTModel(
        io_channels=8, patch_size=1, embed_dim=16, depth=1, num_heads=2, cond_token_dim=8, global_cond_dim=8,
        local_add_cond_dim=5, timestep_features_dim=16, ff_mult=2, num_memory_tokens=3,
        use_differential_attention=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderSAME(
        audio_channels=2, patch_size=2, encoder_channels=8, encoder_c_mults=(2,), encoder_strides=(2,),
        encoder_transformer_depths=(1,), latent_dim=8, use_differential_attention=False, dim_heads=4, ff_mult=2,
        sampling_rate=16,
    )  # fmt: skip
    from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder

    pipe = diffusers.StableAudio3Pipeline(
        transformer=net, vae=vae, scheduler=euler(num_train_timesteps=1, shift=1.0),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=8, fourier_dim=16),
        **named([text.t5gemma(8)]),
    )  # fmt: skip
    return pipe, {"duration": 1.0}
