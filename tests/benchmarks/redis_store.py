"""Decisions through Redis: ours, our script through redis-py, `limits` and `throttled-py`, side by side in one run.

    python -m tests.benchmarks.redis_store [--uvloop] [--seconds 0.6] [--rounds 3]

A redis-server is started on one core while all callers share another. A decision is what a response's headers need; of
`limits`, whose hit gives a bool, both the hit alone and the hit with its statistics are timed. Limits are hardly
reached, so that nearly everything is admitted and charged: that is the dearest answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from contextlib import asynccontextmanager
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import limits
import redis.asyncio
import uvloop
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from throttled.asyncio import RedisStore as ThrottledStore
from throttled.asyncio import Throttled, per_sec

from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.redis import script
from ratelimiter.stores.redis.store import RedisStore
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from redis import Redis

PRINCIPALS = 4000
LIMIT, WINDOW_MS = 100, 1000
CALLERS = (1, 8, 64, 256)
CONNECTIONS_MAX = 64  # of the peers' pools
THROTTLED_POOL = {
    "CONNECTION_POOL_CLASS": "redis.asyncio.BlockingConnectionPool",
    "CONNECTION_POOL_KWARGS": {"max_connections": CONNECTIONS_MAX},
}


class Seen(NamedTuple):
    per_s: float  # decisions
    ours_us: float  # CPU of this process per decision
    theirs_us: float  # CPU of the server per decision


RULE = Rule("per-second", Quota(LIMIT, WINDOW_MS))
HITS = [(Hit(b"rl1:{%032x}:default:per-second:0" % principal, RULE.quota, 1, RULE),) for principal in range(PRINCIPALS)]
NAMES = [f"{principal:032x}" for principal in range(PRINCIPALS)]


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Any]:
    store = open_store(url, timeout_ms=5000)
    yield lambda principal: store.charge(HITS[principal])
    await store.close()


@asynccontextmanager
async def plain(url: str) -> AsyncIterator[Any]:
    """One EVALSHA of our script each, the way it is usually done."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS_MAX, protocol=2)
    client = redis.asyncio.Redis(connection_pool=pool)
    await client.script_load(script.TEXT.decode())
    sha = script.SHA.decode()

    async def charge(principal: int) -> object:
        keys, argv = script.arguments([HITS[principal]], b"nonce")
        return script.receipts([HITS[principal]], b"nonce", await client.evalsha(sha, len(keys), *keys, *argv))

    yield charge
    await client.aclose()
    await pool.disconnect()


def of_limits(strategy: type[RateLimiter], *, statistics: bool) -> Any:
    @asynccontextmanager
    async def contestant(url: str) -> AsyncIterator[Any]:
        pool: Any = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS_MAX)
        storage = RedisStorage(f"async+{url}", implementation="redispy", connection_pool=pool)
        limiter = strategy(storage)
        item = limits.RateLimitItemPerSecond(LIMIT)

        async def charge(principal: int) -> object:
            admitted = await limiter.hit(item, NAMES[principal])
            return (admitted, await limiter.get_window_stats(item, NAMES[principal])) if statistics else admitted

        yield charge
        await pool.disconnect()

    return contestant


def of_throttled(using: str) -> Any:
    @asynccontextmanager
    async def contestant(url: str) -> AsyncIterator[Any]:
        store = ThrottledStore(server=url, options=THROTTLED_POOL)
        throttle = Throttled(using=using, quota=per_sec(LIMIT), store=store)
        yield lambda principal: throttle.limit(NAMES[principal])

    return contestant


CONTESTANTS: dict[str, Callable[[str], Any]] = {
    "ratelimiter": ours,
    "redis-py, our script": plain,
    "limits sliding, hit": of_limits(SlidingWindowCounterRateLimiter, statistics=False),
    "limits sliding, hit + stats": of_limits(SlidingWindowCounterRateLimiter, statistics=True),
    "limits moving, hit + stats": of_limits(MovingWindowRateLimiter, statistics=True),
    "throttled-py sliding": of_throttled("sliding_window"),
    "throttled-py gcra": of_throttled("gcra"),
}


async def timed(charge: Callable[[int], Awaitable[object]], client: Redis, callers: int, seconds: float) -> Seen:
    """How *charge* does under so many concurrent callers, after a warm-up."""
    done = 0
    stop = False
    principals = count()

    async def caller() -> None:
        nonlocal done
        while not stop:
            await charge(next(principals) % PRINCIPALS)
            done += 1

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    await asyncio.sleep(seconds / 3)
    server_us, ours_us, begun_s, before = cpu_us(client), time.process_time(), time.perf_counter(), done
    await asyncio.sleep(seconds)
    decisions, took_s = done - before, time.perf_counter() - begun_s
    ours_us, server_us = (time.process_time() - ours_us) * 1e6, cpu_us(client) - server_us
    stop = True
    await asyncio.gather(*tasks)
    return Seen(decisions / took_s, ours_us / decisions, server_us / decisions)


