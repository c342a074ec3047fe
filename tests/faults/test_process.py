"""Faults of our own process and of those who call it: rows F4, F7, F22, F31, F34, F42, F51 and F52."""

from __future__ import annotations

import asyncio
import random
import re
import time
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from ratelimiter import clock
from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.core.receipt import LOCAL, STORE
from ratelimiter.core.request import Request
from ratelimiter.core.rule import OnStoreError
from ratelimiter.errors import Kind
from ratelimiter.stores.circuit_breaker import PROBE_MS
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.redis.store import RedisStore
from ratelimiter.stores.redis.url import address_of
from tests.asgi_client import get
from tests.faults.drill import COSTS, DEADLINE_MS, HEALTHY, SLACK_MS, Drill, Service, Stopwatch, _decided, application
from tests.faults.records import RECORDS, Record
from tests.faults.test_server import in_thread
from tests.stores.redis_server import RedisCluster

if TYPE_CHECKING:
    from tests.faults.server import Server


async def test_f04_settings_left_alone(server: Server) -> None:
    """Nobody has to know a setting: a limiter that was given a URL and nothing else meets the deadline."""
    app = RateLimitMiddleware(application, limit="20/minute", store=server.url)
    assert 200 == (await get(app)).status
    server.freeze()
    times_ms: list[tuple[float, float]] = []
    statuses = set()
    for _ in range(30):
        watch = Stopwatch()
        statuses.add((await get(app)).status)
        times_ms.append(watch.read_ms())
    server.thaw()
    await app.limiter.store.close()
    net_ms, raw_ms = max(times_ms)
    RECORDS.append(Record(4, "SIGSTOP; a URL and a limit, nothing else given", net_ms, raw_ms, LOCAL, "local 21", None))
    assert {200, 429} == statuses
    assert net_ms <= DEADLINE_MS + SLACK_MS


