"""Bands from the power spectrum of samples, and families with weights in bands."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fits import Killed

from s4spipe.learning import distance, frequency, gauss_newton
from s4spipe.learning.families import FAMILIES, Banded, Free, Times
from s4spipe.learning.pairs import Pairs
from s4spipe.learning.task import Task
from s4spipe.noise import VE
from s4spipe.runtime.errors import UserError
from s4spipe.runtime.scratch import Scratch
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau.basis import PLAIN, Bands, from_description, radii, transformed
from s4spipe.solvers import registry, timesteps

NOISE = VE()


def field(n, channels=3, sides=(8, 8), slope=3.0, seed=0):
    """Samples whose power falls as (1 + radius)^-slope, and from channel to channel by 100."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(n, channels, *sides, generator=rng, dtype=torch.float64)
    scale = (1 + radii(sides)) ** (-slope / 2)
    levels = 10.0 ** -torch.arange(channels).double().view(-1, *[1] * len(sides))
    return transformed(z * scale * levels, len(sides), back=True)


def rotation(n, seed=1):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.sampled_from([(9,), (8, 6), (3, 4, 5)]), st.floats(1, 6), st.integers(0, 5))
def test_a_band_holds_what_is_equally_strong(channels, sides, slope, seed):
    basis = frequency.bands(field(400, channels, sides, slope, seed))
    if basis is PLAIN:
        return
    scale = (1 + radii(sides)) ** -slope
    power = torch.stack([scale * 100.0**-c for c in range(channels)])
    numbered = torch.arange(basis.shape[0]).double()
    band = basis.spread(numbered, torch.empty(1, channels, *sides)).expand(power.shape)
    assert {*band.unique().tolist()} == {*numbered.tolist()}  # none is empty
    for one in numbered:
        inside = power[band == one]
        # rings are half a cycle wide, and the spectrum is measured on some samples
        assert inside.max() / inside.min() < frequency.WIDTH * 2.0**slope * 2
    falling = [power[band == one].mean() for one in numbered]
    assert falling == sorted(falling, reverse=True)


