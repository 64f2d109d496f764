"""Common code of all stages: they get checked parameters, and end with one sentence and an error code on a mistake."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from inspect import unwrap
from pathlib import Path
from typing import Any, Literal

import torch

from s4spipe.features import rewards
from s4spipe.features.base import loading
from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.base.loading import load
from s4spipe.models.base.settings import ModelSettings
from s4spipe.pipeline import params as parameters
from s4spipe.pipeline.layout import Layout
from s4spipe.pipeline.schema import Params, Reward
from s4spipe.runtime import checks, distributed
from s4spipe.runtime.errors import UserError, ensure_streams, explained, needs, shown
from s4spipe.runtime.files import read_tensors
from s4spipe.runtime.scratch import alone

with needs("pipeline", "the pipeline"):
    import click


def command(stage: Callable) -> click.Command:
    """A click command from `stage(params, ...)`, which gets the parameters of ./params.yaml."""

    @wraps(stage)
    def run(**arguments: Any) -> None:
        ensure_streams()
        _follow_parent()
        who = "Error"
        try:
            if not distributed.is_main():
                who = f"Error (process {distributed.rank()})"
            with explained():
                params = parameters.load()
                with _alone(stage, arguments):
                    stage(params, **arguments)
        except UserError as error:
            click.echo(f"{who}: {error}", err=True)
            sys.exit(1)

    return click.command()(run)


def divided(stage: Callable) -> click.Command:
    """Like `command`, for a stage that several processes can share: they run it if `run.launcher` is set."""

    @wraps(stage)
    def run(params: Params, **arguments: Any) -> None:
        if params.run.launcher and not distributed.launched():
            module = sys.modules["__main__"].__spec__
            assert module is not None  # as a stage is run by `python -m`
            distributed.launch(params.run.launcher, module.name, sys.argv[1:])
            return
        try:
            distributed.init()
            stage(params, **arguments)
        finally:
            distributed.destroy()

    return command(run)


def layout(params: Params) -> Layout:
    """The paths of the run with these parameters."""
    return Layout(params.model.name)


def model_settings(params: Params) -> ModelSettings:
    """The block `model`, with the file of embedded prompts for a text-to-image model."""
    embeddings = str(layout(params).prompts) if params.model.condition == "prompts" else None
    return ModelSettings.of(params.model.model_dump() | {"embeddings": embeddings})


def load_model(params: Params, *, channels_last: bool = False) -> Denoiser:
    """The model of params.yaml on its device."""
    return load(model_settings(params), device(params), compiled=params.run.compile, channels_last=channels_last)


def features_network(params: Params, block: Literal["fid", "perceptual"], where: torch.device) -> Any:
    """The features network that a block of params.yaml names: for FID, or to learn with."""
    key = f"{block}.source"
    if block == "perceptual":
        seeing = params.perceptual
        return loading.load(seeing.network, seeing.weights, where, source=seeing.source, key=key)
    return loading.load(params.fid.network, params.fid.features, where, params.fid.mode, params.fid.source, key)


def reward(params: Params, block: Reward, key: str, denoiser: Denoiser) -> Callable:
    """What the block `key` of params.yaml says that images shall have more of: a function of samples x [B, ...] and
    their conditions [B], which returns rewards [B]."""
    texts = read_tensors(layout(params).prompts, tensors=False)[1] if params.model.condition == "prompts" else {}
    source, prompts = block.source, texts.get("prompts", [])
    of_images = rewards.load(block.network, block.weights, denoiser.device, key, source, prompts)
    return lambda x, condition: of_images(denoiser.decode(x), condition)


def reward_files(block: Reward | None) -> list[str]:
    """The file or folder of a reward's network, if it has one here: it may have none, or be an id on a hub."""
    return [block.weights] if block and Path(block.weights).exists() else []


def device(params: Params) -> torch.device:
    """The device that `run.device` names; `auto` is CUDA if there is a GPU, else the CPU.

    With several processes on a machine, `auto` and `cuda` are the GPU of the process's local rank. Raises UserError for
    a device that does not exist.
    """
    name = params.run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.world_size() > 1 and torch.cuda.is_available():
        name = f"cuda:{distributed.local_rank() % torch.cuda.device_count()}"
    chosen = checks.device("run.device", name, "auto or cpu in params.yaml")
    if chosen.type == "meta":
        raise UserError(f"run.device: {shown(name)} holds no numbers; use auto or cpu in params.yaml")
    return chosen


def _alone(stage: Callable, arguments: dict[str, Any]) -> AbstractContextManager[None]:
    """The same stage with the same arguments waits until this process has left the block.

    The processes of a launcher do not wait, since they work together: the stage that launches them does.
    """
    if distributed.launched():
        return nullcontext()

    def tell(pid: str) -> None:
        click.echo(f"waits for process {pid or '(unknown)'}, which runs the same stage in this folder", err=True)

    return alone("-".join([Path(unwrap(stage).__code__.co_filename).stem, *map(str, arguments.values())]), tell)


def _follow_parent() -> None:
    """End this process when what started it is gone, DVC or a launcher: a killed `dvc repro` must not leave a GPU busy.

    One that was started by hand goes on without its shell, as nohup and setsid promise.
    """
    by_dvc = "DVC_STAGE" in os.environ
    if not (by_dvc or distributed.launched()):
        return
    parent = os.getppid()
    if parent == 1 and by_dvc and os.getpgrp() != 1:  # it died while this process was starting
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent and not distributed.starter_is_gone():
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
