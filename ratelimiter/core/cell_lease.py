"""The arithmetic of cell leases: how many units to take in advance, and how long they may be spent.

A window remembers a charge under the last instant of its cell, and counts it until that instant has left the window
(`algorithms.sliding_window`). So units that are charged *now* may be spent at any moment until the cell ends: each of
them counts for a whole window from its spending on, and invariant 2 holds to the unit. What is unspent when the cell
ends is given back.

Only windows have cells. A token bucket drains from the moment of the charge, so a unit of it that is spent later would
let a bucket admit more than it promises: buckets, periods, slots and balances are never leased.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.algorithms.sliding_window import last_instant
from ratelimiter.core.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.rule import Hit

CELL_MS_MIN = 20  # shorter cells save too few calls
LIFE_MS_MAX = 1000  # so that a header is at most a second behind other processes
SHARE = 16  # of what remains, one lease is at most the 16th part
GROWTH = 4  # a lease is at most so many times as large as the one before
REQUESTS_MIN = 16  # a smaller lease saves less than it costs to take and to give back (tests/benchmarks/hot_path.py)


def leasable(hits: Sequence[Hit]) -> bool:
    """Return True if the requests of *hits* may be decided from units taken in advance.

    Every hit has to be of a window whose cells are long enough, enforced, and known when it is charged.
    """
    for hit in hits:
        quota, rule = hit.quota, hit.rule
        if type(quota) is not Quota or quota.resolution_ms < CELL_MS_MIN:
            return False
        if rule.shadow or rule.settles or not rule.lease or hit.cost <= 0 or hit.lease:
            return False
    return bool(hits)


def spendable_ms(hits: Sequence[Hit], now_ms: int) -> int:
    """Return how long units charged at *now_ms*, the store's clock, may be spent: 0 or more milliseconds.

    One less than to the end of the first cell that ends, as the store's clock shows whole milliseconds, and so does
    that of the spender.
    """
    ends_ms = min([last_instant(hit.quota, now_ms) for hit in hits])  # type: ignore[arg-type]  # windows, all of them
    return max(0, min(ends_ms - now_ms - 1, LIFE_MS_MAX))


def requests_wanted(spent: int, elapsed_ms: int, ahead_ms: int, before: int) -> int:
    """Return the number of requests to take in advance, 0 if that would not pay.

    Args:
        spent: requests like these since the store was last asked.
        elapsed_ms: since then.
        ahead_ms: how long what is taken may be spent.
        before: requests taken in advance then.
    """
    wanted = min(spent * ahead_ms // max(1, elapsed_ms), max(REQUESTS_MIN, GROWTH * before))
    return wanted if wanted >= REQUESTS_MIN else 0


def requests_fitting(hits: Sequence[Hit], useds: Sequence[int]) -> int:
    """Return how many requests a lease may be of at most: by every rule the `SHARE` of what remains, or its bound.

    Args:
        hits: of one request.
        useds: units that count, for each hit.
    """
    return min(
        [
            min((hit.quota.limit - used) // SHARE, hit.rule.lease) // hit.cost
            for hit, used in zip(hits, useds, strict=True)
        ]
    )
