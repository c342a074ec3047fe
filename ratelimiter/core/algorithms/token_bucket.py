"""The token bucket (GCRA) as arithmetic, in whole numbers: the reference that every store agrees with.

Theory of operation. A key's state is what it owes, and since when: a charge adds the weight of its units, time takes
`quota.drain` of it every millisecond. What would be owed above the weight of `quota.limit` is refused. Weights are
whole numbers below 2^53, so nothing is ever rounded but the waits, upward, which are whole milliseconds.

A debt from the future (of a clock that stepped back, or of a failed server whose clock was ahead) drains from the
moment that it is seen, so no wait is longer than a full bucket takes to drain. A debt that lies further ahead than that
is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.receipt import NEVER
from ratelimiter.core.settlement import RENEW

if TYPE_CHECKING:
    from ratelimiter.core.quota import Bucket
    from ratelimiter.core.settlement import Settlement


class BucketState:
    """The debt of one key to its bucket. Not safe for concurrent use."""

    __slots__ = ("debt", "since_ms", "weight")

    def __init__(self) -> None:
        self.debt = 0  # in weight
        self.since_ms = 0  # when that was so, Unix ms
        self.weight = 1  # of one unit, when that was so

    @property
    def used(self) -> int:
        """Units that are not back yet, a part of one counted whole."""
        return -(-self.debt // self.weight)

    def forget(self, quota: Bucket, now_ms: int) -> None:
        """Take off what has drained since, or all if it comes from a clock that was far ahead."""
        if self.weight != quota.weight:  # another rate: in whole units, so that nothing is given away
            self.debt = min(self.used * quota.weight, quota.debt_max)
            self.weight = quota.weight
        elapsed_ms = now_ms - self.since_ms
        full_ms = -(-quota.limit * quota.weight // quota.drain)
        if not self.debt or elapsed_ms >= -(-self.debt // quota.drain) or -elapsed_ms > full_ms:
            self.debt, self.since_ms = 0, now_ms
        elif elapsed_ms:
            self.debt -= max(0, elapsed_ms) * quota.drain
            self.since_ms = now_ms

    def wait_ms(self, quota: Bucket, cost: int, now_ms: int, _lease: int = 0) -> int:
        """Return the wait until *cost* more units fit; 0 when they do, NEVER when they exceed the limit."""
        over = self.debt + (cost - quota.limit) * quota.weight
        if over <= 0 or not cost:
            return 0
        return NEVER if cost > quota.limit else self.since_ms - now_ms + -(-over // quota.drain)

    def add(self, quota: Bucket, cost: int, _now_ms: int, _lease: int = 0) -> None:
        """Charge *cost* units now."""
        self.debt += cost * quota.weight

    def settle(self, settlement: Settlement, now_ms: int) -> None:
        """Charge what more is due, or give back what less is.

        A charge drains like everything else, so of what is given back what may have drained since is left out: the
        bucket then owes at least what it would owe had it never been charged, whatever else it was.
        """
        quota: Any  # a Bucket
        _, quota, charged, due, _, _, charged_at_ms = settlement
        if due == RENEW:
            return
        if due >= charged:
            units = min(due - charged, quota.debt_max // quota.weight)
            self.debt = max(self.debt, min(self.debt + units * quota.weight, quota.debt_max))
        elif charged_at_ms <= self.since_ms:
            elapsed_ms = max(0, now_ms - charged_at_ms)
            weight = (charged - due) * quota.weight
            if elapsed_ms < -(-weight // quota.drain):
                self.debt = max(0, self.debt - weight + elapsed_ms * quota.drain)

    def recall(self, quota: Bucket, used: int, at_ms: int, now_ms: int) -> None:
        """Owe at least what is left now of *used* units that were owed at *at_ms*. Call `forget` before."""
        self.debt = max(self.debt, min(used * quota.weight, quota.debt_max) - max(0, now_ms - at_ms) * quota.drain)

    def reset_ms(self, quota: Bucket, now_ms: int) -> int:
        """Return the time until one unit more is back; 0 when all are."""
        if not self.debt:
            return 0
        return self.since_ms - now_ms + -(-(self.debt - (self.used - 1) * quota.weight) // quota.drain)

    def ttl_ms(self, quota: Bucket, now_ms: int) -> int:
        """Return the time until nothing is owed, the TTL of its key (6)."""
        return self.since_ms - now_ms + -(-self.debt // quota.drain) if self.debt else 0