def cpu_us(client: Redis) -> float:
    """CPU that the server's main thread has used."""
    cpu: Any = client.info("cpu")
    return float(cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"]) * 1e6


async def compare(server: RedisServer, callers: int, seconds: float, rounds: int) -> dict[str, Seen]:
    """Every contestant in turn, round after round; medians."""
    seen: dict[str, list[Seen]] = {name: [] for name in CONTESTANTS}
    with server.client() as client:
        for _ in range(rounds):
            for name, contestant in CONTESTANTS.items():
                client.flushall()
                async with contestant(server.url) as charge:
                    seen[name].append(await timed(charge, client, callers, seconds))
    return {name: Seen(*map(median, zip(*values, strict=True))) for name, values in seen.items()}


async def bytes_per_principal(server: RedisServer) -> dict[str, int]:
    """MEMORY USAGE of a principal who has spent 60 a minute, one a second, all his keys together."""
    sizes = {}
    with server.client() as client:
        now_ms = iter(range(int(time.time()) * 1000, 2**60, 1000))
        store = open_store(server.url, timeout_ms=5000)
        assert isinstance(store, RedisStore)
        store._clock = lambda: next(now_ms)
        rule = Rule("per-minute", Quota(60, 60_000))
        for name, charge in (
            ("ratelimiter", lambda: store.charge([Hit(HITS[0][0].key, rule.quota, 1, rule)])),
            ("limits moving", limits_charge(server.url, MovingWindowRateLimiter)),
            ("limits sliding", limits_charge(server.url, SlidingWindowCounterRateLimiter)),
        ):
            client.flushall()
            for _ in range(60):
                await charge()
            sizes[name] = sum(client.memory_usage(key, samples=0) or 0 for key in client.scan_iter())
        await store.close()
    return sizes


def limits_charge(url: str, strategy: type[RateLimiter]) -> Callable[[], Awaitable[object]]:
    limiter = strategy(RedisStorage(f"async+{url}", implementation="redispy"))
    return lambda: limiter.hit(limits.RateLimitItemPerMinute(60), NAMES[0])


def verdict(what: str, ratio: float, target: float, *, at_least: bool) -> None:
    met = ratio >= target if at_least else ratio <= target
    print(f"  {what:66} {ratio:6.2f}  target {'>=' if at_least else '<='} {target}  {'met' if met else 'MISSED'}")


async def run(seconds: float, rounds: int) -> None:
    with RedisServer() as server:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            os.sched_setaffinity(server.pid, {cores[-1]})
            os.sched_setaffinity(0, {cores[0]})
        seen: dict[int, dict[str, Seen]] = {}
        for callers in CALLERS:
            seen[callers] = await compare(server, callers, seconds, rounds)
            print(f"\n{callers} callers{'':18} decisions/s   CPU us here   CPU us Redis   both")
            for name, row in seen[callers].items():
                both = row.ours_us + row.theirs_us
                print(f"  {name:28} {row.per_s:9,.0f} {row.ours_us:12.1f} {row.theirs_us:13.1f} {both:9.1f}")
        sizes = await bytes_per_principal(server)
        print("\nbytes per principal at 60 a minute, full: " + ", ".join(f"{n} {size}" for n, size in sizes.items()))

        crowd, alone = seen[64], seen[1]
        us, hit, stats = crowd["ratelimiter"], crowd["limits sliding, hit"], crowd["limits sliding, hit + stats"]
        print("\nagainst the targets, 64 callers unless said otherwise")
        verdict("decisions/s per core, ratelimiter / limits sliding hit", hit.ours_us / us.ours_us, 6, at_least=True)
        verdict(
            "Redis CPU, ratelimiter / limits sliding hit + stats", us.theirs_us / stats.theirs_us, 0.7, at_least=False
        )
        ratio = alone["redis-py, our script"].per_s / alone["ratelimiter"].per_s
        verdict("latency of a lone caller, ratelimiter / one redis-py EVALSHA", ratio, 1.0, at_least=False)
        verdict(
            "bytes, ratelimiter / limits moving", sizes["ratelimiter"] / sizes["limits moving"], 0.35, at_least=False
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uvloop", action="store_true", help="as under uvicorn")
    parser.add_argument("--seconds", type=float, default=0.6, help="per contestant and round")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    (uvloop.run if chosen.uvloop else asyncio.run)(run(chosen.seconds, chosen.rounds))
