import pytest
import torch
from support.problems import NOISES, Gaussian, noises

from s4spipe.evaluation.trajectories import in_plane
from s4spipe.sampling.loop import sample
from s4spipe.sampling.trajectories import states
from s4spipe.solvers import registry, timesteps


@pytest.mark.parametrize("solver", ["ipndm", "parallel_midpoints"])
@pytest.mark.parametrize("name", ["ve", "vp_linear"])
def test_states_begin_with_the_noise_end_with_the_sample_and_have_one_scale(name, solver):
    noise = NOISES[name]
    net = Gaussian(noise)
    table = registry.build(solver, noise, timesteps.build("logsnr", noise, 4))
    x_T = noises(3, scale=noise.sigma_T).float()
    path = states(net, table, x_T, None)
    assert path.shape == (3, table.nfe + 1, x_T[0].numel())

    def scaled(x, t):
        return (x / (noise.alpha(t) ** 2 + noise.sigma(t) ** 2).sqrt()).flatten(1).float()

    torch.testing.assert_close(path[:, 0], scaled(x_T, table.t_c[0]))
    torch.testing.assert_close(path[:, -1], scaled(sample(net, table, x_T).detach(), table.t[-1]))
    second = table.c[0] * x_T + table.W[0, 0] * net(x_T.double(), table.t_c[0])
    torch.testing.assert_close(path[:, 1], scaled(second, table.t_c[1]), rtol=1e-4, atol=1e-4)


def test_a_plane_keeps_the_lengths_of_what_lies_in_it():
    generator = torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(2, 30, 2, generator=generator)).Q
    flat = torch.randn(2, 8, 2, generator=generator) * torch.tensor([3.0, 1.0])
    whole = flat @ axes.mT + torch.randn(2, 1, 30, generator=generator)
    shown = in_plane(whole, whole)
    assert shown[:, -1].abs().max() < 1e-5
    torch.testing.assert_close(torch.cdist(shown, shown), torch.cdist(flat, flat).double(), rtol=1e-4, atol=1e-4)
    away = torch.linalg.svd(axes.mT, full_matrices=True).Vh[:, -1:]  # across the plane: it leaves no trace
    torch.testing.assert_close(in_plane(whole + 5 * away, whole), shown, rtol=1e-4, atol=1e-4)
    mirrored = in_plane(-whole, -whole)
    torch.testing.assert_close(mirrored, -shown, rtol=1e-4, atol=1e-4)  # the axes' signs are not chance
