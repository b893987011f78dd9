"""Error control: what is accepted, what the next step size is, and that a search for one ends."""

import math
from itertools import pairwise

import pytest

from pinn_odelora.integrators.control import LARGEST, SAFETY, SMALLEST, TRIALS, controlled, next_step


def linear(scale, seen=None):
    """An attempt whose error is proportional to h."""

    def attempt(h):
        if seen is not None:
            seen.append(h)
        return f"step of {h}", scale * h

    return attempt


def test_only_an_error_within_tolerance_is_accepted():
    seen = []
    found = controlled(linear(2.0, seen), 1.0, 1.0, 0.5)
    assert 2.0 * seen[-2] > 1 >= 2.0 * found.h == found.error
    assert (found.rejected, found.result) == (len(seen) - 1, f"step of {found.h}")
    assert controlled(linear(1.0), 1.0, 1.0, 0.5).rejected == 0


def test_every_refused_step_shrinks_h():
    seen = []
    controlled(linear(1e4, seen), 1.0, 1.0, 0.25)
    assert all(b <= 0.9 * a for a, b in pairwise(seen))


def test_the_next_step_follows_both_errors():
    h, error, previous, q = 0.3, 0.2, 0.5, 1 / 3
    assert next_step(h, error, previous, q) == pytest.approx(h * SAFETY * error ** (-0.7 * q) * previous ** (0.4 * q))
    assert next_step(h, 1e-9, 1.0, q) == LARGEST * h
    assert next_step(h, 1e9, 1.0, q) == SMALLEST * h
    assert controlled(linear(0.5), h, previous, q).next_h == next_step(h, 0.15, previous, q)


def test_h_stays_below_the_longest():
    assert controlled(linear(1e-3), 5.0, 1.0, 0.5, longest=0.25).h == 0.25


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_no_number_shrinks_h_as_an_infinite_one(error):
    found = controlled(lambda h: (h, error if h > 0.01 else 0.5), 1.0, 1.0, 0.5)
    assert found.h == pytest.approx(SMALLEST**3)
    assert found.rejected == 3


def test_a_search_without_end_ends():
    calls = []

    def never(h):
        calls.append(h)
        raise FloatingPointError("overflow")

    with pytest.raises(FloatingPointError, match=r"No step down to h = .* meets the tolerance"):
        controlled(never, 1.0, 1.0, 0.5)
    assert len(calls) == TRIALS


def test_an_error_of_rounding_that_hardly_depends_on_h_does_not_end_a_run():
    found = controlled(lambda h: (h, 1.2 if h > 1e-9 else 0.5), 1e12, 1.0, 0.5)
    assert 0 < found.h <= 1e-9
    assert found.rejected < TRIALS


def test_at_rest_h_is_kept():
    assert next_step(0.3, 0.0, 1.0, 0.5) == 0.3
    assert controlled(lambda h: (h, 0.0), 0.3, 1.0, 0.5).next_h == 0.3
