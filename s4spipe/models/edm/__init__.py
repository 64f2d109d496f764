"""EDM's published checkpoints (Karras et al. 2022): pickles, read as data.

Their weights are NVIDIA's, under a licence for non-commercial use (CC BY-NC-SA 4.0). Such a pickle holds the source
code of its classes, which its authors' library runs; here nothing in it is run. A reader of its own takes out the
tensors and the arguments of the constructors, and refuses a file that asks for anything else.
"""

import io
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from s4spipe.errors import UserError
from s4spipe.files import missing, read_tensors, write_tensors
from s4spipe.models.denoiser import Denoiser
from s4spipe.models.edm.unet import Preconditioned
from s4spipe.noise import VE, NoiseSchedule


class Record(dict):
    """Stands for every dictionary and object of the pickle: its class_name and state, or its attributes."""

    def __setstate__(self, state: dict) -> None:
        self["state"] = state


def _allowed() -> dict[tuple[str, str], object]:
    """What EDM checkpoints ask for, and what they get instead. Made anew for every file, so that none can alter it."""
    known = {
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("collections", "OrderedDict"): OrderedDict,
        ("dnnlib.util", "EasyDict"): type("EasyDict", (Record,), {}),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): lambda meta: Record(meta),
        ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: torch.as_strided(
            storage, size, stride, offset
        ),
        ("torch.storage", "_load_from_bytes"): lambda data: _storage(data),
    }
    for name in ("ModuleDict", "ModuleList", "Sequential"):
        known["torch.nn.modules.container", name] = type(name, (Record,), {})
    for name in ("float16", "float32", "float64", "bfloat16"):
        known["torch", name] = getattr(torch, name)
    return known


def _storage(data: bytes) -> Tensor:
    """The numbers of a storage that `torch.save` wrote, read without running anything."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # such files have no other kind
        storage = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        return torch.tensor([], dtype=storage.dtype).set_(storage.untyped())


class Reader(pickle.Unpickler):
    """Unpickles what `_allowed` lists and nothing else."""

    def __init__(self, file):
        super().__init__(file)
        self.known = _allowed()

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.known:
            raise UserError(
                f"it asks for {module}.{name}, which no EDM checkpoint needs: refused, nothing of it was run"
            )
        return self.known[module, name]


def read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a checkpoint's `ema` network by name, and {"precond": .., "kwargs": ..} to build it by.

    Raises UserError for a file that is missing, truncated, no EDM checkpoint, or that asks for anything else.
    """
    try:
        with open(path, "rb") as file:
            network = Reader(file).load()["ema"]
        about = {"precond": network["class_name"], "kwargs": dict(network["state"]["_init_kwargs"])}
        return dict(_tensors(network)), about
    except FileNotFoundError:
        raise missing(path) from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle may raise anything
        raise UserError(f"{path}: not a whole EDM checkpoint ({type(error).__name__}: {str(error)[:100]})") from None


def _tensors(module: Record, prefix: str = ""):
    state = module["state"]
    for kind in ("_parameters", "_buffers"):
        for name, value in state[kind].items():
            if value is not None and name not in state.get("_non_persistent_buffers_set", ()):
                yield prefix + name, value.detach().contiguous()
    for name, inner in state["_modules"].items():
        if inner is not None:
            yield from _tensors(inner, f"{prefix}{name}.")


def convert(path: str | Path, to: str | Path) -> None:
    """A checkpoint as safetensors, which `load` reads too. Raises UserError as `read` does."""
    tensors, about = read(path)
    write_tensors(to, tensors, {"edm": about})


def noise_schedule(params: dict) -> NoiseSchedule:
    """That of every EDM checkpoint: noise of standard deviation 0.002 to 80 is added."""
    return EDMCheckpoint.noise_schedule


def load(params: dict) -> "EDMCheckpoint":
    """The denoiser of a checkpoint params["weights"] (.pkl), or of what `convert` made of one.

    Raises UserError as `read` does, and for a network that is not known here.
    """
    path = params["weights"]
    if Path(path).suffix == ".pkl":
        tensors, about = read(path)
    else:
        tensors, about = read_tensors(path)
        if not isinstance(about, dict) or "edm" not in about:
            raise UserError(f"{path}: not a converted EDM checkpoint")
        about = about["edm"]
    try:
        net = Preconditioned(**about)
        net.load_state_dict(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path}: its tensors are not those of its network ({str(error).splitlines()[0]})") from None
    return EDMCheckpoint(net)


class EDMCheckpoint(Denoiser):
    """D(x, sigma, condition) of an EDM network. It was never trained without labels if it has some."""

    noise_schedule = VE(sigma_min=0.002, sigma_max=80.0)

    def __init__(self, net: Preconditioned):
        super().__init__()
        self.net, self.num_classes = net, net.label_dim
        self.sample_shape = (net.channels, net.resolution, net.resolution)

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return self.net(x, t, None if condition is None else one_hot(condition, self.num_classes))
