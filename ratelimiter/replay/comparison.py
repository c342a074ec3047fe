"""Algorithms that other limiters use in the place of an exact window: fixed windows and two counters."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar

from ratelimiter.core.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.rule import Hit


class _Compared:
    """The state of one key, and the most that it let through in any window."""

    __slots__ = ("_admitted", "_counts", "_held", "most", "refused")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # by the number of the window; two at most
        self._admitted: deque[tuple[int, int]] = deque()
        self._held = 0
        self.most = 0
        self.refused = 0

    def fits(self, quota: Quota, cost: int, now_ms: int) -> bool:
        raise NotImplementedError

    def settle_down(self) -> None:
        """Keep the numbers and let go of the state."""
        self._counts, self._admitted = {}, deque()

    def add(self, quota: Quota, cost: int, now_ms: int) -> None:
        """Charge *cost* units."""
        number = now_ms // quota.window_ms
        self._counts = {each: count for each, count in self._counts.items() if each >= number - 1}
        self._counts[number] = self._counts.get(number, 0) + cost
        admitted = self._admitted
        if admitted and admitted[-1][0] == now_ms:
            admitted[-1] = (now_ms, admitted[-1][1] + cost)
        else:
            admitted.append((now_ms, cost))
        self._held += cost
        while admitted[0][0] <= now_ms - quota.window_ms:
            self._held -= admitted.popleft()[1]
        self.most = max(self.most, self._held)


class FixedWindow(_Compared):
    """Windows that begin at multiples of their length since the epoch."""

    __slots__ = ()

    def fits(self, quota: Quota, cost: int, now_ms: int) -> bool:
        """Return True if the window of *now_ms* has room."""
        return self._counts.get(now_ms // quota.window_ms, 0) + cost <= quota.limit


class TwoCounter(_Compared):
    """The count of the present window, and that of the one before as far as it still overlaps."""

    __slots__ = ()

    def fits(self, quota: Quota, cost: int, now_ms: int) -> bool:
        """Return True if the weighted sum of both windows has room."""
        window_ms = quota.window_ms
        number, elapsed_ms = divmod(now_ms, window_ms)
        before = self._counts.get(number - 1, 0) * (window_ms - elapsed_ms)
        return before + (self._counts.get(number, 0) + cost) * window_ms <= quota.limit * window_ms


class ExactWindow(_Compared):
    """An exact log, for the most that the strict window let through."""

    __slots__ = ()

    def fits(self, quota: Quota, cost: int, now_ms: int) -> bool:
        """Return True if the log has room."""
        admitted = self._admitted
        while admitted and admitted[0][0] <= now_ms - quota.window_ms:
            self._held -= admitted.popleft()[1]
        return self._held + cost <= quota.limit


ALGORITHMS: dict[str, type[_Compared]] = {"fixed": FixedWindow, "two-counter": TwoCounter, "exact-log": ExactWindow}


class Comparison:
    """A whole policy judged by another algorithm: all rules of a request are charged, or none.

    Attributes:
        name: of `ALGORITHMS`.
        refused: requests.
    """

    names: ClassVar[tuple[str, ...]] = tuple(ALGORITHMS)

    def __init__(self, name: str) -> None:
        self.name = name
        self.refused = 0

    def judge(self, hits: Sequence[Hit], states: Sequence[_Compared | None], now_ms: int) -> None:
        """Judge a request; a state of None is of a limit that is no window, and always fits."""
        refusing = []
        enforced = False
        for hit, state in zip(hits, states, strict=True):
            if state is None or not hit.cost or not isinstance(hit.quota, Quota):
                continue
            if not state.fits(hit.quota, hit.cost, now_ms):
                refusing.append(state)
                state.refused += 1
                enforced = enforced or not hit.rule.shadow
        if enforced:
            self.refused += 1
            return
        for hit, state in zip(hits, states, strict=True):
            if state is not None and hit.cost and isinstance(hit.quota, Quota) and state not in refusing:
                state.add(hit.quota, hit.cost, now_ms)
