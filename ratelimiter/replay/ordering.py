"""Records in the order of their times: sorted within a bound, and several logs merged into one sequence."""

from __future__ import annotations

from bisect import bisect_right
from heapq import heappop, heappush
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ratelimiter.replay.record import Record

REORDER_MS = 60_000
BUFFER_MAX = 65_536  # records that wait for earlier ones, about 60 MB; beyond it the earliest go on

_start = itemgetter(0)


class Disorder:
    """Counts of the lines that were out of order.

    Attributes:
        sorted: records that came after a later one, and were put in their place.
        late: records that came too late for that; they are judged at the moment that the replay had reached.
    """

    def __init__(self) -> None:
        self.sorted = 0
        self.late = 0


def in_order(
    batches: Iterable[list[Record]], disorder: Disorder, *, bound_ms: int = REORDER_MS, buffer_max: int = BUFFER_MAX
) -> Iterator[list[Record]]:
    """Yield the records of *batches* in the order of their starts, those of one moment in the order of the log.

    A record is held until one that is *bound_ms* later was seen, or *buffer_max* are held.
    """
    held: list[Record] = []
    newest = 0
    left_ms = 0  # start of the last record that went on
    for batch in batches:
        for record in batch:
            start = record[0]
            if start >= newest:
                newest = start
            else:
                disorder.sorted += 1
                if start < left_ms:
                    disorder.late += 1
        held += batch
        held.sort(key=_start)
        wall = newest - bound_ms
        count = bisect_right(held, wall, key=_start)
        count = max(count, len(held) - buffer_max)
        if count:
            left_ms = held[count - 1][0]
            yield held[:count]
            del held[:count]
    if held:
        yield held


class Stream:
    """One log to merge.

    Args:
        first_ms: start of its first record, as far as it is known before it is read; what stands before it in time is
            at most the bound away.
        open: begin to read it.
    """

    def __init__(self, first_ms: int, open: Callable[[], Iterator[list[Record]]]) -> None:  # noqa: A002
        self.first_ms = first_ms
        self.open = open


def merged(streams: Iterable[Stream], *, bound_ms: int = REORDER_MS) -> Iterator[list[Record]]:
    """Yield the records of all *streams* in the order of their starts. A log is opened when its time has come, so a set
    of rotated logs is read one after the other, whatever order it was named in.
    """
    waiting = sorted(streams, key=lambda stream: stream.first_ms)
    waiting.reverse()
    if len(waiting) == 1:
        yield from waiting[0].open()
        return
    heap: list[tuple[int, int, list[Record], Iterator[list[Record]]]] = []
    number = 0

    def push(batches: Iterator[list[Record]], order: int) -> None:
        batch = next(batches, None)
        while batch is not None and not batch:
            batch = next(batches, None)
        if batch:
            heappush(heap, (batch[0][0], order, batch, batches))

    while waiting or heap:
        while waiting and (not heap or waiting[-1].first_ms - bound_ms <= heap[0][0]):
            number += 1
            push(waiting.pop().open(), number)
        if not heap:
            continue
        _, order, batch, batches = heappop(heap)
        # Up to here no other log has anything to say.
        until = min(
            [entry[0] for entry in heap[:1]] + [stream.first_ms - bound_ms for stream in waiting[-1:]], default=None
        )
        if until is None or batch[-1][0] <= until:
            yield batch
            push(batches, order)
            continue
        cut = next((index for index, record in enumerate(batch) if record[0] > until), len(batch)) or 1
        yield batch[:cut]
        rest = batch[cut:]
        if rest:
            heappush(heap, (rest[0][0], order, rest, batches))
        else:
            push(batches, order)
