"""The states on the way to a sample."""

import torch
from torch import Tensor

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.sampling.loop import sample
from s4spipe.sampling.rk45 import solve
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.adaptive import Adaptive


@torch.inference_mode()
def states(
    denoiser: Denoiser, solver: Tableau | Adaptive, x_T: Tensor, condition: Tensor | None, z: Tensor | tuple = ()
) -> Tensor:
    """The state of every evaluation, and the sample: [n, nfe + 1, dim], float32, on the CPU. Each is divided by
    sqrt(alpha^2 + sigma^2) at its time, so that all noise levels have the same scale. For an adaptive solver, the state
    after each round of steps."""
    if isinstance(solver, Adaptive):
        path = solve(denoiser, solver, x_T, condition, record=True).path
        assert path is not None
        return path.flatten(2).cpu().float()
    recording = sample(denoiser, solver, x_T, condition, record=True, z=z)
    t = torch.cat([solver.t_c, solver.t[-1:]])
    scale = (solver.noise.alpha(t) ** 2 + solver.noise.sigma(t) ** 2).sqrt()
    end = recording.x_0.to(recording.states[0].dtype)
    path = torch.stack([*recording.states[:-1], end], 1).flatten(2).cpu()
    return (path / scale[:, None]).float()
