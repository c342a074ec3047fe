"""A master that is replaced: rows F37-F39."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.core.receipt import STORE
from tests.faults.drill import Drill
from tests.faults.proxy import Fault, FaultProxy
from tests.faults.server import PASSWORD, Server
from tests.stores.redis.test_sentinel import Watched, replicated
from tests.stores.redis_server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stores.redis_server import RedisServer, SentinelServer


@pytest.fixture
def watched() -> Iterator[Watched]:
    with contextlib.ExitStack() as stack:
        watched = Watched(stack)
        with watched.master.client() as client:
            client.config_set("repl-diskless-sync-delay", 0)
        yield watched


def names(sentinel: SentinelServer, master: RedisServer) -> bool:
    """Whether *sentinel* sends clients to *master*, and that is one."""
    with sentinel.client() as client, master.client() as other:
        place: Any = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        return int(place[1]) == master.port and other.role()[0] == b"master"


async def test_f37_failover(watched: Watched) -> None:
    """While Sentinels agree on a new master decisions come in time; it is used within a second of its appointment."""
    async with Drill(watched.url, losses=1) as drill:
        await drill.settled()
        await drill.until_told(lambda: replicated(watched), "the replica has what the master has")
        with drill.fault():
            watched.master.kill()
            await drill.until_told(
                lambda: sum(names(sentinel, watched.replica) for sentinel in watched.sentinels) >= 2,
                "most Sentinels name the new master",
            )
        await drill.recovered()
    drill.check(
        37, "`kill -9` of a master that 3 Sentinels watch; the fault ends when most of them name its successor", fds=8
    )


async def test_f38_sentinels_that_are_gone(watched: Watched) -> None:
    """Who is connected needs no Sentinel; who starts without them degrades, and comes in when they are back."""
    async with Drill(watched.url) as drill:
        await drill.settled()
        with drill.fault():
            for sentinel in watched.sentinels:
                sentinel.kill()
            await drill.flowed()
        await drill.recovered()
    drill.check(38, "3 Sentinels killed; processes that are connected", fds=8)
    assert {} == drill.kinds()
    async with Drill(watched.url) as drill:
        with drill.fault():
            await drill.endured()
        assert not any(sample.source == STORE for sample in drill.samples())
        for sentinel in watched.sentinels:
            await asyncio.to_thread(sentinel.start)
        await drill.recovered()
    drill.check(38, "processes that start then; the Sentinels are started later", fds=8)


async def test_f39_lost_writes(server: Server) -> None:
    """Writes that a master had confirmed and its successor never heard of give each principal at most one limit."""
    async with FaultProxy(server.port) as line, FaultProxy(server.port) as front:
        with Server(replicaof=f"127.0.0.1 {line.port}", masterauth=PASSWORD) as replica:

            def linked() -> bool:
                with replica.client() as client:
                    return bool(client.info("replication")["master_link_status"] == "up")

            server.set(repl_diskless_sync_delay="0")
            await asyncio.to_thread(wait_until, linked, "the replica is in step")
            line.fault = Fault(swallow=True)
            async with Drill(Server.url_of(front.port), losses=1) as drill:
                await drill.settled()
                with drill.fault():
                    server.kill()
                    front.upstream = ("127.0.0.1", replica.port)
                    with replica.client() as client:
                        assert 0 == client.dbsize()
                        client.replicaof("NO", "ONE")
                await drill.recovered()
            drill.check(39, "the replica is cut off, the master killed, the replica promoted with none of the tallies")