def test_components_do_not_depend_on_how_channels_are_mixed():
    x = field(500)
    mixed = torch.einsum("dc,bc...->bd...", rotation(3), x)
    plain, turned = frequency.bands(x), frequency.bands(mixed)
    assert plain.edges == turned.edges
    torch.testing.assert_close(plain.to(x).abs(), turned.to(mixed).abs(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned.back(turned.to(mixed)), mixed)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_there_are_at_most_as_many_bands_as_asked_for(count):
    basis = frequency.bands(field(300), count)
    assert basis.shape == ((count,) if count > 1 else ())


@pytest.mark.parametrize(("count", "most"), [(1, 1), (3, 3), ("auto", frequency.MOST)])
def test_channels_of_their_own_share_no_band(count, most):
    x = torch.einsum("dc,bc...->bd...", rotation(3), field(400))
    basis, common = frequency.bands(x, count, "own"), frequency.bands(x, "auto")
    band = basis.spread(torch.arange(basis.shape[0]), x).view(3, -1)
    inside = [set(component.tolist()) for component in band]
    assert sum(map(len, inside)) == len(set.union(*inside)) == basis.shape[0]  # none is shared, and none is empty
    assert all(1 <= len(component) <= most for component in inside)
    assert basis.mixing == common.mixing
    assert (basis.shape == (3,)) == (count == 1)
    turned = transformed(basis.to(x), 2, back=True)
    for row, component in zip(basis.rows, turned.split(1, 1), strict=True):
        alone = frequency.bands(component, count)  # each has the bands that it would have without the others
        assert [edge for edge in row if 0 < edge < math.inf] == [*(() if alone is PLAIN else alone.rows[0])]
    assert from_description(json.loads(json.dumps(basis.describe()))) == basis


def test_data_of_one_power_and_data_without_axes_get_plain_numbers():
    rng = torch.Generator().manual_seed(0)
    assert frequency.bands(torch.randn(3000, 3, 8, 8, generator=rng)) is PLAIN
    assert frequency.bands(torch.randn(300, 5, generator=rng)) is PLAIN
    assert frequency.bands(torch.zeros(10, 3, 8, 8)) is PLAIN
    with pytest.raises(UserError, match=r"bands: 3, but .* of shape \[5\]; make it 1"):
        frequency.bands(torch.zeros(10, 5), 3)
    with pytest.raises(UserError, match=r"channels: own, but .* of shape \[5\]; make it common"):
        frequency.bands(torch.zeros(10, 5), channels="own")


@pytest.mark.parametrize("mixing", [3, [[1.0]], ("a",), ((True,),), ((math.nan,),), ((2.0,),)])
def test_another_mixing_is_told(mixing):
    with pytest.raises(UserError, match="mixing of bands must be the rows of an orthonormal matrix"):
        Bands((1.0,), 2, mixing)


SPECIAL = {"ss": "dpmpp_2s", "epd": "parallel_midpoints", "pc": "unipc_bh2", "dss": "euler", "bezier": "euler"}
THREE = Bands((1.0, 2.0))


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"fixed", "adasde"}))
def test_every_family_starts_at_its_solver_and_learns_each_band_by_itself(name):
    solver = SPECIAL.get(name, "dpmpp_3m")
    steps = 2 if name in ("ss", "epd") else 4
    start = registry.build(solver, NOISE, timesteps.build("edm", NOISE, steps), nfe=4)
    times = Times(NOISE, start.t) if name != "free" and len(start.t) == 5 else None
    family = Banded.of(name, start, times, THREE, order=3)
    one = Banded.of(name, start, times, PLAIN, order=3)
    assert not isinstance(one, Banded)
    assert one().basis is PLAIN
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * NOISE.sigma_T

    def denoiser(y, t, condition=None):
        return torch.tanh(y / (1 + t.view(-1, 1, 1, 1)))

    assert family().basis == THREE
    points = one.parameter_count - sum(correction.count for correction in one.of_a) if name in ("ss", "epd") else 0
    if name != "free":
        assert family.parameter_count == 3 * one.parameter_count - 2 * points
    torch.testing.assert_close(sample(denoiser, family(), x), sample(denoiser, start, x), rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(family().c[-1, 1], next(iter(params(family, 1))), allow_unused=True)
    assert slope is not None
    others = [p for band in (0, 2) for p in params(family, band)] if isinstance(family, Banded) else []
    for other in others:
        (slope,) = torch.autograd.grad(family().c[-1, 1] + family().W[..., 1].sum(), other, allow_unused=True)
        assert slope is None or not slope.any()


def params(family, band):
    """The coefficients of a band: those of its member, or numbers that all bands have their part of."""
    chosen = family.members[band] if isinstance(family, Banded) else family
    return [p for key, p in chosen.named_parameters() if not key.startswith(("times.", "of_r", "x"))]


def test_free_has_numbers_of_its_own_for_every_band():
    start = registry.build("ddim", NOISE, timesteps.build("edm", NOISE, 3))
    family = Banded.of("free", start, None, THREE)
    assert isinstance(family, Free)
    assert family.parameter_count == 3 * (3 * 4 // 2 + 3 + 1) + 3
    with torch.no_grad():
        family.of_table.u[1, 0, 2] = 0.5
    changed = (family().c != start.over(THREE).c).nonzero().tolist()
    assert changed == [[1, 2]]


def test_edges_reach_from_none_below_to_all_below():
    basis = Bands(((0.0, math.inf), (0.5, 1.0)))
    x = torch.empty(1, 2, 4)
    with pytest.raises(Exception, match="2 axes"):
        basis.check(x)
    band = basis.spread(torch.arange(3.0), torch.empty(1, 2, 3, 3))
    assert band[0].unique().tolist() == [1.0]
    assert band[1].tolist() == [[0.0, 1.0, 2.0], [1.0, 1.0, 2.0], [2.0, 2.0, 2.0]]


class Wiener(torch.nn.Module):
    """The denoiser of a stationary Gaussian field, with a little that is not Gaussian."""

    def __init__(self, dies_at=None):
        super().__init__()
        self.power, self.calls, self.dies_at = 4 * (1 + 2 * radii((6, 6))) ** -4.0, 0, dies_at

    def forward(self, x, t, condition=None):
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        sigma = t.view(-1, 1, 1, 1) if t.ndim else t
        y = transformed(x.double(), 2)
        return (transformed(self.power / (self.power + sigma**2) * y, 2, back=True) + 0.05 * torch.tanh(x)).to(x.dtype)


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"fixed", "adasde"}))
def test_what_was_learned_in_plain_numbers_goes_on_in_bands(name):
    solver = SPECIAL.get(name, "dpmpp_3m")
    start = registry.build(solver, NOISE, timesteps.build("edm", NOISE, 2 if name in ("ss", "epd") else 4), nfe=4)
    times = Times(NOISE, start.t) if name != "free" and len(start.t) == 5 else None
    plain = Banded.of(name, start, times, PLAIN, order=3)
    assert Banded.around(plain, PLAIN) is plain
    with torch.no_grad():
        for p in plain.parameters():
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype)
    plain.clip()
    learned = plain()
    wide = Banded.around(plain, THREE)
    for key in ("t", "t_c"):
        torch.testing.assert_close(getattr(wide(), key), getattr(learned, key), rtol=1e-12, atol=1e-12)
    for key in ("c", "W", "c_0"):
        torch.testing.assert_close(getattr(wide(), key), getattr(learned.over(THREE), key), rtol=1e-12, atol=1e-14)
    (slope,) = torch.autograd.grad(wide().c[-1, 1], next(iter(params(wide, 1))), allow_unused=True)
    assert slope is not None


