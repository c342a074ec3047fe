"""The most that a caller would have used without a limit: the smallest limit that it would not have noticed."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from ratelimiter.core.algorithms import STATES
from ratelimiter.core.algorithms.sliding_window import Window
from ratelimiter.core.quota import LIMIT_MAX, PRECISION, Quota

if TYPE_CHECKING:
    from ratelimiter.core.quota import AnyQuota


class WindowPeak:
    """Of a sliding window: an exact log while it holds no more than a window remembers exactly, then its cells.

    Args:
        exact: the window with a limit of `PRECISION`.
        cells: the window with a limit above.
    """

    __slots__ = ("_quota", "_window", "most")

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._window = Window()
        self.most = 0

    @classmethod
    def begun(cls, quota: Quota, window: Window, most: int) -> WindowPeak:
        """Return a peak that goes on from *window*, whose entries are exact."""
        peak = cls(quota)
        peak._window.instants = window.instants[:]
        peak._window.counts = window.counts[:]
        peak._window.used = window.used
        peak.most = most
        return peak

    @property
    def idle(self) -> bool:
        """True if nothing counts."""
        return not self._window.used

    def forget(self, now_ms: int) -> None:
        """Drop what has left the window."""
        self._window.forget(self._quota, now_ms)

    def add(self, cost: int, now_ms: int, _end_ms: int) -> None:
        """Count a request."""
        window, quota = self._window, self._quota
        instants = window.instants
        if instants and instants[0] <= now_ms - quota.window_ms:
            window.forget(quota, now_ms)
        window.add(quota, cost, now_ms)
        used = window.used
        if used > self.most:  # a call of max would be a tenth of all this
            if used > PRECISION and quota.resolution_ms == 1:
                self._widen(now_ms)
                used = self._window.used
            self.most = used

    def _widen(self, now_ms: int) -> None:
        """Go on in cells: a limit above `PRECISION` is judged in these."""
        quota = cells(self._quota.window_ms)
        wide = Window()
        for instant, count in zip(self._window.instants, self._window.counts, strict=True):
            wide.add(quota, count, instant)
        self._quota, self._window = quota, wide
        wide.forget(quota, now_ms)


class StatePeak:
    """Of buckets, periods and balances: their own arithmetic, which never refuses here."""

    __slots__ = ("_quota", "_state", "most")

    def __init__(self, quota: AnyQuota) -> None:
        self._quota = quota
        self._state: Any = STATES[quota.kind]()
        self.most = 0

    def add(self, cost: int, now_ms: int, _end_ms: int) -> None:
        """Count a request."""
        self._state.forget(self._quota, now_ms)
        self._state.add(self._quota, cost, now_ms)
        self.most = max(self.most, self._state.used)


class SlotsPeak:
    """Of slots: what runs at the same time."""

    __slots__ = ("_ends", "_used", "most")

    def __init__(self) -> None:
        self._ends: list[tuple[int, int]] = []
        self._used = 0
        self.most = 0

    def add(self, cost: int, now_ms: int, end_ms: int) -> None:
        """Count a request that runs until *end_ms*."""
        while self._ends and self._ends[0][0] <= now_ms:
            self._used -= heappop(self._ends)[1]
        self._used += cost
        heappush(self._ends, (end_ms, cost))
        self.most = max(self.most, self._used)


class KnownPeak:
    """A peak that was found elsewhere."""

    __slots__ = ("most",)

    def __init__(self, most: int) -> None:
        self.most = most

    def add(self, cost: int, now_ms: int, _end_ms: int) -> None:
        """Refuse to count any further."""
        raise NotImplementedError(cost, now_ms)


def exact(window_ms: int) -> Quota:
    """Return a window that remembers every millisecond."""
    return Quota(PRECISION, window_ms)


def cells(window_ms: int) -> Quota:
    """Return a window that remembers cells."""
    return Quota(LIMIT_MAX, window_ms)


def peak_of(quota: AnyQuota) -> WindowPeak | StatePeak | SlotsPeak:
    """Return the peak for *quota*."""
    if isinstance(quota, Quota):
        return WindowPeak(exact(quota.window_ms))
    return SlotsPeak() if quota.kind == "slots" else StatePeak(quota)
