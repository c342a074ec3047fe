"""The share of a limit that one process has to itself while the store is out."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from ratelimiter.core.quota import Bucket, Quota
from ratelimiter.core.rule import OnStoreError

if TYPE_CHECKING:
    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.rule import Rule


def local_quota(quota: AnyQuota, local_share: float) -> AnyQuota:
    """Return the share of *quota* that one process counts by without the store, in whole units, rounded up."""
    limit = local_limit(quota, local_share)
    match quota:
        case Quota():
            return Quota(limit, quota.window_ms)
        case Bucket():
            refill = shared(quota.refill, local_share)
            try:
                return Bucket(limit, refill, quota.window_ms)
            except ValueError:  # numbers with no common divisor are too large: then all of what comes back
                return replace(quota, limit=limit)
        case _:
            return replace(quota, limit=limit)


def local_limit(quota: AnyQuota, local_share: float) -> int:
    """Return the units of *quota* that one process admits without the store: its share, rounded up."""
    return shared(quota.limit, local_share)


def outage_limit(rule: Rule, local_share: float, processes: int) -> int | None:
    """Return the units that *processes* together admit of *rule* to one principal in one window without the store.

    None if there is no bound.
    """
    if rule.shadow or rule.on_store_error is OnStoreError.ALLOW:
        return None
    if rule.on_store_error is OnStoreError.DENY:
        return 0
    return processes * local_limit(rule.quotas[0], local_share)


def first_window_limit(rule: Rule, local_share: float, processes: int) -> int | None:
    """Return the units that are admitted to one principal in the window in which the store fails, before and after it.

    A process goes on from what the store last said of a key. So a process that has spent c units there, and has
    therefore seen at least c, admits at most its share of the L - c units that may be left: c + s (L - c) in all. The
    sum over n processes, with all c together at most L, is at most L + n s L - s L (with s L rounded up, as a process
    counts in whole units). None if there is no bound, or if the rule admits nothing without the store.
    """
    alone = outage_limit(rule, local_share, processes)
    if not alone:
        return None
    limit = rule.quotas[0].limit
    return limit + alone - local_limit(rule.quotas[0], local_share)


def shared(units: int, share: float) -> int:
    """Return *share* of *units*, rounded up to whole units."""
    # In decimals, as it was written: in binary a tenth of 70 is a little more than 7, which would be rounded up to 8.
    return ceil(units * Fraction(str(share)))
