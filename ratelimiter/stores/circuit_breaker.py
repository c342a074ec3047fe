"""The circuit breaker: closed while the store answers, or open, so that only a probe now and then reaches the store."""

from __future__ import annotations

from ratelimiter.clock import Clock, monotonic_ms

FAILURES_MAX = 5
PROBE_MS = 250  # four probes a second, so enforcement is back well within a second of the fault's end
STEADY_MS = 10_000  # a breaker that opens again within this time after it closed has closed too early
CONFIRMATIONS = 3  # successes in a row that close it then
CONFIRM_MS = 50  # between them


class CircuitBreaker:
    """Closed while the store answers. After *failures_max* failures in a row it opens: callers are turned away except
    for one probe every *probe_ms*, and the first success closes it.

    If it opens again within `STEADY_MS`, the store is unsteady: from then on `CONFIRMATIONS` successes in a row close
    it, the further ones after `CONFIRM_MS` each, so that it does not flap with every packet that is lost.

    Args:
        failures_max: failures in a row that open it, at least 1.
        probe_ms: milliseconds between two probes.
        clock: milliseconds, monotonic.

    Attributes:
        open: True if only probes may ask the store.
    """

    def __init__(
        self, *, failures_max: int = FAILURES_MAX, probe_ms: int = PROBE_MS, clock: Clock = monotonic_ms
    ) -> None:
        self._failures_max = failures_max
        self._probe_ms = probe_ms
        self._clock = clock
        self._failures = 0
        self._next_probe_ms = 0
        self._closed_ms: int | None = None  # when it closed last
        self._needed = 1  # successes in a row that close it
        self._successes = 0
        self.open = False

    @property
    def wait_ms(self) -> int:
        """Milliseconds until the next probe may ask; 0 while closed."""
        return max(0, self._next_probe_ms - self._clock()) if self.open else 0

    def admits(self) -> bool:
        """Return True if this caller may ask the store; while open, that caller is the probe."""
        if not self.open:
            return True
        now_ms = self._clock()
        if now_ms < self._next_probe_ms:
            return False
        self._next_probe_ms = now_ms + self._probe_ms
        return True

    def succeeded(self) -> bool:
        """Note an answer of the store; return True if that closed the breaker."""
        self._failures = 0
        if not self.open:
            return False
        self._successes += 1
        if self._successes < self._needed:
            self._next_probe_ms = min(self._next_probe_ms, self._clock() + CONFIRM_MS)
            return False
        self.open, self._closed_ms = False, self._clock()
        return True

    def failed(self) -> bool:
        """Note a missing answer; return True if that opened the breaker."""
        self._failures += 1
        self._successes = 0
        if self.open or self._failures < self._failures_max:
            return False
        self.trip()
        return True

    def trip(self) -> None:
        """Open at once."""
        now_ms = self._clock()
        again = self._closed_ms is not None and now_ms - self._closed_ms < STEADY_MS
        self.open, self._needed, self._successes = True, CONFIRMATIONS if again else 1, 0
        self._next_probe_ms = now_ms + self._probe_ms

    def spared(self) -> None:
        """Give back a probe that ended before the store could prove anything: the next caller is the probe."""
        self._next_probe_ms = self._clock()
