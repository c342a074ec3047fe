"""Decisions, and other events of every request, counted in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from ratelimiter.engine.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.rule import Hit

    Told = tuple[Decision, Sequence[Hit], float]

Each = TypeVar("Each")

# So many are kept until they are counted. One at a time, in the middle of a request, would cost half as much again; a
# longer batch would live long enough for the garbage collector to look at it (tests/benchmarks/metrics.py).
BATCH = 64


class Batches(ABC, Generic[Each]):
    """Counts events in batches. A reader of the counts calls `catch_up` before, from any thread."""

    def __init__(self) -> None:
        self._told: list[Each] = []
        self._lock = Lock()
        self._sources: list[Batches[Each]] = []

    def keep(self, each: Each) -> None:
        """Keep an event until it is counted."""
        told = self._told
        if not told:
            self.begin()
        told.append(each)
        if len(told) >= BATCH:
            self.catch_up()

    def catch_up(self) -> None:
        """Count the events that are kept, here and in the sources of batches."""
        for source in self._sources:
            source.catch_up()
        with self._lock:
            batch = self._told[:]
            del self._told[: len(batch)]  # an event that another thread has appended since stays
            self._count(batch)

    def take_from(self, source: Batches[Each]) -> None:
        """Expect batches of *source*, by `take`."""
        self._sources.append(source)

    def take(self, batch: Sequence[Each]) -> None:
        """Count *batch*, which a source has kept."""
        with self._lock:
            self._count(batch)

    def begin(self) -> None:
        """Note that an event is kept, here or in a source, and not counted yet."""

    @abstractmethod
    def _count(self, batch: Sequence[Each]) -> None:
        """Count *batch*; never called by two threads at a time."""


class Decisions(Observer, Batches["Told"]):
    """An observer that counts decisions in batches."""

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        """Keep a decision until it is counted; see `ratelimiter.engine.observer.Observer`."""
        told = self._told  # `keep` written out: a tenth of a microsecond per request
        if not told:
            self.begin()
        told.append((decision, hits, seconds))
        if len(told) >= BATCH:
            self.catch_up()

    def in_batches_of(self, source: Decisions) -> Decisions | None:
        """Take the batches of *source*."""
        self.take_from(source)
        return self
