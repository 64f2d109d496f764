"""Reading the files in a pipeline's folder."""

from pathlib import Path
from typing import Any

from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import missing, read_json


def index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json: the pipeline's class and those of its components."""
    if not folder.exists():
        raise missing(folder)
    if not (folder / "model_index.json").exists():
        raise UserError(f"{folder}: not a diffusers pipeline (no model_index.json)")
    return dict(read_json(folder / "model_index.json"))


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The config of the pipeline's own scheduler: in its subfolder, or in the folder itself in old uploads."""
    for path in (folder / "scheduler", folder):
        if (path / "scheduler_config.json").exists():
            return dict(read_json(path / "scheduler_config.json"))
    raise UserError(f"{folder}: holds no scheduler_config.json, which describes the noise of the model's training")
