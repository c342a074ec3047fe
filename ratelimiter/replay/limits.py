"""Limits from what callers need: the smallest that a share of them would not have noticed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ratelimiter.core.quota import Bucket, Quota

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.rule import Rule
    from ratelimiter.replay.tracked import Tracked

SHARES = (0.0, 0.001, 0.01, 0.05)  # of callers that may be touched
WAIT_DIGITS = 3  # waits are told to so many digits, which bounds their number
LONG_WINDOWS = 10  # of the second quota of a burst; see `Rule.burst`


def needs_of(rule: Rule, tracked: Sequence[Mapping[bytes, Tracked]]) -> list[int]:
    """Return for each caller the smallest limit of *rule* that would have refused none of its requests, ascending.

    Args:
        rule: its burst stays as it is.
        tracked: by digest, for each quota of the rule.
    """
    if not tracked:
        return []
    if not rule.burst or len(tracked) < 2:
        return sorted(each.needed for each in tracked[0].values())
    longer = tracked[1]
    return sorted(
        max(1, each.needed - rule.burst, -(-(longer[digest].needed - rule.burst) // LONG_WINDOWS))
        for digest, each in tracked[0].items()
    )


def smallest_limit(needs: Sequence[int], share: float) -> int | None:
    """Return the smallest limit that touches at most *share* of the callers; None without callers.

    Args:
        needs: of `needs_of`.
        share: 0 to 1.
    """
    if not needs:
        return None
    touched = int(len(needs) * share + 1e-9)  # callers that may be touched, rounded down
    return needs[len(needs) - 1 - touched] if touched < len(needs) else 1


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest of the ascending *values* that *share* of them do not exceed; None without values."""
    if not values:
        return None
    return values[max(0, min(len(values) - 1, -int(-share * len(values) // 1) - 1))]


def with_limit(quota: AnyQuota, limit: int) -> AnyQuota:
    """Return *quota* with another limit; of a bucket the capacity, refilled as fast as before."""
    if isinstance(quota, Bucket):
        return replace(quota, limit=limit)
    return Quota(limit, quota.window_ms) if isinstance(quota, Quota) else replace(quota, limit=limit)


def round_up(limit: int) -> int:
    """Return *limit* as people write limits: to two digits, upward."""
    if limit < 20:
        return limit
    unit: int = 10 ** (len(str(limit)) - 2)
    if unit == 1:
        unit = 5
    return -(-limit // unit) * unit


def rounded_wait(wait_ms: int | None) -> int | None:
    """Return *wait_ms* to a few digits, upward."""
    if wait_ms is None or wait_ms < 10**WAIT_DIGITS:
        return wait_ms
    unit: int = 10 ** (len(str(wait_ms)) - WAIT_DIGITS)
    return -(-wait_ms // unit) * unit
