"""What Prometheus is told of a proxy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from ratelimiter.metrics.proxy_metrics import CLASSES, ProxyMetrics
from ratelimiter.proxy.exchange_record import JUDGE, SOURCES, UPSTREAM, ExchangeRecord
from tests.metrics.test_limiter_metrics import documented, exposed, samples

if TYPE_CHECKING:
    from ratelimiter.proxy.interfaces import ExchangeObserver


class Connections(list[int]):
    turned_away = 0


class Proxy:
    def __init__(self) -> None:
        self.connections = Connections()
        self.registry = CollectorRegistry()
        self.metrics = ProxyMetrics(self.connections, self.registry)

    def exchange(self, status: int, source: str = UPSTREAM, upstream_ms: float = 0.0, path: str = "/") -> None:
        observer: ExchangeObserver = self.metrics
        observer.exchanged(ExchangeRecord("GET", path.encode(), status, source, 10, 100, 5.0, upstream_ms, "id"))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"ratelimiter_proxy_{name}", labels)


def test_every_exchange_is_counted_by_class_and_by_who_answered() -> None:
    """Refusals of the limiter, errors of the proxy and answers of the upstream are told apart, the unanswered too."""
    proxy = Proxy()
    for status, source in (
        (200, "upstream"),
        (204, "upstream"),
        (429, "judge"),
        (502, "proxy"),
        (0, "proxy"),
        (101, "upstream"),
    ):
        proxy.exchange(status, source)

    assert (2, 1) == (
        proxy.value("responses_total", status="2xx", source="upstream"),
        proxy.value("responses_total", status="4xx", source="judge"),
    )
    assert (1, 1, 1) == (
        proxy.value("responses_total", status="5xx", source="proxy"),
        proxy.value("responses_total", status="none", source="proxy"),
        proxy.value("responses_total", status="1xx", source="upstream"),
    )
    assert (60, 600) == (proxy.value("received_bytes_total"), proxy.value("sent_bytes_total"))


def test_upstream_seconds_are_of_those_it_was_asked() -> None:
    """What the limiter refused never waited for the upstream, and does not make it look quick."""
    proxy = Proxy()
    proxy.exchange(200, upstream_ms=2.0)
    proxy.exchange(503, upstream_ms=700.0)
    proxy.exchange(429, JUDGE)

    assert (1, 1) == (
        proxy.value("upstream_seconds_bucket", status="2xx", le="0.0025"),
        proxy.value("upstream_seconds_count", status="5xx"),
    )
    assert pytest.approx(0.7) == proxy.value("upstream_seconds_sum", status="5xx")
    assert proxy.value("upstream_seconds_count", status="4xx") is None


def test_connections_are_those_of_the_moment() -> None:
    """Open ones are a gauge, those that found no room a counter that never falls."""
    proxy = Proxy()
    proxy.connections += [1, 2, 3]
    proxy.connections.turned_away = 4
    before = proxy.value("connections"), proxy.value("connections_turned_away_total")
    proxy.connections.pop()
    proxy.connections.turned_away = 5

    assert (3, 4) == before
    assert (2, 5) == (proxy.value("connections"), proxy.value("connections_turned_away_total"))


def test_paths_make_no_series() -> None:
    """However many paths and statuses there are, the number of series is that of the classes."""
    proxy = Proxy()
    for status in range(100, 600):
        for source in SOURCES:
            proxy.exchange(status, source, upstream_ms=1.0)
    before = set(samples(proxy.metrics.exposition()[0]))
    for number in range(10_000):
        proxy.exchange(100 + number % 500, upstream_ms=1.0, path=f"/secret/{number}")

    assert before == set(samples(proxy.metrics.exposition()[0]))
    assert b"secret" not in proxy.metrics.exposition()[0]


def test_every_status_has_a_class() -> None:
    """From none at all to the last hundred."""
    assert len(CLASSES) == 600 // 100


def test_documented_table_is_the_exposition() -> None:
    """The reference names every metric of the proxy, its type and its labels; and no other."""
    assert exposed(Proxy().metrics) == documented("proxy_")


def test_promtool_finds_nothing_to_say() -> None:
    """Names, units, types and help follow the conventions of Prometheus."""
    assert shutil.which("promtool"), "promtool is missing: apt-get install prometheus"
    proxy = Proxy()
    proxy.exchange(200, upstream_ms=1.0)
    checked = subprocess.run(
        ["promtool", "check", "metrics"],  # noqa: S607 - wherever it is installed
        input=proxy.metrics.exposition()[0],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parent,
    )

    assert (0, b"", b"") == (checked.returncode, checked.stdout, checked.stderr)
