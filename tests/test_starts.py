"""Where learned solvers start."""

import pytest
import torch
from support.problems import NOISES, noises, wavy

from s4spipe.learning import starts
from s4spipe.noise import VE
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry


@pytest.mark.parametrize("key", NOISES)
def test_a_start_that_crosses_no_share_is_the_classical_solver(key):
    known = registry.make("dpmpp_3m", "edm", NOISES[key], 4)
    table = starts.late(known, 0.0)
    for entry in ("t", "t_c", "c_0", "c", "W"):
        a, b = getattr(table, entry), getattr(known, entry)
        assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp(min=1), entry


@pytest.mark.parametrize("key", NOISES)
@pytest.mark.parametrize("skip", [0.1, 0.4])
def test_what_a_start_crosses_is_a_step_of_ddim_that_predicts_nothing(key, skip):
    """So with a denoiser of 0 it ends where the classical solver does, and its evaluations are made after that."""
    noise = NOISES[key]
    start, x_T = registry.make("dpmpp_3m", "logsnr", noise, 4), noises(2, scale=noise.sigma_T)
    table, zero = starts.late(start, skip), (lambda x, t, c: torch.zeros_like(x))
    first, last = noise.lambda_(start.t[[0, -1]])
    torch.testing.assert_close(sample(zero, table, x_T), sample(zero, start, x_T), rtol=1e-9, atol=1e-12)
    assert (noise.lambda_(table.t_c[0]) - first).item() == pytest.approx(skip * (last - first).item())
    assert table.t[-1] == start.t[-1]


def test_a_start_has_none_of_its_constant():
    start, x_T = starts.late(registry.make("dpmpp_3m", "edm", VE(), 4), 0.2), noises(2, 3, scale=80.0)
    table = starts.with_constant(start, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    assert table.m is not None
    assert torch.equal(sample(wavy, table, x_T), sample(wavy, start, x_T))


def test_the_mean_is_an_image_or_a_number_for_each_channel():
    x_0 = noises(5, 24).view(5, 2, 3, 4).float()
    image, channels = (starts.mean(x_0, form) for form in ("image", "channels"))
    torch.testing.assert_close(image, x_0.double().mean(0))
    torch.testing.assert_close(channels.flatten(), x_0.double().mean((0, 2, 3)))
    assert (image.shape, channels.shape) == ((2, 3, 4), (2, 1, 1))
    assert (image.dtype, channels.dtype) == (torch.float64, torch.float64)
    tokens = starts.mean(x_0[:, 0], "channels", first=False)
    torch.testing.assert_close(tokens, x_0[:, 0].double().mean((0, 1))[None])
    vectors = x_0.flatten(1)
    assert all(torch.equal(starts.mean(vectors, form), vectors.double().mean(0)) for form in ("image", "channels"))


@pytest.mark.parametrize("solver", ["dpmpp_3m", "heun", "dpm_3s", "ipndm_afs"])
def test_the_steps_of_a_start_are_squeezed_into_what_remains(solver):
    noise = VE()
    start = registry.make(solver, "edm", noise, 5)
    table, ends = starts.late(start, 0.3), noise.lambda_(start.t[[0, -1]])
    shares, before = ((noise.lambda_(t) - ends[0]) / (ends[1] - ends[0]) for t in (table.t, start.t))
    torch.testing.assert_close(shares, 0.3 + 0.7 * before)
    assert (table.nfe, table.name, table.noise) == (5, solver, noise)
    assert table.meta == {"solver": solver, "schedule": "edm", "skip": 0.3}
    again = registry.build(solver, noise, table.t, nfe=5)
    assert torch.equal(table.W, again.W)
    torch.testing.assert_close(table.c_0 / again.c_0, table.t[0] / start.t[0])


def tables(n):
    return [registry.make("ddim", "edm", VE(), nfe) for nfe in range(1, n + 1)]


def test_the_candidate_of_the_smallest_loss_is_chosen():
    candidates, tried = tables(4), []

    def loss(table):
        tried.append(table)
        return {1: 3.0, 2: float("inf"), 3: 0.5, 4: 0.7}[table.nfe]

    assert starts.choose(candidates, loss) is candidates[2]
    assert tried == candidates


def test_a_single_candidate_is_not_tried():
    (only,) = tables(1)
    assert starts.choose([only], None) is only


def test_early_starts_are_those_whose_first_state_is_the_noise():
    known = registry.make("dpmpp_3m", "edm", VE(), 4)
    late, early = starts.late(known, 0.2), starts.late(known, 0.0)
    found = starts.early([late, early, known], "free")
    assert [(table.c_0.item(), table.meta) for table in found] == [(1.0, early.meta), (1.0, known.meta)]
    for table, start in zip(found, (early, known), strict=True):
        assert torch.equal(table.W, start.W)
    with pytest.raises(UserError, match=r"learners.free.late is false, but .* put 0.0 into starts.free.skip"):
        starts.early([late], "free")


def test_among_equals_the_first_is_chosen():
    candidates = tables(3)
    assert starts.choose(candidates, lambda table: 1.0) is candidates[0]


def test_a_start_for_another_noise_schedule_is_told_by_its_name():
    starts.check_noise(tables(3), VE())
    with pytest.raises(UserError, match="ddim"):
        starts.check_noise(tables(2), NOISES["flow"])
    with pytest.raises(UserError, match="ipndm"):
        starts.check_noise([*tables(2), registry.make("ipndm", "edm", VE(0.01, 80.0), 3)], VE())
