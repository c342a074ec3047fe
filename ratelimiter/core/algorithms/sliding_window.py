"""The strict sliding window as arithmetic: the reference that every store agrees with.

Invariants, cited by number in the tests:

 1. A request is charged to all the rules it matched, or to none.
 2. In every half-open window (t - W, t] a key admits at most its limit.
 3. A refusal changes no tally.
 4. `retry_after_ms` is exact absent other traffic: one ms earlier is refused, at it is admitted.
 5. One decision uses one clock: the store's.
 6. Every key written carries a TTL, no longer than it is useful.
 7. Different (rule, principal) never share a key; changing a limit keeps its counters.
 8. No principal's value leaves in headers, bodies, logs, metric labels, or as a readable Redis key.
 9. Equal decisions in equal dialects are equal bytes.
10. The policy in force was loaded whole.

Theory of operation. A key's state is a short sorted list of (instant, count). A charge at `now` is remembered under the
*last* instant of the `resolution_ms`-wide cell that holds `now`; it counts until that instant has left the window. So a
charge may count up to `resolution_ms - 1` too long and never a millisecond too short, which is how (2) holds with
bounded memory. As the instant itself is stored, not the cell's number, a policy whose limit (hence resolution) changed
reads the old entries unharmed (7).

The list stays sorted even when the clock steps back: a new charge is never remembered before the newest one. An entry
from the future (of a clock that stepped back, or of a failed server whose clock was ahead) was in truth charged by now,
so from the moment that it is seen it counts as charged now: no wait is longer than W and a cell. A state that lies more
than one window in the future says nothing about this window, and is dropped.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ratelimiter.core.quota import Quota
from ratelimiter.core.settlement import RENEW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Hit
    from ratelimiter.core.settlement import Settlement


# What is built per request is a named tuple, which costs a third of a frozen dataclass; and where most requests pass
# it is built by `new`, which costs half of calling its class (tests/benchmarks/decisions.py).
new = tuple.__new__

# Units that a window can hold: settlements may exceed the limit, and a packed window has 32 bits for them.
USED_MAX = 4 * 10**9

NEVER = -1  # instead of a wait: the cost exceeds the limit, or a balance does not cover it

# Who answered. A closed set: it becomes a metric label.
STORE = "store"
REMEMBERED = "remembered"  # the store refused these hits a moment ago, and the refusal still holds
LOCAL = "local"  # the store is out: windows of this process
FAIL_OPEN = "fail_open"  # the store is out, and the rules say allow
FAIL_CLOSED = "fail_closed"  # the store is out, and a rule says deny


class Tally(NamedTuple):
    """What the store saw of one hit, after the decision was carried out."""

    used: int  # units that count now, this hit's included if it was charged
    reset_ms: int  # until the oldest counted entry leaves: the next moment `used` falls; 0 when nothing counts
    retry_after_ms: int  # until this hit would fit; 0 when it fits; NEVER when no wait is known to help


class Receipt(NamedTuple):
    """The store's reply to one request."""

    now_ms: int  # the store's clock, Unix time
    admitted: bool  # every enforced hit fitted, and all were charged
    tallies: Sequence[Tally]  # one per hit, in order
    source: str = STORE  # who answered


class State(Protocol):
    """What a store keeps of one key: of each kind of quota a class, each method as `Window` has it."""

    def forget(self, quota: Any, now_ms: int) -> None:
        """Drop what no longer counts."""

    def wait_ms(self, quota: Any, cost: int, now_ms: int, lease: int = 0) -> int:
        """How long until *cost* more units fit; 0 when they do, NEVER when no wait is known to help."""

    def add(self, quota: Any, cost: int, now_ms: int, lease: int = 0) -> None:
        """Charge *cost* units now; where there are leases as the one named *lease*, unless that is 0."""

    def settle(self, settlement: Any, now_ms: int) -> None:
        """Take note of what a charge came to."""

    def reset_ms(self, quota: Any, now_ms: int) -> int:
        """How long until less counts; 0 when nothing does."""

    def ttl_ms(self, quota: Any, now_ms: int) -> int:
        """How long until nothing of this counts any more (6)."""

    @property
    def used(self) -> int:
        """Units that count."""


