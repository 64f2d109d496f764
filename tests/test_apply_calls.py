"""Ways to call a pipeline that must not change what a solver makes: looking on, several images, precisions, masks."""

from dataclasses import replace

import diffusers
import pytest
import torch
from support.pipes import SCALED, autoencoder, guided, stable_diffusion

import s4spipe
from s4spipe.noise import VPDiscrete, alphas_cumprod
from s4spipe.runtime.errors import UserError
from s4spipe.scheduler import S4SScheduler
from s4spipe.solvers import registry

SD = VPDiscrete(alphas_cumprod("scaled_linear", 0.00085, 0.012, 1000))
TABLE = replace(registry.make("dpmpp_2m", "logsnr", SD, 4), c_0=torch.tensor(0.9).double())


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    pipe, call = guided()
    pipe.set_progress_bar_config(disable=True)
    s4spipe.apply(pipe, TABLE)
    pipe.call = call | {"num_inference_steps": 4, "output_type": "latent"}
    return pipe


def latents(pipe, **more):
    return pipe(**{"generator": torch.manual_seed(1), **pipe.call, **more}).images


def test_a_callback_that_only_looks_changes_nothing(pipe):
    seen, expected = [], latents(pipe)

    def look(_pipe, i, _t, given):
        seen.append((i, given["latents"].clone()))
        return given if i % 2 else {}

    assert torch.equal(latents(pipe, callback_on_step_end=look), expected)
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1][1], expected)


def test_a_callback_that_changes_latents_is_refused(pipe):
    with pytest.raises(UserError, match="the sample was changed between two steps"):
        latents(pipe, callback_on_step_end=lambda _pipe, _i, _t, given: {"latents": given["latents"] * 1.01})


def test_an_interrupted_run_leaves_nothing_behind(pipe):
    expected = latents(pipe)

    def stop(pipe, _i, _t, _given):
        pipe._interrupt = True
        return {}

    assert not torch.equal(latents(pipe, callback_on_step_end=stop), expected)
    pipe._interrupt = False
    assert torch.equal(latents(pipe), expected)


def test_several_images_for_a_prompt_and_a_generator_for_each(pipe):
    both = latents(pipe, num_images_per_prompt=2, generator=[torch.Generator().manual_seed(i) for i in range(4)])
    for i in range(4):
        one = {key: value[i // 2 : i // 2 + 1] for key, value in pipe.call.items() if key.endswith("embeds")}
        alone = latents(pipe, **one, generator=[torch.Generator().manual_seed(i)])
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_and_under_autocast_the_noise_is_scaled_too(pipe):
    expected, noise = latents(pipe), torch.randn(2, 4, 8, 8, generator=torch.manual_seed(2))
    own = latents(pipe, latents=noise)
    with torch.autocast("cpu", torch.bfloat16):
        near = latents(pipe, latents=noise)
    assert (near - own).abs().max() < 0.1 * own.abs().max()
    pipe.to(torch.bfloat16)
    pipe.call |= {key: value.bfloat16() for key, value in pipe.call.items() if key.endswith("embeds")}
    near = latents(pipe, latents=noise.bfloat16())
    assert near.dtype == torch.bfloat16
    assert (near - own).abs().max() < 0.1 * own.abs().max()
    assert not torch.allclose(own, expected)


def test_a_compiled_network(pipe):
    expected = latents(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="aot_eager")
    torch.testing.assert_close(latents(pipe), expected, rtol=1e-4, atol=1e-4)


def test_with_a_controlnet_it_is_diffusers_own(pipe):
    torch.manual_seed(3)
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4,))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # some are zero in a fresh one
    controlled = diffusers.StableDiffusionControlNetPipeline(**pipe.components, controlnet=net)
    controlled.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 8, 8, generator=torch.manual_seed(4))
    check_against_ddim(controlled, pipe.call | {"image": image}, other={"controlnet_conditioning_scale": 0.0})


def test_with_an_ip_adapter_it_is_diffusers_own(pipe):
    image = torch.randn(1, 2, 1, 6, generator=torch.manual_seed(4))  # embeddings [negative and positive, 1, width]
    image = image.transpose(0, 1).repeat_interleave(2, 0)[[0, 2]]
    pipe.unet._load_ip_adapter_weights([ip_adapter(pipe.unet, width=6)])
    other = {"ip_adapter_image_embeds": [torch.zeros_like(image)]}
    check_against_ddim(pipe, pipe.call | {"ip_adapter_image_embeds": [image]}, other)


def ip_adapter(unet, width):
    """Random weights of an IP-adapter for a U-Net, for embeddings of images of some width."""
    rng = torch.manual_seed(5)
    inner, tokens, keys = unet.config.cross_attention_dim, 4, {}
    crossing = [name for name in unet.attn_processors if "attn2" in name]
    for i, name in enumerate(crossing):
        out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        keys |= {f"{2 * i + 1}.to_{what}_ip.weight": torch.randn(out, inner, generator=rng) for what in "kv"}
    proj = {"proj.weight": torch.randn(tokens * inner, width, generator=rng), "proj.bias": torch.zeros(tokens * inner),
            "norm.weight": torch.ones(inner), "norm.bias": torch.zeros(inner)}  # fmt: skip
    return {"image_proj": proj, "ip_adapter": keys}


def check_against_ddim(pipe, call, other):
    """A table of DDIM's steps in the pipeline equals DDIM, but not what another option of the call makes; and a solver
    that scales its noise shows the network the scaled noise."""
    theirs = diffusers.DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe.scheduler, pipe.call = theirs, call
    expected = latents(pipe)
    t = torch.cat([theirs.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
    table = registry.build("ddim", SD, t)
    pipe.scheduler = S4SScheduler.from_tableau(table, theirs.config)
    torch.testing.assert_close(latents(pipe), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(latents(pipe, **other), expected, rtol=1e-2)
    shown = []
    pipe.unet.register_forward_pre_hook(lambda _net, args: shown.append(args[0][:1, :4].clone()))
    latents(pipe)
    s4spipe.apply(pipe, replace(table, c_0=torch.tensor(0.9).double()))
    assert not torch.allclose(latents(pipe), expected, rtol=1e-2)
    torch.testing.assert_close(shown[4], 0.9 * shown[0])


def test_inpainting_with_nine_channels_is_diffusers_own():
    """Its network is shown the mask and the masked image, and its latents are left alone."""
    torch.manual_seed(0)
    parts = stable_diffusion()
    config = {key: value for key, value in parts.unet.config.items() if key[0] != "_"} | {"in_channels": 9}
    theirs = diffusers.DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = diffusers.StableDiffusionInpaintPipeline(
        vae=autoencoder(), text_encoder=parts.text_encoder, tokenizer=parts.tokenizer,
        unet=diffusers.UNet2DConditionModel.from_config(config), scheduler=theirs, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    image, mask = torch.rand(1, 3, 8, 8, generator=torch.manual_seed(3)), torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    call = {"prompt": "a", "image": image, "mask_image": mask, "height": 8, "width": 8, "num_inference_steps": 4,
                 "output_type": "latent"}  # fmt: skip
    check_against_ddim(pipe, call, other={"mask_image": 1 - mask})
