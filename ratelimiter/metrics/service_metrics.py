"""Metrics of the decision service: calls by door, method and code."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from ratelimiter.metrics.prometheus import Instruments, Noted, Observed

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.metrics.prometheus import CollectorRegistry
    from ratelimiter.proxy.exchange_record import ExchangeRecord

GRPC, HTTP = "grpc", "http"
OTHER = "other"
SECONDS = (0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1, 1.0)
HTTP_DOORS = ("/check/nginx/reply", "/check/nginx", "/check", "/v1/decide", "/v1/settle", "/json")


class ServiceMetrics(Instruments):
    """Counts the calls of the decision service.

    Args:
        registry: where the metrics are found.
        missed: returns how many decisions were made without the store for want of time.
        unknown: returns how many units were given back that were no charge of this process.
    """

    def __init__(
        self, registry: CollectorRegistry | None, missed: Callable[[], int], unknown: Callable[[], int]
    ) -> None:
        self._sources = missed, unknown
        self._passed_on = [0, 0]
        self._calls = Noted()  # door, method, code
        self._seconds = Observed(SECONDS)
        Instruments.__init__(self, registry)

    def _make(self) -> None:
        self._of_calls = self._counter("service_calls", "Calls of the decision service.", "door", "method", "code")
        self._of_seconds = self._histogram(
            "service_call_seconds", "Seconds from a complete call to its answer.", SECONDS
        )
        self._of_missed = self._counter(
            "service_deadline_decisions", "Decisions made without the store because the deadline of a call was near."
        )
        self._of_unknown = self._counter("service_unknown_refunds", "Refunded units that this process had not charged.")

    def called(self, path: str, code: int, seconds: float) -> None:
        """Count a gRPC call; *path* is that of a method, or empty."""
        self._note((GRPC, path.rpartition("/")[2] or OTHER, str(int(code))), seconds)

    def exchanged(self, exchange: ExchangeRecord) -> None:
        """Count a request to an HTTP door; see `ratelimiter.proxy.interfaces.ExchangeObserver`."""
        target = exchange.target.partition(b"?")[0].decode("latin-1")
        door = next((door for door in HTTP_DOORS if target == door or target.startswith(f"{door}/")), OTHER)
        self._note((HTTP, door, str(exchange.status)), exchange.duration_ms / 1000)

    def _note(self, labels: tuple[str, str, str], seconds: float) -> None:
        self._calls[labels] += 1
        tallies = self._seconds.tallies
        tallies[0] += seconds
        tallies[bisect_left(SECONDS, seconds) + 1] += 1
        if not self._timed:
            self._flush_soon()

    def _pass_on(self) -> None:
        for labels, number in self._calls.news():
            self._of_calls.labels(*labels).inc(number)
        self._seconds.pass_on(self._of_seconds)
        for index, counter in enumerate((self._of_missed, self._of_unknown)):
            now = self._sources[index]()
            counter.inc(now - self._passed_on[index])
            self._passed_on[index] = now
