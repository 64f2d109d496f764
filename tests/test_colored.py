"""Coloured noise: its spectrum is the formula's, and its variance that of white noise."""

import pytest
import torch
from support.problems import NOISES
from support.tables import denoise, drawn

from s4spipe.runtime.errors import UserError
from s4spipe.sampling.colored import colored
from s4spipe.sampling.loop import sample
from s4spipe.sampling.tableau.basis import Arrays, Bands, transformed
from s4spipe.solvers import registry

NOISE, SHAPE = NOISES["vp_linear"], (3, 8, 8)
BASES = {"bands": Bands((1.0, 2.5)), "arrays": Arrays((8, 8)), "pixels": Arrays((3, 1, 1), 0)}


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
def test_gamma_0_is_the_white_noise(basis):
    table = registry.make("sa_solver", "logsnr", NOISE, 4)
    same = colored(table, torch.zeros(4, *basis.shape), basis, SHAPE)
    assert same.agrees(table.over(basis))


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
@pytest.mark.parametrize("solver", ["ddim_eta_60", "dpmpp_sde"])
def test_the_variance_is_kept_and_the_spectrum_is_the_formulas(solver, basis):
    """With the noises alone: the weights' squares, over all frequencies of a sample."""
    table = registry.make(solver, "logsnr", NOISE, 4)
    gamma = torch.sigmoid(drawn(table.draws, *basis.shape))
    done, x = colored(table, gamma, basis, SHAPE), torch.zeros(1, *SHAPE, dtype=torch.float64)
    for k in range(table.draws):
        i = int(table.V[:, k].nonzero()[0])
        weights = (basis.spread(done.V[i, k], x) + x) ** 2
        assert weights.mean().item() == pytest.approx(table.V[i, k].item() ** 2)
        power = basis.spread(1 - gamma[k], x) + x
        torch.testing.assert_close(weights / weights.mean(), power / power.mean())


def test_a_sample_gets_the_coloured_noise_of_the_paper():
    """The difference that a noise makes to the next state, in the DCT, against the noise coloured by hand."""
    basis, table = BASES["bands"], registry.make("ddim_eta", "logsnr", NOISE, 3)
    gamma = torch.tensor([[0.9, 0.4, 0.0]] * 3, dtype=torch.float64)
    done, x_T = colored(table, gamma, basis, SHAPE), drawn(2, *SHAPE)
    z = drawn(3, 2, *SHAPE, seed=1)
    with_noise, without = (sample(denoise, done, x_T, record=True, z=own).states[1] for own in (z, 0 * z))
    scale = basis.spread((1 - gamma[0]).sqrt(), x_T)
    expected = transformed(scale / (scale**2).mean().sqrt() * transformed(z[0], 2), 2, back=True)
    torch.testing.assert_close(with_noise - without, table.V[1, 0] * expected)


WRONG = {
    "no noise": (lambda: ("ddim", torch.zeros(4, 3), BASES["bands"]), "adds no fresh noises"),
    "no basis": (lambda: ("ddim_eta", torch.zeros(4), 3), "basis must be Bands or Arrays"),
    "too few rows": (lambda: ("ddim_eta", torch.zeros(3, 3), BASES["bands"]), r"of shape \[4, 3\]"),
    "above 1": (lambda: ("ddim_eta", torch.full((4, 3), 1.1), BASES["bands"]), "at most 1"),
    "nothing left": (lambda: ("ddim_eta", torch.ones(4, 3), BASES["bands"]), "below 1 somewhere"),
    "nan": (lambda: ("ddim_eta", torch.full((4, 3), torch.nan), BASES["bands"]), "at most 1"),
    "other samples": (lambda: ("ddim_eta", torch.zeros(4, 5, 5), Arrays((5, 5))), "do not go with samples"),
}


@pytest.mark.parametrize(("make", "says"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_coloured_is_told(make, says):
    solver, gamma, basis = make()
    with pytest.raises(UserError, match=says):
        colored(registry.make(solver, "logsnr", NOISE, 4), gamma, basis, SHAPE)
