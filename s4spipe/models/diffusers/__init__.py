"""Pipelines of diffusers, from a folder that `save_pretrained` or a download left."""

from pathlib import Path

from s4spipe.errors import UserError, unknown
from s4spipe.files import missing, read_json
from s4spipe.models.denoiser import Denoiser
from s4spipe.noise import NoiseSchedule


def noise_schedule(params: dict) -> NoiseSchedule:
    """That of the pipeline's scheduler config."""
    from s4spipe.models.prediction import noise_schedule

    index(params)
    return noise_schedule(scheduler_config(Path(params["weights"])))


def load(params: dict) -> Denoiser:
    """The denoiser of the pipeline in the folder params["weights"].

    Raises UserError for a folder that holds no pipeline, or one that has no adapter here, or is not whole.
    """
    from s4spipe.models.diffusers.adapters import ADAPTERS

    name = index(params)["_class_name"]
    if not isinstance(name, str) or name not in ADAPTERS:
        raise UserError(f"{params['weights']}: {unknown('pipeline', name, ADAPTERS)}")
    try:
        return ADAPTERS[name](Path(params["weights"]), params)
    except UserError:
        raise
    except Exception as error:  # diffusers, safetensors and json each have errors of their own for a broken folder
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{params['weights']}: not a whole {name} ({reason[0][:200]})") from None


def index(params: dict) -> dict:
    """The folder's model_index.json: the pipeline's class and those of its components."""
    folder = Path(params["weights"])
    if not folder.exists():
        raise missing(folder)
    if not (folder / "model_index.json").exists():
        raise UserError(f"{folder}: holds no pipeline of diffusers (no model_index.json)")
    return read_json(folder / "model_index.json")


def scheduler_config(folder: Path) -> dict:
    """The config of the pipeline's own scheduler, in its folder, or beside the others as old uploads have it."""
    for path in (folder / "scheduler", folder):
        if (path / "scheduler_config.json").exists():
            return read_json(path / "scheduler_config.json")
    raise UserError(f"{folder}: holds no scheduler_config.json, which says what noise the model was trained under")
