"""Pipelines of diffusers that encode prompts, each with tiny random parts, complete enough to be saved and loaded."""

from collections.abc import Callable

import torch
from support import pipes

from . import audio, flows, images, text, videos

NETWORKS = ("unet", "transformer", "transformer_2", "controlnet", "condition_encoder")


def lively(make: Callable) -> Callable[[], tuple]:
    """The factory, with networks whose outputs are not zero."""

    def made() -> tuple:
        pipe, call = make()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        for name in NETWORKS:
            if isinstance(getattr(pipe, name, None), torch.nn.Module):
                text.live(getattr(pipe, name))
        pipe.set_progress_bar_config(disable=True)
        return pipe, dict(call)

    return made
