"""Habits of a serving process: how seldom it collects garbage, and what it does each second."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BEAT_EVERY_S = 1.0  # of a worker, to its supervisor
COLLECTED_AFTER = 20_000  # objects more than before, a few MB: the requests of some thousand connections


async def every_second(call: Callable[[], None]) -> None:
    """Call *call* each second, as long as the event loop turns."""
    while True:
        call()
        await asyncio.sleep(BEAT_EVERY_S)


def spare_collections() -> None:
    """Let the garbage collector run seldom, and skip the objects that exist by now.

    A request leaves no cycles, so it is freed without the collector. With the interpreter's threshold of 700, a few
    dozen requests in flight start the collector again and again, for a twentieth of the cost of a request
    (tests/benchmarks/sidecar.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_AFTER)
