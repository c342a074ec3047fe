"""What really happened, checked afterwards: a record per decision, from however many processes, in the store's time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Record(NamedTuple):
    """One decision."""

    now_ms: int  # the store's clock
    admitted: bool
    cost: int
    process: int


class History:
    """The records of one key, in the order of the store's clock."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records: Sequence[Record] = sorted(records)
        admitted = [record for record in self.records if record.admitted]
        self._instants = [record.now_ms for record in admitted]
        self._units = [0, *accumulate(record.cost for record in admitted)]

    def admitted(self, after_ms: int, until_ms: int) -> int:
        """Units admitted in the half-open (*after_ms*, *until_ms*]."""
        return self._units[bisect_right(self._instants, until_ms)] - self._units[bisect_right(self._instants, after_ms)]

    def fullest(self, window_ms: int) -> int:
        """Units in the fullest of all windows; one that ends at an admission is among the fullest."""
        return max((self.admitted(instant - window_ms, instant) for instant in self._instants), default=0)

    def unfounded(self, limit: int, window_ms: int, resolution_ms: int = 1) -> list[Record]:
        """Refusals at a moment when even the longest memory the quota allows had room for them."""
        longest_ms = window_ms + resolution_ms - 1
        return [
            record
            for record in self.records
            if not record.admitted
            and self._until(record.now_ms)
            - self._units[bisect_right(self._instants, record.now_ms - longest_ms)]
            + record.cost
            <= limit
        ]

    def _until(self, now_ms: int) -> int:
        return self._units[bisect_left(self._instants, now_ms + 1)]
