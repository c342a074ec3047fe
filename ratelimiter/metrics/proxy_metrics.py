"""The metrics of a proxy: its exchanges and connections."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from ratelimiter.engine.batched_observer import Batches
from ratelimiter.metrics.prometheus import Instruments, Noted, Observed
from ratelimiter.proxy.exchange_record import ExchangeRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.metrics.prometheus import CollectorRegistry
    from ratelimiter.proxy.certificates import Credentials
    from ratelimiter.proxy.interfaces import ClientSet

CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")  # none: the client was told nothing
UPSTREAM_S = (0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ProxyMetrics(Instruments, Batches[ExchangeRecord]):
    """All metrics of a proxy; the observer of its exchanges.

    Args:
        connections: counted at each scrape.
        certificates: whose end is told.
        registry: where the metrics are found; that of the process by default.

    Raises:
        ValueError: the registry has them already.
    """

    def __init__(
        self,
        connections: ClientSet,
        registry: CollectorRegistry | None = None,
        certificates: Sequence[Credentials] = (),
    ) -> None:
        self._connections = connections
        self._responses = Noted()  # class, source
        self._bytes = Noted()  # direction
        self._seconds = {name: Observed(UPSTREAM_S) for name in CLASSES}
        self._tallies = {name: observed.tallies for name, observed in self._seconds.items()}
        self._certificates = certificates
        self._turned_away = 0  # as passed on
        Batches.__init__(self)
        Instruments.__init__(self, registry)

    def _make(self) -> None:
        self._of_responses = self._counter("proxy_responses", "Answered requests, each once.", "status", "source")
        self._of_seconds = self._histogram(
            "proxy_upstream_seconds",
            "Seconds from forwarding a request to the head of its response.",
            UPSTREAM_S,
            "status",
        )
        self._received = self._counter("proxy_received_bytes", "Bytes of request bodies.")
        self._sent = self._counter("proxy_sent_bytes", "Bytes of response bodies.")
        self._open = self._gauge("proxy_connections", "Open client connections.", of_several="livesum")
        self._of_turned_away = self._counter(
            "proxy_connections_turned_away", "Client connections closed at once because a bound was reached."
        )
        self._expires = self._gauge(
            "proxy_certificate_expires_timestamp_seconds",
            "Unix time until which the certificate of a side is valid; 0 if it is unknown.",
            "side",
            of_several="livemin",
        )
        # A series that appears with its first event hides that event from rate().
        for status, source in (
            *((status, "upstream") for status in ("2xx", "3xx", "4xx", "5xx")),
            *((status, source) for status in ("4xx", "5xx") for source in ("judge", "proxy")),
            ("none", "proxy"),
        ):
            self._of_responses.labels(status, source)

    def exchanged(self, exchange: ExchangeRecord) -> None:
        """Keep an exchange until it is counted; see `ratelimiter.proxy.interfaces.ExchangeObserver`."""
        self.keep(exchange)

    def begin(self) -> None:
        """Schedule the flush by which other processes see these counts; see `engine.batched_observer.Batches`."""
        if not self._timed:
            self._flush_soon()

    def _count(self, batch: Sequence[ExchangeRecord]) -> None:
        responses, received, sent = self._responses, 0, 0
        for exchange in batch:
            name = CLASSES[exchange.status // 100]
            responses[name, exchange.source] += 1
            received += exchange.received
            sent += exchange.sent
            upstream_ms = exchange.upstream_ms
            if upstream_ms:
                seconds = upstream_ms / 1000
                tallies = self._tallies[name]
                tallies[0] += seconds
                tallies[bisect_left(UPSTREAM_S, seconds) + 1] += 1
        self._bytes["received",] += received
        self._bytes["sent",] += sent

    def _pass_on(self) -> None:
        self.catch_up()
        for labels, number in self._responses.news():
            self._of_responses.labels(*labels).inc(number)
        for (direction,), number in self._bytes.news():
            (self._received if direction == "received" else self._sent).inc(number)
        for name, observed in self._seconds.items():
            if any(observed.tallies):
                observed.pass_on(self._of_seconds.labels(name))
        self._open.set(len(self._connections))
        for each in self._certificates:
            self._expires.labels(each.side).set(each.expires_s)
        turned_away = self._connections.turned_away
        self._of_turned_away.inc(turned_away - self._turned_away)
        self._turned_away = turned_away

    def _restless(self) -> bool:
        return len(self._connections) > 0