def test_bands_begin_where_plain_numbers_ended(tmp_path):
    def fit(task):
        return gauss_newton.fit(task, ("coefficients", "times"), distance.pseudo_huber, 40, 6)

    def learned(denoiser, folder):
        return gauss_newton.widened(task_of(PLAIN, folder, denoiser), THREE, fit)

    plain, alone = task_of(PLAIN, tmp_path / "plain", Wiener()), Wiener()
    of_plain = fit(plain)
    student, history = learned(alone, tmp_path / "a")
    assert history[: len(of_plain)] == of_plain
    assert [row["epoch"] for row in history] == list(range(len(history)))
    spent = [row["evaluations"] for row in history]
    assert spent == sorted(spent)
    assert student().basis == THREE
    assert min(row["validation"] for row in history) < 0.8 * min(row["validation"] for row in of_plain)
    with pytest.raises(Killed):
        learned(Wiener(dies_at=alone.calls - 40), tmp_path / "b")
    again, same = learned(Wiener(), tmp_path / "b")
    assert same == history
    assert again().to_dict() == student().to_dict()
    assert gauss_newton.widened(plain, PLAIN, fit)[0] is plain.student


def test_a_fit_ends_when_the_validation_pairs_see_no_progress(tmp_path):
    history = gauss_newton.fit(task_of(PLAIN, tmp_path, Wiener()), ("coefficients", "times"), distance.pseudo_huber, 40,
                               100)  # fmt: skip
    losses = [row["validation"] for row in history[:-1]]
    assert len(losses) < 60
    assert losses.index(min(losses)) == len(losses) - 1 - gauss_newton.PATIENT.patience


def test_a_brisk_fit_ends_when_progress_is_slow(tmp_path):
    """At the first step after which the last ones gained too little, and no later."""
    pace = gauss_newton.BRISK
    history = gauss_newton.fit(task_of(PLAIN, tmp_path, Wiener()), ("coefficients", "times"), distance.pseudo_huber, 40,
                               100, pace)  # fmt: skip
    losses = [row["validation"] for row in history[:-1]]

    def gained(n):
        return 1 - min(losses[: n + 1]) / min(losses[: n + 1 - pace.patience])

    last = len(losses) - 1
    assert pace.patience < last < 60
    assert gained(last) <= pace.progress
    assert all(gained(n) > pace.progress for n in range(pace.patience, last))


@given(
    st.lists(st.floats(0.01, 10) | st.just(float("inf")), min_size=2, max_size=12),
    st.integers(0, 6),
    st.integers(1, 4),
    st.floats(0, 0.5),
)
def test_progress_is_what_the_last_steps_gained(losses, since, patience, progress):
    pace = gauss_newton.Pace((1.0,), (1.0,), patience, progress)
    old, low = min(losses[:-patience], default=float("inf")), min(losses)
    goes_on = len(losses) - 1 - since < patience or low < old * (1 - progress)
    assert gauss_newton.stalled([{"validation": loss} for loss in losses], since, pace) is not goes_on


@pytest.mark.slow
def test_in_bands_steps_become_shorter_until_the_shortest_bring_no_progress(tmp_path):
    """And each time they go on from the best so far, also where the fit was killed in between."""
    pace = replace(gauss_newton.PATIENT, patience=2)
    alone = Wiener()
    _, history = fitted(THREE, tmp_path / "a", alone, 400, pace)
    losses = [row["validation"] for row in history[:-1]]
    full = next(n for n in range(3, 400) if gauss_newton.stalled(history[:n], 0, pace))  # where full steps ended
    assert full + 2 * 2 <= len(losses) < 400
    assert min(losses) < min(losses[:full])
    _, only_full = fitted(THREE, tmp_path / "full", Wiener(), 400, replace(pace, many=(1.0,)))
    assert len(only_full) == full + 1
    assert history[-1]["validation"] < only_full[-1]["validation"]
    with pytest.raises(Killed):
        fitted(THREE, tmp_path / "b", Wiener(dies_at=alone.calls - 60), 400, pace)
    assert Scratch(tmp_path / "b").load("fit")["turn"] > 0
    assert fitted(THREE, tmp_path / "b", Wiener(), 400, pace)[1] == history


def fitted(basis, folder, denoiser, steps=4, pace=gauss_newton.PATIENT):
    task = task_of(basis, folder, denoiser)
    history = gauss_newton.fit(task, ("coefficients", "times"), distance.pseudo_huber, 40, steps, pace)
    return task.student(), history


def task_of(basis, folder, denoiser):
    noise = VE(0.01, 20.0)
    x_T = [torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(n)) * noise.sigma_T for n in (60, 30)]
    teacher = registry.make("dpmpp_2m", "logsnr", noise, 60)
    training, validation = (Pairs(x, sample(Wiener(), teacher, x), None) for x in x_T)
    student = Banded.of("free", registry.make("dpmpp_2m", "logsnr", noise, 3), None, basis)
    return Task(student, denoiser, training, validation, Scratch(folder))


def test_a_killed_fit_in_bands_goes_on_where_it_was(tmp_path):
    whole, history = fitted(THREE, tmp_path / "a", Wiener())
    with pytest.raises(Killed):
        fitted(THREE, tmp_path / "b", Wiener(dies_at=70))
    again, same = fitted(THREE, tmp_path / "b", Wiener())
    assert same == history
    assert again.to_dict() == whole.to_dict()
