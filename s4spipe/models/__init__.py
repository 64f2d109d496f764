"""From a pre-trained model to one callable: (x, t, condition) -> x0 prediction."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from s4spipe.errors import UserError, unknown
from s4spipe.files import read_json, signature
from s4spipe.models.denoiser import Denoiser
from s4spipe.noise import NoiseSchedule

# A package here for each, with `load(params)` and `noise_schedule(params)`.
KINDS = ("callable", "diffusers", "digits", "edm")
ORIGIN = "s4spipe.json"  # in a downloaded model's folder: where it came from
EMBEDDINGS = Path("conditions/prompts.safetensors")  # of prompts, by the stage `embed`
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def noise_schedule(params: dict) -> NoiseSchedule:
    """The noise schedule of the model that `params` names, if possible without loading its network."""
    return _kind(params).noise_schedule(params)


def load(params: dict, device: torch.device | str = "cpu", *, compiled: bool = False) -> Denoiser:
    """The denoiser that `params` (the block `model` of params.yaml) names, frozen, on `device`.

    Without a GPU, half precision and compilation are left out, with a message on stderr. Raises UserError for a file
    that is missing, truncated or holds something else.
    """
    denoiser = _kind(params).load(params)
    if params.get("condition") == "labels" and not denoiser.num_classes:
        raise UserError("model.condition: labels, but this model has no classes; use none")
    denoiser.guide(params.get("guidance", 1.0))
    denoiser.identity = identity(params)
    name = params.get("precision", "float32")
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if torch.device(device).type == "cpu":
        for asked, what in ((name != "float32", f"model.precision: {name}"), (compiled, "run.compile: true")):
            if asked:
                print(f"{what} needs a GPU; this is a CPU, so the network runs in float32, uncompiled", file=sys.stderr)
    else:
        denoiser.set_precision(PRECISIONS[name])
        if compiled:
            denoiser.net = torch.compile(denoiser.net)
    return denoiser.to(device).eval().requires_grad_(False)


def identity(params: dict) -> dict:
    """Which model `params` name, as short JSON-ready data: kind, source (commit, if from a hub), fingerprint."""
    weights = Path(params["weights"])
    origin = {"source": params.get("source") or weights.name}
    if (weights / ORIGIN).exists():
        origin = read_json(weights / ORIGIN)
    return {"kind": params.get("kind", "digits"), **origin, "fingerprint": signature(weights)}


def _kind(params: dict) -> ModuleType:
    kind = params.get("kind", "digits")
    if kind not in KINDS:
        raise unknown("kind of model", kind, KINDS)
    return import_module(f"{__name__}.{kind}")
