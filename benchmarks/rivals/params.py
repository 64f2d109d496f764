"""The parameters of the comparison."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


def load() -> dict[str, Any]:
    """What ./params.yaml holds."""
    return YAML(typ="safe").load(Path("params.yaml"))
