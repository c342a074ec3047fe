"""Prometheus metrics that cost next to nothing to note: the one module that knows the client library.

A request costs a handful of additions to plain numbers. They reach the library's metrics at a scrape; in multi-process
mode, where another process may be scraped, within `FLUSH_S`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from abc import abstractmethod
from collections import defaultdict
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    multiprocess,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ratelimiter.metrics import counting_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.metrics import MetricWrapperBase
    from prometheus_client.metrics_core import Metric

log = logging.getLogger(__name__)

PREFIX = "ratelimiter_"
FLUSH_S = 1.0
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # the library's own word for its multi-process mode

if MULTIPROCESS_DIR in os.environ:
    counting_files.install()

__all__ = [
    "CollectorRegistry",
    "Counter",
    "Gauge",
    "Instruments",
    "ManyHistogram",
    "Noted",
    "Observed",
    "forget_process",
    "process_registry",
]


class ManyHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, tallies: Sequence[float]) -> None:
        """Add many observations: first their sum, then their number in each bucket."""
        self._sum.inc(tallies[0])
        for bucket, number in zip(self._buckets, tallies[1:], strict=True):
            if number:
                bucket.inc(number)


class Noted(defaultdict[Any, int]):
    """Counts so far, and how much of them was passed on.

    They only grow, so that a scrape from another thread loses nothing. Not a `collections.Counter`, which is twice as
    slow to add to.
    """

    def __init__(self) -> None:
        super().__init__(int)
        self._passed_on: dict[Any, int] = {}

    def news(self) -> Iterator[tuple[Any, int]]:
        """Yield the counts that have grown since the last call, and by how much."""
        for key, number in list(self.items()):
            more = number - self._passed_on.get(key, 0)
            if more:
                self._passed_on[key] = number
                yield key, more


class Observed:
    """Observations of a histogram: in *tallies* their sum, then their number in each bucket."""

    __slots__ = ("_passed_on", "tallies")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.tallies: list[float] = [0] * (len(bounds) + 2)  # plain, as the interpreter is quickest with that
        self._passed_on = self.tallies[:]

    def pass_on(self, histogram: ManyHistogram) -> None:
        """Add to *histogram* the observations since the last call."""
        now = self.tallies[:]
        histogram.add([new - old for new, old in zip(now, self._passed_on, strict=True)])
        self._passed_on = now


class Instruments(Collector):
    """Metrics in one registry, and the plain numbers that they are updated from.

    With `PROMETHEUS_MULTIPROC_DIR` set before Python starts, several processes are one scrape that any of them answers.

    Args:
        registry: exposes the metrics; that of the process by default.

    Attributes:
        shared: True if several processes are one scrape. Then a series that was exposed cannot be removed.

    Raises:
        ValueError: the registry has them already.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = REGISTRY if registry is None else registry
        self._directory = os.environ.get(MULTIPROCESS_DIR)
        self._unshared = False  # True once the other processes' counts could not be read
        self.shared = self._directory is not None
        self._timed = not self.shared  # True if a flush is due; one process has until the scrape
        self._flushing = Lock()
        self._metrics: list[MetricWrapperBase] = []
        self._make()
        self._registry.register(self)
        if self.shared:
            atexit.register(self.flush)

    @abstractmethod
    def _make(self) -> None:
        """Make the metrics."""

    @abstractmethod
    def _pass_on(self) -> None:
        """Update the metrics from the plain numbers."""

    def _restless(self) -> bool:
        """Return True if metrics may change without a request."""
        return False

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        made = Counter(PREFIX + name, text, labels, registry=None)
        self._metrics.append(made)
        return made

    def _gauge(
        self, name: str, text: str, *labels: str, of_several: Literal["livesum", "livemin", "mostrecent"] = "mostrecent"
    ) -> Gauge:
        made = Gauge(PREFIX + name, text, labels, registry=None, multiprocess_mode=of_several)
        self._metrics.append(made)
        return made

    def _histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> ManyHistogram:
        made = ManyHistogram(PREFIX + name, text, labels, registry=None, buckets=bounds)
        self._metrics.append(made)
        return made

    def flush(self) -> None:
        """Update the metrics now."""
        with self._flushing:
            self._pass_on()

    def _flush_soon(self) -> None:
        """Schedule an update, because another process may be scraped for this one."""
        self._timed = True
        asyncio.get_running_loop().call_later(FLUSH_S, self._flush_on_time)

    def _flush_on_time(self) -> None:
        self.flush()
        self._timed = False
        if self._restless():
            self._flush_soon()

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without their values, for the registry."""
        return [described for metric in self._metrics for described in metric.describe()]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their values."""
        self.flush()
        for metric in self._metrics:
            for collected in metric.collect():
                # The times of creation would double the number of series, and no dashboard or alert reads them.
                collected.samples = [sample for sample in collected.samples if not sample.name.endswith("_created")]
                yield collected

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return the whole registry, not only these metrics, as the Accept header asks for it: body and Content-Type.

        Several processes are one scrape. If the directory in which they count together is gone, each answers for
        itself alone.
        """
        self.flush()
        encode, content_type = choose_encoder(accept)
        if self._directory is not None:
            together = CollectorRegistry(support_collectors_without_names=True)
            try:
                multiprocess.MultiProcessCollector(together, path=self._directory)  # type: ignore[no-untyped-call]
                return encode(together), content_type
            except (OSError, ValueError, RuntimeError) as fault:
                if not self._unshared:
                    self._unshared = True
                    log.error("the counts of other processes cannot be read (%s): a scrape has one process's", fault)
        return encode(self._registry), content_type


def process_registry() -> CollectorRegistry:
    """Return a new registry with the metrics of the process, its interpreter and its garbage collector."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def forget_process(pid: int) -> None:
    """Leave the gauges of a worker that has ended out of scrapes. Its counters stay, as its requests were served."""
    try:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
    except OSError as fault:
        log.error("the gauges of process %d cannot be removed (%s): scrapes still have them", pid, fault.strerror)
