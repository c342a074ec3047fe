"""Which requests may be decided from units taken in advance, for how long, and from how many."""

from __future__ import annotations

import pytest

from ratelimiter.core.cell_lease import (
    GROWTH,
    LIFE_MS_MAX,
    REQUESTS_MIN,
    SHARE,
    leasable,
    requests_fitting,
    requests_wanted,
    spendable_ms,
)
from ratelimiter.core.quota import Bucket, Quota, Slots
from ratelimiter.core.rule import Hit, Mode, Rule


def hit(limit: int = 160, window_ms: int = 6400, cost: int = 1, **more: object) -> Hit:
    """Return a hit of *cost* units; its window has cells of 50 ms if nothing else is said."""
    quota = Quota(limit, window_ms)
    return Hit(b"key", quota, cost, Rule("rule", quota, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        hit(128),  # an exact log has no cells
        hit(1000, 1000),  # cells too short to pay
        hit(mode=Mode.SHADOW),
        hit(count=frozenset({"401"})),
        hit(lease=0),
        hit(cost=0),
        hit()._replace(lease=7),
        Hit(b"key", Bucket(1000, 1000, 60_000), 1, Rule("rule", Bucket(1000, 1000, 60_000))),
        Hit(b"key", Slots(1000), 1, Rule("rule", Slots(1000))),
    ],
)
def test_what_is_not_leased(other: Hit) -> None:
    """Neither by itself nor beside a rule that may be."""
    assert not leasable([other])
    assert not leasable([hit(), other])
    assert leasable([hit()])


def test_a_request_that_no_rule_matches_is_not_leased() -> None:
    """Without a charge there is nothing to take in advance."""
    assert not leasable([])


def test_a_lease_ends_before_its_cell() -> None:
    """Whatever part of a millisecond the two clocks hide, the last spending lies within the cell."""
    one = hit(1000, 60_000)
    cell_ms = Quota(1000, 60_000).resolution_ms
    for now_ms in range(cell_ms * 1000, cell_ms * 1001):
        assert now_ms + spendable_ms([one], now_ms) < cell_ms * 1001


def test_the_first_cell_that_ends_ends_the_lease() -> None:
    """Of several rules the one with the shortest cell decides, and no lease is longer than a second."""
    minute, day = hit(1000, 60_000), hit(1000, 86_400_000)
    now_ms = 86_400_000 * 1000

    assert spendable_ms([minute], now_ms) == spendable_ms([day, minute], now_ms)
    assert LIFE_MS_MAX == spendable_ms([day], now_ms)


def test_leases_grow_by_steps() -> None:
    """A burst of two does not take a thousand."""
    assert REQUESTS_MIN == requests_wanted(spent=2, elapsed_ms=1, ahead_ms=400, before=0)
    assert GROWTH * 20 == requests_wanted(spent=900, elapsed_ms=1, ahead_ms=400, before=20)
    assert 24 == requests_wanted(spent=60, elapsed_ms=1000, ahead_ms=400, before=20)


def test_what_would_not_pay_is_not_taken() -> None:
    """Fewer requests than `REQUESTS_MIN` are left to the store."""
    assert 0 == requests_wanted(spent=30, elapsed_ms=1000, ahead_ms=400, before=20)
    assert 0 == requests_wanted(spent=1, elapsed_ms=60_000, ahead_ms=400, before=20)


@pytest.mark.parametrize(
    ("hits", "useds", "expected"),
    [
        ([hit(1600)], [0], 1600 // SHARE),
        ([hit(1600)], [1600], 0),
        ([hit(1600)], [1600 - SHARE + 1], 0),
        ([hit(1600, cost=7)], [0], 14),
        ([hit(1600, lease=3)], [0], 3),
        ([hit(1600, lease=3, cost=2)], [0], 1),
        ([hit(1600), hit(320)], [0, 0], 320 // SHARE),
        ([hit(1600), hit(320)], [1600, 0], 0),
    ],
)
def test_a_lease_is_a_share_of_what_remains(hits: list[Hit], useds: list[int], expected: int) -> None:
    """So no process hoards: the 16th part of the least room, `lease:` of the rule at most, in whole requests."""
    assert expected == requests_fitting(hits, useds)
