"""What the families share: start + scale * mask * u."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.problems import noises

from s4spipe.learning.correction import Correction

MASK = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.float64)
START = noises(4, 3, seed=1) * MASK
SCALE = noises(4, 1, seed=2).exp()
SWITCHES = [(False, False), (True, False), (False, True), (True, True)]


def moved(**switches):
    correction = Correction(START, SCALE, MASK, **switches)
    with torch.no_grad():
        correction.u += noises(*correction.u.shape, seed=3)
    return correction


@pytest.mark.parametrize(("consistent", "shared"), SWITCHES)
def test_untouched_it_is_the_start_to_the_bit(consistent, shared):
    assert torch.equal(Correction(START, SCALE, MASK, consistent, shared)(), START)


def test_it_adds_what_was_learned_in_units_of_the_scale():
    correction = moved()
    assert torch.equal(correction(), START + SCALE * MASK * correction.u)
    wide = SCALE.expand(4, 3)
    assert torch.equal(Correction(START, wide, MASK)(), START)


@given(seed=st.integers(0, 10**6), size=st.floats(1e-3, 1e3))
def test_consistent_rows_keep_their_sum(seed, size):
    for shared in (False, True):
        correction = Correction(START, SCALE, MASK, consistent=True, shared=shared)
        with torch.no_grad():
            correction.u += noises(*correction.u.shape, scale=size, seed=seed)
        table = correction()
        torch.testing.assert_close(table.sum(1), START.sum(1), rtol=1e-9, atol=1e-9 * size)
        assert (table - START).abs().max() > 0


@pytest.mark.parametrize(("consistent", "shared"), SWITCHES)
def test_entries_that_are_not_used_stay(consistent, shared):
    correction = moved(consistent=consistent, shared=shared)
    assert torch.equal(correction()[MASK == 0], START[MASK == 0])


def test_a_shared_row_is_added_to_all_rows_as_it_is():
    correction = moved(shared=True)
    assert correction.u.shape == (1, 3)
    torch.testing.assert_close(correction() - START, correction.u * MASK, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("consistent", "shared", "count"), [(False, False, 9), (True, False, 5), (False, True, 3), (True, True, 2)]
)
def test_the_free_numbers_are_the_rank_of_what_it_can_be(consistent, shared, count):
    correction = Correction(START, SCALE, MASK, consistent, shared)
    assert correction.count == count
    by_u = torch.autograd.functional.jacobian(
        lambda u: torch.func.functional_call(correction, {"u": u}, ()).flatten(), correction.u.detach()
    )
    assert torch.linalg.matrix_rank(by_u.flatten(1)).item() == count


def test_start_scale_and_mask_are_no_parameters():
    correction = moved()
    assert [name for name, _ in correction.named_parameters()] == ["u"]
    assert set(dict(correction.named_buffers())) == {"start", "scale", "mask"}
    other = Correction(torch.zeros_like(START), SCALE, MASK)
    other.load_state_dict(correction.state_dict())
    assert torch.equal(other(), correction())
