"""The states that a solver passes through, and a picture of them."""

import torch
from torch import Tensor

from s4spipe.models.denoiser import Denoiser
from s4spipe.sampling import sample
from s4spipe.tableau import Tableau

SHOWN = 4  # samples of which the states are kept


@torch.inference_mode()
def states(denoiser: Denoiser, tableau: Tableau, x_T: Tensor, condition: Tensor | None) -> Tensor:
    """[n, nfe + 1, dim], float32: the state of every evaluation and the sample, each divided by sqrt(alpha^2 + sigma^2)
    of its time, so that all noise levels have one scale."""
    seen, times, n = [], [], len(x_T)

    def watched(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        seen.extend(x.split(n))
        times.extend(t.expand(len(x))[::n])
        return denoiser(x, t, condition)

    end = sample(watched, tableau, x_T, condition)
    t = torch.stack([*times, tableau.t[-1].to(end.device, times[0].dtype)]).cpu()
    scale = (tableau.noise.alpha(t) ** 2 + tableau.noise.sigma(t) ** 2).sqrt()
    path = torch.stack([*seen, end.to(seen[0].dtype)], 1).flatten(2).cpu()
    return (path / scale[:, None]).float()


def in_plane(path: Tensor, of: Tensor) -> Tensor:
    """`path` [n, S, dim] in coordinates [n, S, 2] of the planes of its trajectories `of` [n, S', dim]: of the first two
    principal components of each. The end of that trajectory is the origin."""
    shown = []
    for own, whole in zip(path.double(), of.double(), strict=True):
        axes = torch.linalg.svd(whole - whole.mean(0), full_matrices=False).Vh[:2]
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        axes = axes * largest.sign()  # a direction's sign is chance; this one is the same everywhere
        shown.append((own - whole[-1]) @ axes.T)
    return torch.stack(shown)
