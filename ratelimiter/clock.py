"""The one place that reads the time of day. Everything that needs it takes a `Clock`, so tests hand in their own."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]  # Unix time in milliseconds
Stopwatch = Callable[[], float]  # seconds since some moment, for what takes microseconds: only differences count

stopwatch_s: Stopwatch = time.perf_counter


def unix_ms() -> int:
    """Now, as Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Milliseconds since some moment, for durations: never set, never stepped."""
    return time.monotonic_ns() // 1_000_000


def boottime_ms() -> int:
    """Milliseconds since some moment, that go on while the machine sleeps (Linux `CLOCK_BOOTTIME`)."""
    return time.clock_gettime_ns(_BOOTTIME) // 1_000_000


_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
