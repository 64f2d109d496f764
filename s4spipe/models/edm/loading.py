"""Loading EDM's checkpoints, published or converted to safetensors."""

from pathlib import Path
from typing import Any

from torch import Tensor

from s4spipe.models.base.settings import ModelSettings
from s4spipe.models.edm.denoiser import EDMCheckpoint
from s4spipe.models.edm.preconditioning import Preconditioned
from s4spipe.models.edm.reader import read
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.checks import check_shapes
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.files import read_tensors, write_tensors


def convert(path: str | Path, to: str | Path) -> None:
    """Write a checkpoint as safetensors, which `load` reads too. Raises UserError as `reader.read` does."""
    tensors, metadata = read(path)
    write_tensors(to, tensors, {"edm": metadata})


def noise_schedule(settings: ModelSettings) -> NoiseSchedule:
    """The noise schedule of all EDM checkpoints: noise of standard deviation 0.002 to 80."""
    return EDMCheckpoint.noise_schedule


def load(settings: ModelSettings) -> EDMCheckpoint:
    """The denoiser of the checkpoint settings.weights, a .pkl file or one that `convert` wrote.

    Raises UserError as `reader.read` does, and for an unknown network.
    """
    path = settings.weights
    if Path(path).suffix == ".pkl":
        tensors, metadata = read(path)
    else:
        tensors, converted = read_tensors(path)
        if not isinstance(converted, dict) or "edm" not in converted:
            raise UserError(f"{path}: not a converted EDM checkpoint")
        metadata = converted["edm"]
    try:
        _check_size(metadata, tensors)
        net = Preconditioned(**metadata)
        net.load_state_dict(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a network of senseless arguments fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"{path}: its tensors do not match its network ({reason})") from None
    return EDMCheckpoint(net)


def _check_size(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raises RuntimeError for a network of more blocks than its tensors can fill, or as `check_shapes` does."""
    if metadata["kwargs"].get("num_blocks", 0) > len(tensors):
        raise RuntimeError(f"{metadata['kwargs']['num_blocks']} blocks of {len(tensors)} tensors")
    check_shapes(lambda: Preconditioned(**metadata), tensors)
