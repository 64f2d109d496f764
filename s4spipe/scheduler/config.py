"""The config of a pipeline's own scheduler: whether a solver goes with it, and what of it is kept."""

from collections.abc import Mapping
from typing import Any, cast

import torch

from s4spipe.models import noise
from s4spipe.models.base import prediction
from s4spipe.models.base.prediction import Training
from s4spipe.models.noise import Flow, VPDiscrete
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau


def name(table: Tableau) -> str:
    """The name of the noise that a solver is for."""
    return noise.describe(table.noise)["name"]


def training(solver: Tableau, config: Mapping[str, Any]) -> Training:
    """How the pipeline's model was trained. Raises UserError if the solver is for another noise schedule."""
    if not isinstance(solver.noise, VPDiscrete | Flow):
        raise UserError(
            f"solver {solver.name} is for {name(solver)} noise, which diffusers' pipelines do not have: run it "
            "with s4spipe.sample, or leave the config out and run a loop of your own"
        )
    model = prediction.read(config)
    if model.flow != isinstance(solver.noise, Flow):
        raise UserError(f"solver {solver.name} is for {name(solver)} noise, the pipeline's model for "
                        f"{'flow' if model.flow else 'vp_discrete'}")  # fmt: skip
    if isinstance(solver.noise, VPDiscrete):
        theirs, ours = (torch.tensor(n.alphas_cumprod) for n in (cast(VPDiscrete, model.noise), solver.noise))
        if len(theirs) != len(ours) or not torch.allclose(theirs, ours, rtol=1e-4, atol=1e-7):
            raise UserError(f"solver {solver.name} was made for another model: its alphas_cumprod are not those of "
                            "the pipeline's scheduler")  # fmt: skip
    return model


def kept(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What our scheduler's config takes over: the pipeline's own keys (betas, shift, ...).

    OtherScheduler.from_config(pipe.scheduler.config) finds the model's noise in them, and pipelines ask for some. So is
    which of them are defaults of their class.
    """
    keys = {key: value for key, value in theirs.items() if key not in own and key[:1] != "_"}
    defaults = [key for key in theirs.get("_use_default_values", ()) if key in keys]
    return keys | {"_use_default_values": [*defaults, *own.get("_use_default_values", ())]}
