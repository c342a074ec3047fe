"""A quota refuses nonsense, and knows how finely it must remember."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.quota import LIMIT_MAX, PRECISION, WINDOW_MS_MAX, Quota


@pytest.mark.parametrize(
    ("limit", "window_ms", "problem"),
    [
        (0, 1000, "limit must be 1 to 1000000000, not 0"),
        (-1, 1000, "limit must be"),
        (LIMIT_MAX + 1, 1000, "limit must be"),
        (1, 0, "window_ms must be 1 to 31622400000"),
        (1, -1, "window_ms must be"),
        (1, WINDOW_MS_MAX + 1, "window_ms must be"),
    ],
)
def test_numbers_out_of_range(limit: int, window_ms: int, problem: str) -> None:
    """A limit or window that cannot be kept is refused at the door (row 182)."""
    with pytest.raises(ValueError, match=problem):
        Quota(limit, window_ms)


@pytest.mark.parametrize(
    ("limit", "window_ms", "expected"),
    [
        (1, 60_000, 1),
        (PRECISION, WINDOW_MS_MAX, 1),
        (PRECISION + 1, 60_000, 469),
        (PRECISION + 1, 128, 1),
        (PRECISION + 1, 129, 2),
        (LIMIT_MAX, 1, 1),
    ],
)
def test_resolution(limit: int, window_ms: int, expected: int) -> None:
    """Up to the precision a quota is an exact log; beyond, cells are 1/128 of the window, rounded up."""
    assert expected == Quota(limit, window_ms).resolution_ms


@given(st.integers(1, LIMIT_MAX), st.integers(1, WINDOW_MS_MAX))
def test_cells_are_few(limit: int, window_ms: int) -> None:
    """No window spans more than PRECISION cells, or the limit is no greater than that."""
    quota = Quota(limit, window_ms)

    assert limit <= PRECISION or quota.resolution_ms * PRECISION >= window_ms