async def test_f07_no_request_counts_twice(server: Server) -> None:
    """A request that was not answered in time may count, once; it is never sent again."""
    service = Service(server.url, OnStoreError.LOCAL)
    looking = open_store(server.url, timeout_ms=5000)
    principal, cost = "key-once", COSTS[0]
    hits = service.app.limiter.hits(Request("GET", b"/wide/101", [(b"x-api-key", principal.encode())], None))
    counted, samples = [], []
    for number in range(3):
        while (await service.ask(f"/wide/{cost}", principal, cost)).source != STORE:
            assert number
            await asyncio.sleep(0.01)  # the breaker is closed, so each of these asks the store
        before = (await looking.charge([hit._replace(cost=0) for hit in hits])).tallies[0].used
        with server.client() as client:
            sleeping = in_thread(partial(client.execute_command, "DEBUG", "SLEEP", 0.2))
            await asyncio.sleep(0.05)
            samples.append(await service.ask(f"/wide/{cost}", principal, cost))
            await asyncio.to_thread(sleeping.join)
        after = (await looking.charge([hit._replace(cost=0) for hit in hits])).tallies[0].used
        counted.append((after - before) // cost)
        assert LOCAL == samples[number].source
    await service.store.close()
    await looking.close()
    slowest = max(samples, key=lambda sample: sample.took_ms)
    how = "DEBUG SLEEP 0.2 and one request, 3 times"
    RECORDS.append(Record(7, how, slowest.took_ms, slowest.raw_ms, f"{LOCAL}; counted {counted}", "-", None))
    assert {0, 1} >= set(counted)
    assert not service.mistakes


async def test_f22_queue_that_is_full(server: Server) -> None:
    """More than we let wait is our own load: each rule does what it says then, and the store is not taken for out."""
    place = address_of(urlsplit(server.url))
    async with Drill(server.url, inner=lambda: RedisStore(place, timeout_ms=DEADLINE_MS, queue_max=4)) as drill:
        await drill.settled()
        with drill.fault():
            for wave in range(10):
                asks = [
                    service.ask(f"/wide/{COSTS[0]}", f"key-{drill.token}-{wave}-{number}", COSTS[0])
                    for service in drill.services.values()
                    for number in range(20)
                ]
                await asyncio.gather(*asks)
                assert not any(service.guarded.degraded for service in drill.services.values())
        await drill.recovered()
    drill.check(22, "20 requests at once for a queue of 4, 10 times", crowd=60)
    assert Kind.OVERLOADED in drill.kinds()
    assert {Kind.OVERLOADED, Kind.TIMEOUT} >= set(drill.kinds())  # a machine may be too slow for such a crowd


async def test_f31_callers_who_hang_up(server: Server) -> None:
    """Callers who give up at any moment harm nobody else; what they asked for counts at most once."""
    chance = random.Random(31)  # noqa: S311 - a test, not a secret
    async with Drill(server.url) as drill:
        await drill.settled()

        async def hang_up(service: Service, number: int) -> None:
            asking = asyncio.create_task(service.ask("/wide/103", f"key-{drill.token}-{number % 7}", 103))
            await asyncio.sleep(chance.uniform(0, 0.002))
            asking.cancel()
            await asyncio.wait([asking])

        with drill.fault():
            for _ in range(40):
                await asyncio.gather(
                    *[hang_up(service, number) for service in drill.services.values() for number in range(8)]
                )
        await drill.recovered()
        with server.client() as client:
            ours = [one for one in client.client_list() if one["name"] == "ratelimiter"]
    drill.check(31, "960 callers cancelled within 2 ms", crowd=48)
    assert {} == drill.kinds()
    assert 3 == len(ours)


HOSTILE = ["}evil", "{", "}", "{}", "}{", "a}{b", "{a}{b}", "*", "?", "[a-z]", " ", "a b", "a:b", "'", '"', "\\", "%00"]
HOSTILE += ["\x01", "\x7f", "\u00e9", "\u202e", "\U0001f4a3", "x" * 200, "rl1:{a}:b:c:0", "EVALSHA", "$5\r\nhello"]


async def test_f34_hostile_principals() -> None:
    """No principal, whatever its bytes, can make its request fail, or choose its key."""
    with RedisCluster() as cluster:
        service = Service(cluster.url, OnStoreError.DENY)
        for principal in HOSTILE:
            for _ in range(2):
                answered = await service.ask("/wide/107", principal, 107)
                assert (200, STORE) == (answered.status, answered.source), principal
        await service.store.close()
        keys = []
        for node in cluster.nodes:
            with node.client() as client:
                keys += list(client.scan_iter())
    slowest = max(service.samples, key=lambda sample: sample.took_ms)
    how = f"{len(HOSTILE)} principals with braces, control characters, ..., on a cluster"
    RECORDS.append(Record(34, how, slowest.took_ms, slowest.raw_ms, STORE, "-", None))
    assert not service.mistakes
    keys = [key for key in keys if not key.startswith(b"rl1:{probe:")]  # of the question at start
    assert all(re.fullmatch(rb"rl1:\{[0-9a-f]+\}:deny:wide-107:[01]", key) for key in keys)
    # White space around a value is no part of it, so " " is nobody: the address is charged.
    assert 2 * len(HOSTILE) == len(keys)


@pytest.mark.parametrize("off_s", [300, -300])
async def test_f42_clock_of_the_application(server: Server, monkeypatch: pytest.MonkeyPatch, off_s: int) -> None:
    """What an application's clock shows changes neither decisions nor headers: they are the store's."""
    monkeypatch.setattr(
        clock,
        "time",
        SimpleNamespace(time_ns=lambda: time.time_ns() + off_s * 10**9, monotonic_ns=time.monotonic_ns),
    )
    async with Drill(server.url) as drill:
        with drill.fault():
            await drill.settled()
            service = drill.services[OnStoreError.LOCAL]
            token: list[object] = []
            _decided.set(token)  # type: ignore[arg-type]
            resets = [
                int((await get(service.app, "/wide/101", {"X-API-Key": "steady"})).line("x-ratelimit-reset") or 0)
                for _ in range(10)
            ]
            with server.client() as client:
                now_s = client.time()[0]
        await drill.recovered()
    drill.check(42, f"the clock of this process reads {off_s:+} s")
    assert {} == drill.kinds()
    assert 1 == len(set(resets))
    assert abs(resets[0] - now_s - 60) <= 2


async def test_f51_crowd_at_a_store_that_is_out(server: Server) -> None:
    """However many ask while the store is out, one of them probes it at a time; and when it is back none is lost."""
    async with Drill(server.url, losses=1) as drill:
        await drill.settled()
        with drill.fault():
            server.kill()
            await drill.endured()
            probes = {mode: service.guarded.faults.total() for mode, service in drill.services.items()}
            begun_s = time.monotonic()
            for wave in range(40):
                asks = [
                    service.ask("/wide/101", f"key-{drill.token}-{wave}-{number}", 101)
                    for service in drill.services.values()
                    for number in range(9)
                ]
                await asyncio.gather(*asks)
                await asyncio.sleep(0.01)
            took_ms = (time.monotonic() - begun_s) * 1000
        for mode, service in drill.services.items():
            assert service.guarded.faults.total() - probes[mode] <= took_ms / PROBE_MS + 1
        await asyncio.to_thread(server.start)
        await drill.recovered()
        with server.client() as client:
            connections = client.info("stats")["total_connections_received"]
    drill.check(51, "1,080 requests while the server is away; then it is started", crowd=27)
    assert connections < 25  # some of them of those who look whether it is there


async def test_f51_crowd_that_waits_when_the_server_comes_to(server: Server) -> None:
    """A hundred callers of each limiter who wait for a server that stands still are answered like everybody else."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            server.freeze()
            crowd = [
                asyncio.create_task(service.ask("/wide/101", f"key-{drill.token}-{number}", 101))
                for service in drill.services.values()
                for number in range(100)
            ]
            await asyncio.sleep(0.04)
            server.thaw()
            samples = await asyncio.gather(*crowd)
        await drill.recovered()
    drill.check(51, "300 requests wait; SIGCONT just before their deadline", crowd=300)
    assert len(samples) == 300


async def stand_still(drill: Drill) -> None:
    """Hold up the event loop while questions are under way, and while they are about to leave."""
    for number in range(6):
        asking = [
            asyncio.create_task(service.ask("/wide/103", f"key-{drill.token}-{number}-{other}", 103))
            for service in drill.services.values()
            for other in range(5)
        ]
        for _ in range(number):
            await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - this is the fault
        await asyncio.gather(*asking)


async def test_f52_event_loop_that_stands_still(server: Server) -> None:
    """Our own pause is not the store's: no answer is lost to it, and the breaker stays closed."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            await stand_still(drill)
        await drill.recovered()
    record = drill.check(52, "time.sleep(0.3) in the event loop under way, 6 times", stall_ms=300, crowd=15)
    assert record.raw_ms >= 300
    assert {} == drill.kinds()
    assert all(sample.source in HEALTHY for sample in drill.samples())
