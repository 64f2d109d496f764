"""Pipelines of diffusers that encode prompts, each with tiny random parts, complete enough to be saved and loaded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from . import audio, flows, images, text, videos

NETWORKS = ("unet", "transformer", "prior")


def lively(make: Callable[[], tuple[Any, dict]]) -> Callable[[], tuple[Any, dict]]:
    """The factory, with networks whose outputs are not zero and depend on their prompts."""

    def made() -> tuple[Any, dict]:
        if make in ACCELERATE:
            pytest.importorskip("accelerate")
        pipe, call = make()
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                part.eval()
                if name in NETWORKS:
                    text.live(part, scale=2 if make in DEAF else 1)
        pipe.set_progress_bar_config(disable=True)
        return pipe, dict(call)

    return made


# Without accelerate, diffusers loads no network of which some layers always stay in float32.
ACCELERATE = (flows.krea2, videos.wan, videos.sky_reels, videos.kandinsky5_video)
# At their initial scale, these hardly change with the prompt.
DEAF = (flows.aura_flow, flows.ovis, flows.longcat, flows.nucleus, videos.hunyuan_video_15)

IMAGES = {
    "StableDiffusionPipeline": images.stable_diffusion,
    "StableDiffusionXLPipeline": images.stable_diffusion_xl,
    "StableDiffusionPAGPipeline": images.stable_diffusion_pag,
    "StableDiffusionXLPAGPipeline": images.stable_diffusion_xl_pag,
    "StableDiffusionGLIGENPipeline": images.gligen,
    "LDMTextToImagePipeline": images.text_to_image_ldm,
    "StableUnCLIPPipeline": images.stable_unclip,
    "IFPipeline": images.deep_floyd,
    "Kandinsky3Pipeline": images.kandinsky3,
    "PixArtAlphaPipeline": images.pixart,
    "PixArtSigmaPipeline": images.pixart_sigma,
    "PixArtSigmaPAGPipeline": images.pixart_sigma_pag,
    "HunyuanDiTPipeline": images.hunyuan_dit,
    "HunyuanDiTPAGPipeline": images.hunyuan_dit_pag,
    "CogView3PlusPipeline": images.cogview3,
    "SanaPipeline": images.sana,
    "SanaPAGPipeline": images.sana_pag,
}
FLOWS = {
    "StableDiffusion3Pipeline": flows.stable_diffusion_3,
    "StableDiffusion3PAGPipeline": flows.stable_diffusion_3_pag,
    "FluxPipeline": flows.flux,
    "ChromaPipeline": flows.chroma,
    "BriaPipeline": flows.bria,
    "BriaFiboPipeline": flows.bria_fibo,
    "OvisImagePipeline": flows.ovis,
    "LongCatImagePipeline": flows.longcat,
    "Flux2KleinPipeline": flows.flux2_klein,
    "AuraFlowPipeline": flows.aura_flow,
    "Lumina2Pipeline": flows.lumina2,
    "LuminaPipeline": flows.lumina,
    "QwenImagePipeline": flows.qwen_image,
    "Krea2Pipeline": flows.krea2,
    "NucleusMoEImagePipeline": flows.nucleus,
    "ZImagePipeline": flows.z_image,
    "OmniGenPipeline": flows.omnigen,
    "CogView4Pipeline": flows.cogview4,
    "HunyuanImagePipeline": flows.hunyuan_image,
}
VIDEOS = {
    "AnimateDiffPipeline": videos.animate,
    "AnimateDiffPAGPipeline": videos.animate_pag,
    "AnimateDiffSDXLPipeline": videos.animate_xl,
    "TextToVideoSDPipeline": videos.text_to_video,
    "LattePipeline": videos.latte,
    "CogVideoXPipeline": videos.cogvideox,
    "AllegroPipeline": videos.allegro,
    "EasyAnimatePipeline": videos.easy_animate,
    "WanPipeline": videos.wan,
    "SkyReelsV2Pipeline": videos.sky_reels,
    "SanaVideoPipeline": videos.sana_video,
    "MochiPipeline": videos.mochi,
    "LTXPipeline": videos.ltx,
    "HunyuanVideoPipeline": videos.hunyuan_video,
    "HunyuanVideo15Pipeline": videos.hunyuan_video_15,
    "Kandinsky5T2VPipeline": videos.kandinsky5_video,
    "MotifVideoPipeline": videos.motif_video,
}
AUDIO = {
    "AudioLDMPipeline": audio.audio_ldm,
    "AudioLDM2Pipeline": audio.audio_ldm2,
    "StableAudio3Pipeline": audio.stable_audio_3,
}
ZOO: dict[str, Callable[[], tuple[Any, dict]]] = {
    name: lively(make) for name, make in {**IMAGES, **FLOWS, **VIDEOS, **AUDIO}.items()
}
