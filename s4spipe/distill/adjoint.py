"""Derivatives of samples by the entries of the solver's table, pair by pair: the adjoint method.

The samples are made once, of which only the predictions stay. Then, from the last evaluation to the first, each is made
again and differentiated, for several outputs at a time: memory does not grow with NFE times the activations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from s4spipe.sampling import precision, sample
from s4spipe.tableau import Tableau


def entries(table: Tableau) -> Tensor:
    """c_0, c, W row by row, and t_c, as one vector [1 + N + N^2 + N]."""
    return torch.cat([table.c_0[None], table.c, table.W.flatten(), table.t_c])


@dataclass
class Path:
    """The samples `end` [B, ...] with what led there: x_T and the N x0 predictions d, in float32, to which networks
    compute; the states follow from them by the table."""

    x_T: Tensor
    d: list[Tensor]
    end: Tensor


@torch.no_grad()
def run(denoiser: Callable, table: Tableau, x_T: Tensor, condition: Tensor | None) -> Path:
    """Sample, and keep the predictions."""
    x_T, d = x_T.to(precision(x_T.device)), []

    def recorded(y: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        prediction = denoiser(y, t, condition)
        d.extend(part.float() for part in prediction.split(len(x_T)))  # several, where a call joins evaluations
        return prediction

    end = sample(recorded, table, x_T, condition)
    return Path(x_T, d, end)


def derivatives(denoiser: Callable, table: Tableau, path: Path, outputs: Tensor, condition: Tensor | None) -> Tensor:
    """[K, B, entries]: of K numbers of each sample, whose derivatives by the sample are `outputs` [K, B, ...]."""
    c_0, c, W, t_c = (entry.detach().to(path.x_T) for entry in (table.c_0, table.c, table.W, table.t_c))
    n, (k, rows) = table.nfe, outputs.shape[:2]
    by_c, by_W, by_t = outputs.new_zeros(k, rows, n), outputs.new_zeros(k, rows, n, n), outputs.new_zeros(k, rows, n)
    by_d = [torch.zeros_like(outputs) for _ in range(n)]

    def along(x: Tensor) -> Tensor:
        return (outputs * x).flatten(2).sum(2)

    for i in reversed(range(n)):
        by_c[..., i] = along(path.x_T)
        for j in range(i + 1):
            by_W[..., i, j] = along(path.d[j])
            by_d[j] = by_d[j] + W[i, j] * outputs
        y = c[i - 1] * path.x_T + sum(W[i - 1, j] * path.d[j] for j in range(i)) if i else c_0 * path.x_T
        y, t = y.requires_grad_(), t_c[i].expand(rows).clone().requires_grad_()
        with torch.enable_grad():
            d = denoiser(y, t, condition)
        slopes = [
            torch.autograd.grad(d, (y, t), slope.to(d), retain_graph=last < k - 1) for last, slope in enumerate(by_d[i])
        ]
        outputs, by_t[..., i] = (torch.stack(parts) for parts in zip(*slopes, strict=True))
    return torch.cat([along(path.x_T)[..., None], by_c, by_W.flatten(2), by_t], 2)


def cost(nfe: int, outputs: int) -> int:
    """Evaluations of `run` and `derivatives` for a pair; differentiating one for an output counts as one."""
    return nfe * (2 + outputs)
