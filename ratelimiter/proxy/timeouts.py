"""One timer for all deadlines: a deadline is a number that is compared a few times a second, so setting one is free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ratelimiter.clock import stopwatch_s

if TYPE_CHECKING:
    import asyncio


class Watched(Protocol):
    """Something with deadlines."""

    def tick(self, now_s: float, passed_s: float) -> None:
        """See what is overdue.

        Args:
            now_s: on `stopwatch_s`.
            passed_s: since the tick before.
        """


class Sweep:
    """Calls `tick` on everything that is watched.

    Args:
        loop: the event loop.
        tick_s: the time between two looks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tick_s: float) -> None:
        self._loop = loop
        self._tick_s = tick_s
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = 0.0

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, watched: Watched) -> None:
        """Watch it, too."""
        self._watched.add(watched)
        if self._timer is None:
            self._last_s = stopwatch_s()
            self._timer = self._loop.call_later(self._tick_s, self._tick)

    def discard(self, watched: Watched) -> None:
        """Watch it no longer."""
        self._watched.discard(watched)

    def _tick(self) -> None:
        now_s = stopwatch_s()
        passed_s, self._last_s = now_s - self._last_s, now_s
        for watched in list(self._watched):
            watched.tick(now_s, passed_s)
        self._timer = self._loop.call_later(self._tick_s, self._tick) if self._watched else None
