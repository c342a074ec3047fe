"""Decisions are counted in batches, each once, whoever asks."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from ratelimiter.core.decision import unmatched
from ratelimiter.engine.batched_observer import BATCH, Decisions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.engine.batched_observer import Told

DECISION = unmatched(0)


class Counting(Decisions):
    """Counts by seconds, which tell decisions apart here."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[float] = Counter()
        self.begun = 0

    def tell(self, *seconds: float) -> None:
        for each in seconds:
            self.decided(DECISION, (), each)

    def begin(self) -> None:
        self.begun += 1

    def _count(self, batch: Sequence[Told]) -> None:
        for _, _, seconds in batch:
            before = self.counted[seconds]
            self.counted[seconds] = before + 1


def test_a_full_batch_is_counted() -> None:
    """No more than a batch is ever kept, and it is known from its first decision on that something is."""
    counting = Counting()
    counting.tell(*range(BATCH - 1))
    before = counting.counted.total(), counting.begun
    counting.tell(BATCH)

    assert (0, 1) == before
    assert (BATCH, 1) == (counting.counted.total(), counting.begun)

    counting.tell(1)
    assert 2 == counting.begun


def test_who_reads_catches_up() -> None:
    """What is kept is counted then, and only once; also what is kept where batches come from."""
    counting, passing = Counting(), Passing()
    passing.to = counting
    counting.take_from(passing)
    counting.tell(1, 2)
    passing.decided(DECISION, (), 3)
    counting.catch_up()
    counting.catch_up()

    assert Counter({1: 1, 2: 1, 3: 1}) == counting.counted


class Passing(Decisions):
    """Counts nothing by itself."""

    to: Counting

    def _count(self, batch: Sequence[Told]) -> None:
        self.to.take(batch)


def test_a_scrape_in_another_thread_loses_nothing() -> None:
    """Two threads read while a third decides, and one is told in two ways: every decision is counted once."""
    counting, passing, over = Counting(), Passing(), threading.Event()
    passing.to = counting
    counting.take_from(passing)

    def scrape() -> None:
        while not over.is_set():
            counting.catch_up()

    scraping = [threading.Thread(target=scrape) for _ in range(2)]
    for thread in scraping:
        thread.start()
    for number in range(30_000):
        (counting if number % 2 else passing).decided(DECISION, (), number % 7)
    over.set()
    for thread in scraping:
        thread.join()
    counting.catch_up()

    assert Counter(number % 7 for number in range(30_000)) == counting.counted
