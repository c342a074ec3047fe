"""What the fault matrix has seen in one run, row by row."""

from __future__ import annotations

from typing import NamedTuple


class Record(NamedTuple):
    """One drill of one row."""

    row: int
    how: str  # the fault, as it was produced
    p100_ms: float  # the slowest decision, without the time that other processes had the processor
    raw_ms: float  # the slowest decision on the wall clock
    outcome: str  # what decisions were made of
    admitted: str  # of the limit of 20, by mode
    recovery_ms: float | None  # None when nothing had to recover


class Omission(NamedTuple):
    """A row that was left out of this run."""

    row: int
    reason: str


RECORDS: list[Record] = []
OMISSIONS: list[Omission] = []
REPEATED: list[str] = []  # tests that a starved machine failed, and that were tried again
