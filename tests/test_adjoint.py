from dataclasses import replace

import pytest
import torch
from support.fits import Net
from support.problems import NOISES, noises, wavy

from s4spipe.learning import adjoint
from s4spipe.learning.starts import late, with_constant
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import PLAIN, Bands
from s4spipe.solvers import registry

CONDITION = torch.tensor([0.5, 1.0, 1.5])


def denoise(x, t, condition=None):
    return wavy(x, t) * (1 if condition is None else condition[:, None])


def rebuilt(vector, table):
    n = table.nfe
    c_0, c, W, t_c = vector.split([1, n, n * n, n])
    return Tableau(table.t, t_c, c, W.view(n, n), table.noise, table.name, {}, c_0[0])


@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
@pytest.mark.parametrize("condition", [None, CONDITION], ids=["without", "with condition"])
@pytest.mark.parametrize("solver", ["dpmpp_3m", "unipc_bh2", "dpm_2s"])
def test_derivatives_are_those_of_reverse_mode_pair_by_pair(solver, condition, key):
    noise = NOISES[key]
    table, x_T = late(registry.make(solver, "logsnr", noise, 4), 0.1), noises(3, scale=noise.sigma_T)
    path = adjoint.run(denoise, table, x_T, condition)
    torch.testing.assert_close(path.end, sample(denoise, table, x_T, condition))
    outputs = noises(2, 3 * x_T[0].numel(), seed=4).view(2, *x_T.shape)
    ours = adjoint.derivatives(denoise, table, path, outputs, condition)
    vector = adjoint.entries(table)
    for row in range(len(x_T)):
        one = None if condition is None else condition[row : row + 1]

        def of(v, row=row, one=one):
            end = sample(denoise, rebuilt(v, table), x_T[row : row + 1], one)
            return (outputs[:, row] * end).flatten(1).sum(1)

        exact = torch.autograd.functional.jacobian(of, vector)
        lower = torch.cat([torch.ones(5), torch.ones(4, 4).tril().flatten(), torch.ones(4)]).bool()
        torch.testing.assert_close(ours[:, row][:, lower], exact[:, lower], rtol=1e-5, atol=1e-6)
        assert ours[:, row][:, ~lower].abs().max() == 0  # a state cannot use what comes later
    assert ours[..., 1:].abs().max() > 1e-3


@pytest.mark.parametrize("condition", [None, CONDITION], ids=["without", "with condition"])
def test_derivatives_of_evaluations_side_by_side_are_those_of_one_after_another(condition):
    """So that an entry that is 0, and lets two evaluations run side by side, has its derivative too."""
    noise = NOISES["vp_linear"]
    table, x_T = registry.make("parallel_midpoints", "logsnr", noise, 5), noises(3, scale=noise.sigma_T)
    assert table.depth < table.nfe
    path = adjoint.run(denoise, table, x_T, condition)
    outputs = noises(1, x_T.numel(), seed=4).view(1, *x_T.shape)
    ours = adjoint.derivatives(denoise, table, path, outputs, condition)[0].sum(0)
    vector = adjoint.entries(table).requires_grad_()
    changed, d = rebuilt(vector, table), []
    for i in range(table.nfe):
        d.append(denoise(changed.state(i, x_T, d), changed.t_c[i], condition))
    (exact,) = torch.autograd.grad((outputs[0] * changed.state(table.nfe, x_T, d)).sum(), vector)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)
    between = (table.W == 0).tril()
    assert ours[6:31].view(5, 5)[between].abs().max() > 1e-3


def test_evaluations_are_counted():
    noise = NOISES["ve"]
    net, x_T = Net(), noises(3, scale=noise.sigma_T)
    table = registry.make("ddim", "edm", noise, 5)
    path = adjoint.run(net, table, x_T, None)
    adjoint.derivatives(net, table, path, torch.stack([path.end] * 2), None)
    backward = 2 * 5 * 3  # for each output; forward twice
    assert net.rows + backward == 3 * adjoint.evaluations(5, outputs=2)


def test_memory_does_not_grow_with_nfe():
    """Of activations there are never more than one evaluation's at a time."""
    alive, most = [0], [0]

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            alive[0] -= 1
            return grad

    noise = NOISES["ve"]
    for nfe in (3, 10):
        most[0] = 0
        table = registry.make("ddim", "edm", noise, nfe)
        path = adjoint.run(denoise, table, noises(2, scale=80.0), None)
        alive[0] = 0
        adjoint.derivatives(lambda x, t, c: Held.apply(denoise(x, t)), table, path, path.end[None], None)
        assert most[0] == 1


@pytest.mark.parametrize("basis", [PLAIN, Bands((0.5, 1.0), 2)], ids=["plain", "bands"])
@pytest.mark.parametrize("key", ["ve", "vp_linear", "flow"])
def test_derivatives_by_the_weights_of_a_constant_are_those_of_reverse_mode(key, basis):
    noise = NOISES[key]

    def bent(x, t, condition=None):
        return torch.tanh(x) + torch.sin(t.reshape(-1, 1, 1, 1)) * x / (1 + x.square())

    m = torch.linspace(-1, 2, 48, dtype=torch.float64).view(3, 4, 4)
    table = with_constant(late(registry.make("dpmpp_3m", "logsnr", noise, 4), 0.2), m)
    table = replace(table, beta=torch.linspace(0.1, 0.5, 5, dtype=torch.float64)).over(basis)
    x_T, outputs = (noise.sigma_T * noises(2, 48).view(2, 3, 4, 4), noises(1, 96, seed=4).view(1, 2, 3, 4, 4))
    path = adjoint.run(bent, table, x_T, None)
    ours = adjoint.derivatives(bent, table, path, outputs, None)[0].sum(0)
    assert ours.shape == adjoint.entries(table).shape
    beta = table.beta.clone().requires_grad_()
    end = sample(bent, replace(table, beta=beta), x_T)
    (exact,) = torch.autograd.grad((outputs[0] * end).sum(), beta)
    torch.testing.assert_close(ours[-exact.numel() :], exact.flatten(), rtol=1e-5, atol=1e-6)
    assert exact.abs().min() > 1e-6
