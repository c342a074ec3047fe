"""Decisions per second on the embedded store: ours, `limits` and `throttled-py`, side by side.

    python -m tests.benchmarks.decisions

One decision is what a response's headers need: the verdict, what remains, when it resets. `limits` answers a hit with a
bool and gives the rest in a second call, so it is timed both ways.
"""

from __future__ import annotations

import asyncio
import time
from itertools import cycle, islice
from typing import TYPE_CHECKING

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from throttled import rate_limiter
from throttled.asyncio import MemoryStore as ThrottledStore
from throttled.asyncio import Throttled

from ratelimiter.core.decision import decide
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import parse_source
from ratelimiter.core.quota import Quota
from ratelimiter.core.request import Request
from ratelimiter.core.rule import Rule
from ratelimiter.engine.limiter import Limiter
from ratelimiter.stores.memory import MemoryStore
from tests.benchmarks.table import compare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DECISIONS = 20_000
PRINCIPALS = 1_000


def ours(limit: int, *, whole: bool) -> Callable[[], Awaitable[None]]:
    """One rule per API key; *whole* also matches the request and reads its principal."""
    rule = Rule("per-minute", Quota(limit, 60_000), principal=(parse_source("header:x-api-key"),))
    limiter = Limiter(Policy((rule,)), MemoryStore())
    requests = [
        Request("GET", b"/", [(b"host", b"x"), (b"accept", b"*/*"), (b"x-api-key", b"key-%d" % n)], "127.0.0.1")
        for n in range(PRINCIPALS)
    ]

    async def run_whole() -> None:
        for request in islice(cycle(requests), DECISIONS):
            await limiter.judge(request)

    async def run() -> None:
        charge = limiter.store.charge
        for hits in islice(cycle([limiter.hits(request) for request in requests]), DECISIONS):
            decide(hits, await charge(hits))

    return run_whole if whole else run


def theirs(strategy: type[RateLimiter], limit: int, *, statistics: bool) -> Callable[[], Awaitable[None]]:
    """A strategy of `limits` on its memory storage."""
    limiter = strategy(MemoryStorage())
    item = limits.parse(f"{limit}/minute")
    keys = [f"key-{n}" for n in range(PRINCIPALS)]

    async def run() -> None:
        for key in islice(cycle(keys), DECISIONS):
            await limiter.hit(item, key)
            if statistics:
                await limiter.get_window_stats(item, key)

    return run


def throttled(limit: int) -> Callable[[], Awaitable[None]]:
    """The sliding window of `throttled-py` on its memory store."""
    store = ThrottledStore(options={"MAX_SIZE": 2 * PRINCIPALS})
    throttle = Throttled(using="sliding_window", quota=rate_limiter.per_min(limit), store=store)
    keys = [f"key-{n}" for n in range(PRINCIPALS)]

    async def run() -> None:
        for key in islice(cycle(keys), DECISIONS):
            await throttle.limit(key)

    return run


def timed(run: Callable[[], Awaitable[None]], loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """*run* as a contestant: thousands of decisions per second."""

    def contestant() -> float:
        before = time.perf_counter()
        loop.run_until_complete(_awaited(run))
        return DECISIONS / (time.perf_counter() - before) / 1000

    return contestant


async def _awaited(run: Callable[[], Awaitable[None]]) -> None:
    await run()


def main() -> None:
    """Print one table for admissions and one for refusals."""
    loop = asyncio.new_event_loop()
    for title, limit in (("All admitted (1,000,000 a minute)", 1_000_000), ("Nearly all refused (1 a minute)", 1)):
        print(f"\n{title}, {PRINCIPALS:,} principals, thousand decisions/s, one core")
        runs = {
            "limits moving: hit + statistics": theirs(MovingWindowRateLimiter, limit, statistics=True),
            "limits moving: hit alone": theirs(MovingWindowRateLimiter, limit, statistics=False),
            "limits sliding: hit + statistics": theirs(SlidingWindowCounterRateLimiter, limit, statistics=True),
            "limits sliding: hit alone": theirs(SlidingWindowCounterRateLimiter, limit, statistics=False),
            "throttled-py sliding": throttled(limit),
            "ours: decision": ours(limit, whole=False),
            "ours: request to decision": ours(limit, whole=True),
        }
        contestants = {name: timed(run, loop) for name, run in runs.items()}
        compare(contestants, unit="k/s", floor="limits moving: hit + statistics", higher_is_better=True)
    loop.close()


if __name__ == "__main__":
    main()
