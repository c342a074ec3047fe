"""Memory per principal on embedded stores, at one live entry and at sixty: ours beside `limits`' moving window.

Run by `python -m tests.benchmarks.memory`.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import TYPE_CHECKING

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from ratelimiter.core.policy import Policy, key_of
from ratelimiter.core.principal import Principal
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PRINCIPALS = 5_000


async def ours(entries: int, limit: int) -> object:
    """A store that every principal has asked *entries* times, at different milliseconds."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    rule = Rule("per-minute", Quota(limit, 60_000))
    policy = Policy((rule,))
    for _ in range(entries):
        clock.advance(900)
        for number in range(PRINCIPALS):
            key = key_of(policy, rule, Principal("client", f"{number:032x}"), 0)
            await store.charge([Hit(key, rule.quota, 1, rule)])
    return store


async def theirs(entries: int, limit: int) -> object:
    """The same on `limits`."""
    limiter = MovingWindowRateLimiter(MemoryStorage())
    item = limits.parse(f"{limit}/minute")
    for _ in range(entries):
        for number in range(PRINCIPALS):
            await limiter.hit(item, f"{number:032x}")
    return limiter


def bytes_per_principal(fill: Callable[[int, int], Awaitable[object]], entries: int, limit: int) -> float:
    """What one principal weighs."""

    async def filled() -> tuple[object, int]:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        kept = await fill(entries, limit)
        gc.collect()
        return kept, tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    _, grown = asyncio.run(filled())
    tracemalloc.stop()
    return grown / PRINCIPALS


def main() -> None:
    """Print the table."""
    print(f"{'entries':>8}  {'limit':>9}  {'ours':>7}  {'limits moving':>13}  ratio")
    for entries, limit in ((1, 60), (60, 60), (60, 100_000)):
        mine, other = (bytes_per_principal(fill, entries, limit) for fill in (ours, theirs))
        print(f"{entries:8}  {limit:9,}  {mine:7,.0f}  {other:13,.0f}  {mine / other:.2f}")


if __name__ == "__main__":
    main()
