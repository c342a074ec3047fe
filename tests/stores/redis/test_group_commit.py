from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.quota import Quota
from ratelimiter.core.receipt import Receipt
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.errors import StoreError, StoreOverloaded, StoreTimeout
from ratelimiter.stores.redis.group_commit import Batch, GroupCommit

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

HITS = [Hit(b"key", Quota(1, 1), 1, Rule("rule", Quota(1, 1)))]
TIMEOUT_MS = 60
LATE_MS = 10  # what a loaded machine may add to a timer


class Server:
    """Takes batches and answers them when the test says so."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.batcher = GroupCommit(self.take, lambda: None, timeout_ms=TIMEOUT_MS)

    def take(self) -> None:
        self.batches.append(self.batcher.take())

    def answer(self) -> None:
        for batch in self.batches:
            self.batcher.settle(batch, [Receipt(0, True, ())] * len(batch))
        self.batches.clear()


@pytest.fixture
async def server() -> Server:
    return Server()


async def waited_ms(future: asyncio.Future[Receipt], since_s: float) -> float:
    with pytest.raises(StoreTimeout):
        await future
    return (time.monotonic() - since_s) * 1000


@pytest.fixture
def steady() -> Iterator[None]:
    """An event loop that is not held up by the collector."""
    import gc

    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_each_is_told_at_its_own_deadline(server: Server, steady: None) -> None:
    """Of two batches under way the later one's deadline does not stand in for that of the earlier one's callers."""
    waits = []
    server.batcher._called = True  # the first two are to leave together
    for gap_s in (0.02, 0.025):
        waits.append(asyncio.create_task(waited_ms(server.batcher.join(HITS), time.monotonic())))
        await asyncio.sleep(gap_s)
        if len(waits) == 2:
            break
    server.batcher._go()
    waits.append(asyncio.create_task(waited_ms(server.batcher.join(HITS), time.monotonic())))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [2, 1] == [len(batch) for batch in server.batches]
    for took_ms in await asyncio.gather(*waits):
        assert took_ms < TIMEOUT_MS + LATE_MS


async def test_question_that_could_not_leave_before_a_pause_of_ours(server: Server) -> None:
    """When the event loop stands still before a batch leaves, the store gets time to answer afterwards (F52)."""
    future = server.batcher.join(HITS)
    time.sleep(3 * TIMEOUT_MS / 1000)  # noqa: ASYNC251 - this is the fault
    await asyncio.sleep(0.003)  # so long may an answer take
    server.answer()

    assert (await future).admitted


async def test_pause_of_ours_is_not_the_stores(server: Server) -> None:
    """Whom a pause longer than the deadline leaves without an answer is told that it was our own doing (F52)."""
    future = server.batcher.join(HITS)
    time.sleep(3 * TIMEOUT_MS / 1000)  # noqa: ASYNC251 - this is the fault
    with pytest.raises(StoreError) as caught:
        await future

    assert isinstance(caught.value, StoreOverloaded)