class Window:
    """What one key has been charged and still counts.

    Not safe for concurrent use: its owner calls `forget`, then `wait_ms`, then perhaps `add`, without letting go.
    """

    __slots__ = ("counts", "instants", "used")

    def __init__(self) -> None:
        self.instants = array("q")  # Unix ms, ascending, no two alike
        self.counts = array("q")  # units charged at each instant
        self.used = 0  # their sum

    def forget(self, quota: Quota, now_ms: int) -> None:
        """Drop the entries that have left the window, and put those from the future to now; drop all if far ahead."""
        instants = self.instants
        if not instants:
            return
        if instants[-1] >= now_ms + quota.resolution_ms:
            present = last_instant(quota, now_ms)
            if instants[-1] > present + quota.window_ms:
                self.used = 0
                del instants[:], self.counts[:]
                return
            place = bisect_left(instants, present)
            count = sum(self.counts[place:])
            del instants[place:], self.counts[place:]
            instants.append(present)
            self.counts.append(count)
        left_ms = now_ms - quota.window_ms
        if instants[0] <= left_ms:
            gone = 1
            while gone < len(instants) and instants[gone] <= left_ms:
                gone += 1
            self.used -= sum(self.counts[:gone])
            del instants[:gone], self.counts[:gone]

    def wait_ms(self, quota: Quota, cost: int, now_ms: int, _lease: int = 0) -> int:
        """How long until *cost* more units fit; 0 when they do, NEVER when they exceed the limit."""
        surplus = self.used + cost - quota.limit
        if surplus <= 0 or not cost:  # a limit lowered below what counts already leaves no room, but a peek needs none
            return 0
        for instant, count in zip(self.instants, self.counts, strict=True):
            surplus -= count
            if surplus <= 0:
                return instant + quota.window_ms - now_ms
        return NEVER

    def add(self, quota: Quota, cost: int, now_ms: int, _lease: int = 0) -> None:
        """Charge *cost* units now."""
        instant = last_instant(quota, now_ms)
        if self.instants and self.instants[-1] >= instant:
            self.counts[-1] += cost
        else:
            self.instants.append(instant)
            self.counts.append(cost)
        self.used += cost

    def settle(self, settlement: Settlement, now_ms: int) -> None:
        """Charge what more is due, beyond the limit if need be; or take what less is due from the entry that it was
        added to. Never from another: what leaves too early lets too many in.
        """
        quota: Any  # a Quota
        _, quota, charged, due, _, _, charged_at_ms = settlement
        if due > charged:
            units = min(due - charged, USED_MAX - self.used)
            if units:
                self.add(quota, units, now_ms)
        elif due != RENEW and due < charged:
            units, instant = charged - due, last_instant(quota, charged_at_ms)
            place = bisect_left(self.instants, instant)
            if place == len(self.instants) or self.instants[place] != instant or self.counts[place] < units:
                return
            self.used -= units
            self.counts[place] -= units
            if not self.counts[place]:
                del self.instants[place], self.counts[place]

    def reset_ms(self, quota: Quota, now_ms: int) -> int:
        """How long until the oldest counted entry leaves; 0 when nothing counts."""
        return self.instants[0] + quota.window_ms - now_ms if self.instants else 0

    def ttl_ms(self, quota: Quota, now_ms: int) -> int:
        """How long until nothing of this counts any more: what its key's TTL should be (6)."""
        return self.instants[-1] + quota.window_ms - now_ms if self.instants else 0


def last_instant(quota: Quota, now_ms: int) -> int:
    """The last millisecond of the cell that holds *now_ms*; *now_ms* itself at resolution 1."""
    return now_ms - now_ms % quota.resolution_ms + quota.resolution_ms - 1


def charge(hits: Sequence[Hit], states: Sequence[State], now_ms: int) -> Receipt:
    """Look at every hit, then charge all of them or none (1, 3).

    A rule in shadow never refuses the request. It is charged if the request is admitted and all its own hits fit, so
    its numbers are those of its enforcing twin.

    Args:
        hits: the charges of one request; no two share a key.
        states: what is kept of each hit's key, in the same order; changed in place.
        now_ms: the store's clock, Unix time.
    """
    if len(hits) == 1 and hits[0].quota.kind == Quota.kind:
        return charge_one(hits[0], cast("Window", states[0]), now_ms)
    admitted = True
    waits: list[int] = []
    withheld: set[str] = set()  # shadow rules that would have refused
    for hit, state in zip(hits, states, strict=True):
        state.forget(hit.quota, now_ms)
        wait_ms = state.wait_ms(hit.quota, hit.cost, now_ms, hit.lease)
        waits.append(wait_ms)
        if wait_ms:
            if hit.rule.shadow:
                withheld.add(hit.rule.name)
            else:
                admitted = False
    tallies: list[Tally] = []
    for hit, state, wait_ms in zip(hits, states, waits, strict=True):
        if admitted and hit.cost and hit.rule.name not in withheld:
            state.add(hit.quota, hit.cost, now_ms, hit.lease)
        tallies.append(Tally(state.used, state.reset_ms(hit.quota, now_ms), wait_ms))
    return Receipt(now_ms, admitted, tallies)


def charge_one(hit: Hit, window: Window, now_ms: int) -> Receipt:
    """Do what `charge` does, for a request of one hit on a window, at a third of the cost
    (tests/benchmarks/decisions.py).

    Most requests are that. The steps of `Window` are written out, as four calls would cost as much as their work.
    """
    quota: Any  # a Quota
    _, quota, cost, rule, _ = hit
    limit, window_ms, resolution_ms = quota.limit, quota.window_ms, quota.resolution_ms
    instants = window.instants
    if instants and (instants[0] <= now_ms - window_ms or instants[-1] >= now_ms + resolution_ms):
        window.forget(quota, now_ms)
    used = window.used + cost
    if used <= limit or not cost:
        if cost:
            instant = now_ms if resolution_ms == 1 else now_ms - now_ms % resolution_ms + resolution_ms - 1
            if instants and instants[-1] >= instant:
                window.counts[-1] += cost
            else:
                instants.append(instant)
                window.counts.append(cost)
            window.used = used
        reset_ms = instants[0] + window_ms - now_ms if instants else 0
        return new(Receipt, (now_ms, True, (new(Tally, (used, reset_ms, 0)),), STORE))
    reset_ms = instants[0] + window_ms - now_ms if instants else 0
    if cost > limit:
        wait_ms = NEVER
    elif used - limit <= window.counts[0]:
        wait_ms = reset_ms
    else:
        wait_ms = window.wait_ms(quota, cost, now_ms)
    return new(Receipt, (now_ms, rule.shadow, (new(Tally, (window.used, reset_ms, wait_ms)),), STORE))
