"""Spent and reserved units as arithmetic: periods of the calendar, slots and balances.

Theory of operation. A key's state is what was spent, the period in which it was (of periods only), and a list of
leases: units that count until they are settled or their time is up. Used is what was spent and leased together.

A lease outlives the period in which it was made: it counts in the next one, too, and is spent in the one in which it is
settled. So no period is ever overspent, and one may hold less than its limit for as long as a lease lasts.

If the clock steps back into the period before, what was spent in the later one counts in the present one, so no wait
is longer than a period. A period that is further ahead is dropped. Likewise a lease ends at most one TTL from now; one
that would end more than two TTLs from now is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.algorithms.calendar import around
from ratelimiter.core.quota import LEASES_MAX, Balance, Period, Slots
from ratelimiter.core.receipt import NEVER
from ratelimiter.core.settlement import RENEW

if TYPE_CHECKING:
    from typing import TypeAlias

    from ratelimiter.core.settlement import Settlement

    AccountQuota: TypeAlias = Period | Slots | Balance

BALANCE_MAX = 10**12  # credits that a top-up can lead to, above the limit
BALANCE_TTL_MS = 10 * 366 * 24 * 3600 * 1000  # after its last use: a balance is useful for that long (6)


class Lease(NamedTuple):
    """Units that count until they are settled, or until their time is up."""

    name: int
    units: int
    until_ms: int  # Unix ms; from then on they do not count


class Account:
    """The spent and reserved units of one key. Not safe for concurrent use."""

    __slots__ = ("leases", "spent", "start_ms", "until_ms")

    def __init__(self) -> None:
        self.spent = 0  # below 0 after a top-up
        self.start_ms = 0  # when the period began in which that was spent, Unix ms; 0 where there are no periods
        self.until_ms = 0  # when that ends; found out by `forget`
        self.leases: list[Lease] = []  # in the order in which they were made

    @property
    def used(self) -> int:
        """Units that count; below 0 when a top-up has led to more than the limit."""
        return self.spent + sum(lease.units for lease in self.leases)

    def forget(self, quota: AccountQuota, now_ms: int) -> None:
        """Drop what was spent in an earlier period, and the leases whose time is up."""
        if self.leases:
            last_ms, far_ms = now_ms + quota.lease_ttl_ms, now_ms + 2 * quota.lease_ttl_ms
            held = [lease for lease in self.leases if now_ms < lease.until_ms <= far_ms]
            self.leases = [one if one.until_ms <= last_ms else one._replace(until_ms=last_ms) for one in held]
        if isinstance(quota, Period):
            _, start_ms, end_ms, next_end_ms, _ = around(quota, now_ms)
            self.until_ms = end_ms
            if not start_ms <= self.start_ms < next_end_ms:  # a start in the next period: the clock has stepped back
                self.spent = 0
            self.start_ms = start_ms

    def wait_ms(self, quota: AccountQuota, cost: int, now_ms: int, lease: int = 0) -> int:
        """Return the wait until *cost* more units fit; 0 when they do, NEVER when no wait is known to help.

        They may fit earlier, if leases are settled before they end.
        """
        if cost <= 0:
            return NEVER if cost and self.spent + cost < -BALANCE_MAX else 0
        surplus = self.used + cost - quota.limit
        room = LEASES_MAX - len(self.leases) if lease else 1
        if surplus <= 0 and room > 0:
            return 0
        ends = [(one.until_ms, one.units, 1) for one in self.leases]
        if isinstance(quota, Period):
            ends.append((self.until_ms, self.spent, 0))
        for end_ms, units, leases in sorted(ends):
            surplus -= units
            room += leases
            if surplus <= 0 and room > 0:
                return end_ms - now_ms
        return NEVER

    def add(self, quota: AccountQuota, cost: int, now_ms: int, lease: int = 0) -> None:
        """Charge *cost* units now: for good, or as the lease named *lease*; slots are always leased."""
        if lease or isinstance(quota, Slots):
            self.leases.append(Lease(lease, cost, now_ms + quota.lease_ttl_ms))
        else:
            self.spent += cost

    def settle(self, settlement: Settlement, now_ms: int) -> None:
        """End a lease, or prolong it; what is due is spent as far as it is there."""
        _, quota, charged, due, _, name, charged_at_ms = settlement
        there = max(0, quota.limit - self.used)
        place = next((i for i, lease in enumerate(self.leases) if lease.name == name), None) if name else None
        if due == RENEW:
            until_ms = now_ms + quota.lease_ttl_ms
            if place is not None:
                self.leases[place] = self.leases[place]._replace(until_ms=until_ms)
            elif name and min(charged, there) and len(self.leases) < LEASES_MAX:
                self.leases.append(Lease(name, min(charged, there), until_ms))
            return
        if place is not None:
            there += self.leases.pop(place).units
        if isinstance(quota, Slots):
            return
        if name:
            self.spent += min(due, there)
        elif due >= charged:
            self.spent += min(due - charged, there)
        elif charged_at_ms >= self.start_ms and (self.spent >= charged - due or isinstance(quota, Balance)):
            self.spent -= charged - due

    def recall(self, quota: AccountQuota, used: int, at_ms: int, now_ms: int) -> None:  # noqa: ARG002 - as of others
        """Count at least *used* units as spent, if that was in this period; never slots. Call `forget` before."""
        if not isinstance(quota, Slots) and at_ms >= self.start_ms:
            self.spent = max(self.spent, used)

    def reset_ms(self, quota: AccountQuota, now_ms: int) -> int:
        """Return the time until less counts: until the period ends, or of slots the first lease; 0 when unknown.

        Open reservations are left out of periods and balances: mostly they are the request's own.
        """
        if isinstance(quota, Period):
            return self.until_ms - now_ms if self.spent or self.leases else 0
        if isinstance(quota, Slots) and self.leases:
            return min(lease.until_ms for lease in self.leases) - now_ms
        return 0

    def ttl_ms(self, quota: AccountQuota, now_ms: int) -> int:
        """Return the time until nothing of this counts any more, the TTL of its key (6); 0 if nothing does now."""
        ends = [lease.until_ms - now_ms for lease in self.leases]
        if isinstance(quota, Period) and self.spent:
            ends.append(self.until_ms - now_ms)
        if isinstance(quota, Balance) and (self.spent or self.leases):
            ends.append(BALANCE_TTL_MS)
        return max(ends, default=0)
