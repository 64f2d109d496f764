"""The host's work for the next batch, while the device has the present one."""

import threading

import pytest

from s4spipe.runtime.ahead import ahead


def test_all_is_made_in_order_and_one_ahead():
    made = []

    def make(item):
        made.append(item)
        return 10 * item

    for i, result in enumerate(ahead(make, range(5))):
        assert result == 10 * i
        assert made == list(range(len(made)))
        assert i < len(made) <= i + 2
    assert list(ahead(make, [])) == []


def test_the_next_is_made_while_the_caller_uses_one():
    used = threading.Event()

    def make(item):
        return item == 0 or used.wait(10)

    results = ahead(make, range(2))
    assert next(results)
    used.set()  # the second has begun, or else would wait
    assert next(results)
    assert list(results) == []


def test_an_error_comes_in_its_turn():
    def make(item):
        return 1 // item

    results = ahead(make, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_stops_early_leaves_no_thread():
    before = threading.active_count()
    results = ahead(str, range(100))
    assert next(results) == "0"
    results.close()
    assert threading.active_count() == before
