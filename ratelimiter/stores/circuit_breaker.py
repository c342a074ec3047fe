"""Whether a store that failed is worth asking again: closed, or open with a probe now and then."""

from __future__ import annotations

from ratelimiter.clock import Clock, monotonic_ms

FAILURES_MAX = 5
PROBE_MS = 250  # four probes a second, so enforcement is back well within a second of the fault's end


class CircuitBreaker:
    """Closed while the store answers. After *failures_max* failures in a row it opens: callers are turned away but for
    one probe every *probe_ms*, and the first success closes it.

    Args:
        failures_max: failures in a row that open it, at least 1.
        probe_ms: between two probes, in milliseconds.
        clock: milliseconds, monotonic.
    """

    def __init__(
        self, *, failures_max: int = FAILURES_MAX, probe_ms: int = PROBE_MS, clock: Clock = monotonic_ms
    ) -> None:
        self._failures_max = failures_max
        self._probe_ms = probe_ms
        self._clock = clock
        self._failures = 0
        self._next_probe_ms = 0
        self.open = False

    def admits(self) -> bool:
        """Whether this caller may ask the store; while open, the caller who may is the probe."""
        if not self.open:
            return True
        now_ms = self._clock()
        if now_ms < self._next_probe_ms:
            return False
        self._next_probe_ms = now_ms + self._probe_ms
        return True

    def succeeded(self) -> bool:
        """The store answered; whether that closed the breaker."""
        self._failures = 0
        closed, self.open = self.open, False
        return closed

    def failed(self) -> bool:
        """The store did not answer; whether that opened the breaker."""
        self._failures += 1
        if self.open or self._failures < self._failures_max:
            return False
        self.open = True
        self._next_probe_ms = self._clock() + self._probe_ms
        return True

    def spared(self) -> None:
        """The probe ended before the store could prove anything: the next caller is the probe."""
        self._next_probe_ms = self._clock()
