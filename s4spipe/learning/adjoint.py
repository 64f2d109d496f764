"""Derivatives of samples by the entries of the solver's tableau, by the adjoint method.

The samples are computed once, and only the predictions are kept. Then each evaluation, from the last to the first, is
re-computed and differentiated, for several outputs at a time. So memory does not grow with NFE times the activations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from s4spipe.models.noise import precision
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau


def entries(table: Tableau) -> Tensor:
    """c_0, c, W row by row, t_c, and beta if there is a constant, as one vector [(1 + N + N^2) |K| + N], or with
    (N + 1) |K| more; |K| is how many numbers a weight has."""
    constant = [] if table.beta is None else [table.beta.flatten()]
    return torch.cat([table.c_0.flatten(), table.c.flatten(), table.W.flatten(), table.t_c, *constant])


@dataclass
class Path:
    """Samples, and what they were computed from. The states follow from x_T and d by the tableau.

    Attributes:
        x_T: the noises [B, ...].
        d: the N x0 predictions, each [B, ...], in the tableau's basis and in float32, the precision of the networks.
        end: the samples [B, ...].
    """

    x_T: Tensor
    d: list[Tensor]
    end: Tensor


@torch.no_grad()
def run(denoiser: Callable, table: Tableau, x_T: Tensor, condition: Tensor | None) -> Path:
    """Make samples, and keep the predictions."""
    x_T = x_T.to(precision(x_T.device))
    recording = sample(denoiser, table, x_T, condition, record=True, check=False)
    return Path(x_T, [table.basis.to(d.float()) for d in recording.predictions], recording.x_0)


def derivatives(denoiser: Callable, table: Tableau, path: Path, outputs: Tensor, condition: Tensor | None) -> Tensor:
    """The derivatives [K, B, entries] of K functions of each sample.

    Args:
        denoiser: the model.
        table: the solver, with E entries.
        path: what `run` returned.
        outputs: the derivatives of the functions by the sample, [K, B, ...].
        condition: as for `run`.
    """
    table = table.detached()
    basis, x_T, m = table.basis, table.basis.to(path.x_T), table.constant(path.x_T)
    W, t_c = table.W.to(x_T), table.t_c.to(x_T)
    n, (k, rows) = table.nfe, outputs.shape[:2]
    by_c, by_W = (outputs.new_zeros(k, rows, *times, *basis.shape) for times in ((n,), (n, n)))
    by_t = outputs.new_zeros(k, rows, n)
    by_beta = [outputs.new_zeros(k, rows, *basis.shape)] * (n + 1)
    by_d = [torch.zeros_like(outputs) for _ in range(n)]
    outputs = basis.to(outputs.flatten(0, 1)).view_as(outputs)  # here and below: in the basis

    def along(x: Tensor) -> Tensor:
        return basis.gather(outputs * x)

    for i in reversed(range(n)):
        by_c[:, :, i] = along(x_T)
        if m is not None:
            by_beta[i + 1] = along(m)
        for j in range(i + 1):
            by_W[:, :, i, j] = along(path.d[j])
            by_d[j] = by_d[j] + basis.spread(W[i, j], x_T) * outputs
        y = basis.back(table.state(i, x_T, path.d, m)).requires_grad_()
        t = t_c[i].expand(rows).clone().requires_grad_()
        with torch.enable_grad():
            d = denoiser(y, t, condition)
        slopes = [
            torch.autograd.grad(d, (y, t), basis.back(slope).to(d), retain_graph=last < k - 1)
            for last, slope in enumerate(by_d[i])
        ]
        by_y, by_t[..., i] = (torch.stack(parts) for parts in zip(*slopes, strict=True))
        outputs = basis.to(by_y.flatten(0, 1)).view_as(by_y)
    parts = [along(x_T), by_c, by_W, by_t]
    if m is not None:
        by_beta[0] = along(m)
        parts += [torch.stack(by_beta, 2)]
    return torch.cat([part.reshape(k, rows, -1) for part in parts], 2)


def evaluations(nfe: int, outputs: int) -> int:
    """Network evaluations per pair in `run` and `derivatives`; each backward pass for an output counts as one."""
    return nfe * (2 + outputs)
