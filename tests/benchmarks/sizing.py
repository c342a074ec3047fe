"""What one principal weighs in Redis, under limits of several sizes: what `maxmemory` is to be reckoned from.

    python -m tests.benchmarks.sizing

A principal spends a whole limit, evenly over its window, by the clock argument of the script. `value` is what
MEMORY USAGE says of that key. `all in all` is how much the server grows for each of 100,000 such principals, with what
the key, its expiry and the two hash tables take. Beside it `limits`' moving window, which is exact, too, where its
limit is small enough to be filled one hit at a time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import limits
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter

from ratelimiter.core.policy import Policy, key_of
from ratelimiter.core.principal import Principal
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.parsing.units import parse_limit
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.redis.store import RedisStore
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from redis import Redis

LIMITS = ("10/minute", "60/minute", "128/minute", "600/minute", "1000/hour", "10000/day", "1000000/day")
PRINCIPALS = 100_000
HITS_MAX = 2_000  # of a principal: with more each charge has a cost above 1
BEGIN_MS = 1_800_000_000_000


async def spent(server: RedisServer, limit: str) -> tuple[bytes, bytes]:
    """The key of a principal who has spent *limit*, and what it holds."""
    quota = parse_limit(limit)
    rule = Rule("per-principal", quota)
    key = key_of(Policy((rule,)), rule, Principal("client", "f" * 32), 0)
    hits = min(quota.limit, HITS_MAX)
    cost = quota.limit // hits
    now_ms = BEGIN_MS
    store = open_store(server.url, timeout_ms=5000)
    assert isinstance(store, RedisStore)
    store._clock = lambda: now_ms
    for number in range(hits):
        now_ms = BEGIN_MS + number * quota.window_ms // hits
        await store.charge([Hit(key, quota, cost, rule)])
    await store.close()
    with server.client() as client:
        value: Any = client.get(key)
    return key, value


def grown(client: Redis, key: bytes, value: bytes) -> float:
    """Bytes by which the server grows for each principal that has such a value."""
    client.flushall()
    before: Any = client.info("memory")
    with client.pipeline(transaction=False) as pipe:
        for number in range(PRINCIPALS):
            pipe.set(key.replace(b"f" * 32, b"%032x" % number), value, px=3_600_000)
            if number % 1000 == 0:
                pipe.execute()
        pipe.execute()
    after: Any = client.info("memory")
    assert PRINCIPALS == client.dbsize()
    return (
        int(after["used_memory_dataset"])
        + int(after["used_memory_overhead"])
        - int(before["used_memory_dataset"])
        - int(before["used_memory_overhead"])
    ) / PRINCIPALS


async def theirs(server: RedisServer, limit: str) -> int | None:
    """MEMORY USAGE of `limits`' moving window at that limit."""
    item = limits.parse(limit)
    if item.amount > HITS_MAX:
        return None
    limiter = MovingWindowRateLimiter(RedisStorage(f"async+{server.url}", implementation="redispy"))
    with server.client() as client:
        client.flushall()
        for _ in range(item.amount):
            await limiter.hit(item, "f" * 32)
        return sum(client.memory_usage(key, samples=0) or 0 for key in client.scan_iter())


async def run() -> None:
    with RedisServer() as server, server.client() as client:
        version: Any = client.info("server")
        print(f"redis-server {version['redis_version']}, bytes per principal")
        print(f"{'limit, all of it spent':24} {'value':>8} {'all in all':>11} {'limits moving':>14}")
        for limit in LIMITS:
            client.flushall()
            key, value = await spent(server, limit)
            usage: Any = client.memory_usage(key, samples=0)
            whole = grown(client, key, value)
            other = await theirs(server, limit)
            print(f"{limit:24} {usage:8} {whole:11.0f} {'-' if other is None else other:>14}")


if __name__ == "__main__":
    asyncio.run(run())
