"""The log of outages: one line at the start and one at the end, however often the store fails and recovers."""

from __future__ import annotations

import logging

from ratelimiter.clock import Clock, monotonic_ms

STEADY_MS = 60_000  # further changes within this time are summed up in one line at its end

log = logging.getLogger("ratelimiter.stores")


class OutageLog:
    """Writes at most two lines for an outage, and one a minute while a store fails and recovers again and again.

    Args:
        clock: milliseconds, monotonic.
    """

    def __init__(self, *, clock: Clock = monotonic_ms) -> None:
        self._clock = clock
        self._began_ms: int | None = None  # when the minute began whose first outage was written
        self._ended = False  # True once the end of that outage was written
        self._out = False
        self._reason = ""
        self._outages = 0  # not written yet
        self.decisions = 0  # made without the store, not written yet

    @property
    def due_ms(self) -> int | None:
        """Milliseconds until `flush` may write something; None if nothing waits to be written."""
        if self._began_ms is None or not self._outages:
            return None
        return max(0, self._began_ms + STEADY_MS - self._clock())

    def failed(self, kind: str, text: str) -> None:
        """Note that the store is out."""
        self._reason = f"({kind}): {text}" if text else f"({kind})"
        self._out = True
        self.flush()
        if self._began_ms is None:
            self._began_ms, self._ended, self.decisions = self._clock(), False, 0
            log.warning("the store gives no answer %s; each rule does what its on_store_error says", self._reason)
        else:
            self._outages += 1

    def answered(self) -> None:
        """Note that the store answers again."""
        self._out = False
        if not self._outages and not self._ended:
            self._ended = True
            log.warning(
                "the store answers again: limits are shared again; %d decisions were made without it", self.decisions
            )
            self.decisions = 0
        self.flush()

    def flush(self) -> None:
        """Write the summary of a minute that is over."""
        if self._began_ms is None or self._clock() - self._began_ms < STEADY_MS:
            return
        if self._outages:
            now = f"gives no answer {self._reason}" if self._out else "answers again"
            log.warning(
                "the store %s; in the last %d s it failed %d times more, and %d decisions were made without it",
                now,
                (self._clock() - self._began_ms) // 1000,
                self._outages,
                self.decisions,
            )
            self._began_ms, self._outages, self.decisions, self._ended = self._clock(), 0, 0, not self._out
        elif not self._out:
            self._began_ms = None
