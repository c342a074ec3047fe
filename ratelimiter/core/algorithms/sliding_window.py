"""The strict sliding window as arithmetic: the reference that every store agrees with.

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
from typing import TYPE_CHECKING, Any

from ratelimiter.core.receipt import NEVER
from ratelimiter.core.settlement import RENEW

if TYPE_CHECKING:
    from ratelimiter.core.quota import Quota
    from ratelimiter.core.settlement import Settlement


# Units that a window can hold: settlements may exceed the limit, and a packed window has 32 bits for them.
USED_MAX = 4 * 10**9


class Window:
    """The units that one key was charged and that still count.

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
        """Return the wait until *cost* more units fit; 0 when they do, NEVER when they exceed the limit."""
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

    def recall(self, quota: Quota, used: int, at_ms: int, now_ms: int) -> None:
        """Count at least *used* units, as if the missing ones were charged at *at_ms*. Call `forget` before."""
        instant = last_instant(quota, at_ms)
        units = used - self.used
        if units <= 0 or instant <= now_ms - quota.window_ms:
            return
        place = bisect_left(self.instants, instant)
        if place < len(self.instants) and self.instants[place] == instant:
            self.counts[place] += units
        else:
            self.instants.insert(place, instant)
            self.counts.insert(place, units)
        self.used += units

    def reset_ms(self, quota: Quota, now_ms: int) -> int:
        """Return the time until the oldest counted entry leaves; 0 when nothing counts."""
        return self.instants[0] + quota.window_ms - now_ms if self.instants else 0

    def ttl_ms(self, quota: Quota, now_ms: int) -> int:
        """Return the time until nothing of this counts any more, the TTL of its key (6)."""
        return self.instants[-1] + quota.window_ms - now_ms if self.instants else 0


def last_instant(quota: Quota, now_ms: int) -> int:
    """Return the last millisecond of the cell that holds *now_ms*; *now_ms* itself at resolution 1."""
    return now_ms - now_ms % quota.resolution_ms + quota.resolution_ms - 1
