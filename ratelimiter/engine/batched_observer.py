"""Decisions, and whatever else happens with every request, taken note of some at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.policy import Hit

    Told = tuple[Decision, Sequence[Hit], float]

Each = TypeVar("Each")

# So many are kept until they are counted. Each by itself, among all else that a request is, would cost half as much
# again; and more of them would live long enough for the garbage collector to look at (tests/benchmarks/metrics.py).
BATCH = 64


class Batches(ABC, Generic[Each]):
    """Counts what it is told in batches.

    Whoever reads what it has counted calls `catch_up` before; from any thread.
    """

    def __init__(self) -> None:
        self._told: list[Each] = []
        self._lock = Lock()
        self._sources: list[Batches[Each]] = []

    def keep(self, each: Each) -> None:
        """Keep something until it is counted."""
        told = self._told
        if not told:
            self.begin()
        told.append(each)
        if len(told) >= BATCH:
            self.catch_up()

    def catch_up(self) -> None:
        """Count what is kept, here and where batches come from."""
        for source in self._sources:
            source.catch_up()
        with self._lock:
            batch = self._told[:]
            del self._told[: len(batch)]  # what another thread has appended since stays
            self._count(batch)

    def take_from(self, source: Batches[Each]) -> None:
        """Expect batches of *source*, too, by `take`."""
        self._sources.append(source)

    def take(self, batch: Sequence[Each]) -> None:
        """Count *batch*, which somebody else has kept."""
        with self._lock:
            self._count(batch)

    def begin(self) -> None:
        """Know that something is kept, here or where batches come from, that is not counted yet."""

    @abstractmethod
    def _count(self, batch: Sequence[Each]) -> None:
        """Count *batch*; never called by two threads at a time."""


class Decisions(Batches["Told"]):
    """An observer of decisions that counts them in batches."""

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        """Keep a decision until it is counted; see `ratelimiter.engine.limiter.Observer`."""
        told = self._told  # `keep` written out: a tenth of a microsecond per request
        if not told:
            self.begin()
        told.append((decision, hits, seconds))
        if len(told) >= BATCH:
            self.catch_up()
