"""Goal: never more requests are in flight than the policy says, as the service itself counts them, and no slot is lost,
however a request ends. Method: a real server, a real Redis, clients that leave in the middle; middleware and sidecar.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import EVERYONE
from ratelimiter.core.quota import Slots
from ratelimiter.core.rule import Rule
from tests.engine.settling.service import ALL, Service
from tests.engine.settling.ways import MIDDLEWARE, SIDECAR, WAYS, ask, connected, limited, raw
from tests.proxy.wire import until

if TYPE_CHECKING:
    from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

LONG_MS = 3_600_000  # a lease that lapses by itself only long after the test


def policy(redis: RedisServer, slots: int, lease_ttl_ms: int = LONG_MS) -> Policy:
    rule = Rule("in-flight", Slots(slots, lease_ttl_ms=lease_ttl_ms), principal=(EVERYONE,))
    return Policy((rule,), store=redis.url, dialect="tracefinance-v1", decision_timeout_ms=1000)


async def admitted(port: int, target: str = "/early") -> bool:
    return 200 == (await ask(port, target)).status


async def frees(port: int, within_s: float = 3) -> float:
    """How long it takes until a slot is free."""
    begun_s = time.monotonic()
    while not await admitted(port):
        assert time.monotonic() < begun_s + within_s, "a slot is not given back"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun_s


@pytest.mark.parametrize("way", WAYS)
async def test_never_more_than_the_limit_are_in_flight(way: str, redis_server: RedisServer) -> None:
    """Forty clients at once, and the slots are used all the time: exactly so many as there are."""
    service, got = Service(), [0] * 40

    async def client(port: int, number: int) -> None:
        while got[number] < 5:
            answer = await ask(port, f"/stream?parts={number % 4}&ms=3")
            if answer.status == 200:
                assert b"part" * (number % 4) == answer.body
                got[number] += 1
            else:
                assert (429, "1") == (answer.status, answer.value("retry-after"))
                await asyncio.sleep(0.002)

    async with limited(way, service, policy(redis_server, 5)) as port:
        await asyncio.gather(*(client(port, number) for number in range(40)))
        await until(lambda: service.now[ALL] == 0, "all are done")

        assert (5, 200) == (service.most[ALL], service.done[ALL])
        assert await admitted(port)


async def test_not_even_while_clients_leave(redis_server: RedisServer) -> None:
    """The middleware holds a slot until the service is done with the request, whatever the client does."""
    service = Service()

    async def client(port: int, number: int) -> None:
        for turn in range(10):
            async with connected(port) as one:
                one.send(raw(f"/{('stream', 'endless', 'silent')[(number + turn) % 3]}?parts=20&ms=2"))
                await asyncio.sleep(0.003 * (1 + (number * turn) % 7))

    async with limited(MIDDLEWARE, service, policy(redis_server, 5)) as port:
        await asyncio.gather(*(client(port, number) for number in range(30)))
        await until(lambda: service.now[ALL] == 0, "all have noticed")
        assert 5 == service.most[ALL]
        await until_all_are_free(port, service, 5)


async def until_all_are_free(port: int, service: Service, slots: int) -> None:
    """Hold all slots at once, which is possible only if none is lost."""
    service.most.clear()
    end_s = time.monotonic() + 5
    while service.most.get("stream", 0) < slots:
        assert time.monotonic() < end_s, "a slot was lost"
        await asyncio.gather(*(ask(port, "/stream?parts=1&ms=50") for _ in range(slots)))
    assert slots == service.most["stream"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", ["/endless", "/silent", "/stream?parts=10000&ms=5"])
async def test_who_leaves_gives_his_slot_back(way: str, target: str, redis_server: RedisServer) -> None:
    """In the middle of an answer or before it; at once, not when the lease would lapse."""
    service = Service()
    async with limited(way, service, policy(redis_server, 1)) as port:
        async with connected(port) as client:
            client.send(raw(target))
            await until(lambda: service.now.get(ALL), "it is under way")
            assert not await admitted(port)
        if way == SIDECAR or "stream" not in target:  # this one would not notice for a minute, and holds on to its slot
            await frees(port)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", ["/raises", "/breaks", "/early"])
async def test_a_slot_comes_back_from_a_mistake(way: str, target: str, redis_server: RedisServer) -> None:
    """Whatever the service does, the next one is let in."""
    service = Service()
    async with limited(way, service, policy(redis_server, 1)) as port:
        for _ in range(5):
            async with connected(port) as client:
                answer = await client.exchange(raw(target, "POST", b"x" * 100_000))
                assert (500 if target == "/raises" else 200) == answer.status
            await frees(port)

        assert 5 <= service.done[target[1:]]


@pytest.mark.parametrize("way", WAYS)
async def test_a_websocket_holds_one_while_it_is_open(way: str, redis_server: RedisServer) -> None:
    """And gives it back when it is closed, by a goodbye or without one."""
    service = Service()
    async with limited(way, service, policy(redis_server, 1)) as port:
        url = f"ws://127.0.0.1:{port}/socket"
        for politely in (True, False):
            connection = await websockets.connect(url)
            for word in ("one", "two"):
                await connection.send(word)
                assert word == await connection.recv()
                assert not await admitted(port)
            with pytest.raises(InvalidStatus):
                await websockets.connect(url)
            if politely:
                await connection.close()
            else:
                connection.transport.abort()
                with pytest.raises(ConnectionClosed):
                    await connection.recv()
            await frees(port)

        assert 1 == service.most["socket"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_long_answer_keeps_its_slot(way: str, redis_server: RedisServer) -> None:
    """It is renewed for as long as it takes, and given back when it is over."""
    service = Service()
    async with limited(way, service, policy(redis_server, 1, lease_ttl_ms=1000)) as port:
        async with connected(port) as client:
            client.send(raw("/stream?parts=250&ms=10"))
            await until(lambda: service.now.get("stream"), "it is under way")
            begun_s = time.monotonic()
            refused = 0
            while time.monotonic() < begun_s + 2.3:
                refused += not await admitted(port)
                await asyncio.sleep(0.02)
            assert 0 == service.done.get("early", 0)
            assert refused > 20
            assert b"part" * 250 == (await client.response()).body
        assert await frees(port) < 0.5


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_on_one_connection_needs_no_second_try(way: str, redis_server: RedisServer) -> None:
    """What an answer gives back is there for who comes after it, even if there was only this one slot."""
    service = Service()
    async with limited(way, service, policy(redis_server, 1)) as port, connected(port) as client:
        statuses = [(await client.exchange(raw("/work"))).status for _ in range(200)]

    assert [200] * 200 == statuses


@pytest.mark.parametrize("way", WAYS)
async def test_a_goodbye_leaves_nothing_behind(way: str, redis_server: RedisServer) -> None:
    """What was settled last is told before the process ends: the next one finds every slot free, at once."""
    for _ in range(5):
        async with limited(way, Service(), policy(redis_server, 1)) as port:
            assert await admitted(port)


@pytest.mark.parametrize("way", WAYS)
async def test_kill_9_costs_no_more_than_the_lease(way: str, redis_server: RedisServer) -> None:
    """A worker that dies in the middle of its requests takes their slots along until their leases lapse."""
    lease_ttl_ms = 1500
    service = Service()
    worker = Worker(way, redis_server.url, lease_ttl_ms)
    try:
        async with (
            limited(way, service, policy(redis_server, 2, lease_ttl_ms)) as port,
            connected(worker.port) as one,
            connected(worker.port) as other,
        ):
            for client in (one, other):
                client.send(raw("/endless"))
                await client.reader.readuntil(b"data: x")
            await asyncio.sleep(2)  # longer than a lease holds unless it is renewed
            assert not await admitted(port)
            worker.kill()
            killed_s = time.monotonic()
            assert not await admitted(port)
            await frees(port)
            assert time.monotonic() - killed_s < lease_ttl_ms / 1000 + 1  # a loaded machine notices a little later
    finally:
        worker.kill()


class Worker:
    """A limiter in a process of its own."""

    def __init__(self, way: str, *words: Any) -> None:
        command = [sys.executable, "-m", "tests.engine.settling.worker", way, *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        with self.process.stdout as told:
            self.port = int(told.readline())

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.mark.parametrize("way", WAYS)
async def test_a_store_that_forgets_is_told_again(way: str, redis_server: RedisServer) -> None:
    """After a failover to a replica that knew nothing, what is open holds its slot again from its next renewal on."""
    service = Service()
    async with limited(way, service, policy(redis_server, 1, lease_ttl_ms=3000)) as port, connected(port) as client:
        client.send(raw("/endless"))
        await client.reader.readuntil(b"data: x")
        with redis_server.client() as operator:
            operator.flushall()
            await until(lambda: operator.dbsize() == 1, "the lease is told again")
        refused = [not await admitted(port) for _ in range(5)]

    assert [True] * 5 == refused
