"""Faults of the server itself: rows F10-F21, F24, F25, F43-F46 and F48-F50."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
import redis

from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import Quota
from ratelimiter.core.receipt import STORE
from ratelimiter.core.request import Request
from ratelimiter.core.rule import LONG_WINDOWS, OnStoreError, Rule
from ratelimiter.engine.limiter import Limiter
from ratelimiter.errors import Kind
from ratelimiter.stores.factory import open_store
from tests.asgi_client import http_scope
from tests.faults.drill import COSTS, HEALTHY, WINDOW_MS, Drill
from tests.faults.server import PASSWORD, Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


GONE = -2  # what PTTL says of a key that is not there any more


def in_thread(task: Callable[[], object]) -> threading.Thread:
    """*task* under way, whatever it raises: it waits for a server that is about to be hurt."""

    def run() -> None:
        with contextlib.suppress(redis.exceptions.RedisError):
            task()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def keys_end(server: Server, window_ms: int = WINDOW_MS) -> None:
    """Every key of ours has an end, and none lives longer than it is of use (invariant 6)."""
    with server.client() as client:
        ends = {key: client.pttl(key) for key in client.scan_iter("rl1:*")}
    for key, end_ms in ends.items():
        longest_ms = window_ms * (LONG_WINDOWS if key.endswith(b":1") else 1) * 129 // 128
        assert end_ms == GONE or 0 < end_ms <= longest_ms, (key, end_ms)


async def test_f10_loading(server: Server) -> None:
    """A server that reads its data from disk is out for as long as that takes, and no longer."""
    with server.client() as client:
        client.execute_command("DEBUG", "POPULATE", 1500)
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            server.set(key_load_delay="500", loading_process_events_interval_bytes="1024")
            with server.client() as client:
                reload = in_thread(lambda: client.execute_command("DEBUG", "RELOAD"))
                await asyncio.to_thread(reload.join)
        await drill.recovered()
    drill.check(10, "DEBUG RELOAD of 1,500 keys with key-load-delay")
    assert Kind.LOADING in drill.kinds()
    keys_end(server)


async def test_f11_busy_script(server: Server) -> None:
    """Somebody's endless script is an outage, and not ours to kill."""
    server.set(busy_reply_threshold="50")
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault(), server.client() as looping, server.client() as client:
            loop = in_thread(lambda: looping.eval("while true do end", 0))
            await drill.endured()
            assert loop.is_alive()
            client.script_kill()
            await asyncio.to_thread(loop.join)  # a client that is closed under way would send it again
        await drill.recovered()
    drill.check(11, "EVAL of an endless loop, busy-reply-threshold 50")
    assert Kind.BUSY in drill.kinds()


async def test_f12_out_of_memory(server: Server) -> None:
    """A server that may not grow refuses writes; nothing is charged by halves meanwhile."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            server.set(maxmemory="1", maxmemory_policy="noeviction")
            await drill.endured()
            server.set(maxmemory="0")
        await drill.recovered()
    drill.check(12, "maxmemory 1, noeviction")
    assert {Kind.OUT_OF_MEMORY} == set(drill.kinds())


async def test_f13_evicted_keys(server: Server) -> None:
    """An eviction is a reset: it gives a limit away, and nothing else happens; no error of the store tells of it."""
    async with Drill(server.url, losses=3) as drill:
        await drill.settled()
        with drill.fault(), server.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            for number in range(3):
                client.config_resetstat()
                client.config_set("maxmemory", "1")
                await drill.until(lambda: client.info("stats")["evicted_keys"], f"keys are evicted, {number}")
                client.config_set("maxmemory", "0")
                await drill.flowed(0.1)
        await drill.recovered()
    drill.check(13, "maxmemory below what is used, with an eviction policy for all keys, 3 times")


@pytest.mark.parametrize("killed", [False, True])
async def test_f14_demoted_master(server: Server, killed: bool) -> None:
    """A master that has become a replica is not written to; it is used again when it is a master again."""
    with Server(masterauth=PASSWORD) as other:
        server.set(masterauth=PASSWORD)
        async with Drill(server.url, losses=1) as drill:
            await drill.settled()
            with server.client() as client:
                with drill.fault():
                    client.replicaof("127.0.0.1", str(other.port))
                    if killed:
                        client.client_kill_filter(_type="normal", skipme=True)
                    await drill.endured()
                client.replicaof("NO", "ONE")
                await drill.recovered()
        drill.check(14, "REPLICAOF another server" + (", connections killed" if killed else ""))
    assert Kind.READ_ONLY in drill.kinds()


async def test_f15_replica_without_master(server: Server) -> None:
    """A replica that has lost its master and knows it is as good as none."""
    server.set(replica_serve_stale_data="no")
    async with Drill(server.url, losses=1) as drill:
        await drill.settled()
        with server.client() as client:
            with drill.fault():
                client.replicaof("127.0.0.1", "1")
                await drill.endured()
            client.replicaof("NO", "ONE")
            await drill.recovered()
    drill.check(15, "REPLICAOF a closed port, replica-serve-stale-data no")
    assert {Kind.NO_MASTER, Kind.READ_ONLY} & set(drill.kinds())


async def test_f16_too_few_replicas(server: Server) -> None:
    """A server that must not write without replicas is out."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            server.set(min_replicas_to_write="1")
            await drill.endured()
            server.set(min_replicas_to_write="0")
        await drill.recovered()
    drill.check(16, "min-replicas-to-write 1")
    assert {Kind.NO_REPLICAS} == set(drill.kinds())


async def test_f17_server_that_cannot_save(tmp_path: Path) -> None:
    """A server that may not take what it cannot save is out."""
    directory = tmp_path / "data"
    directory.mkdir()
    with Server(dir=str(directory), save="3600 1") as server, server.client() as client:
        async with Drill(server.url) as drill:
            await drill.settled()
            with drill.fault():
                directory.rmdir()
                client.bgsave()
                await drill.endured()
                client.config_set("stop-writes-on-bgsave-error", "no")
            await drill.recovered()
        drill.check(17, "BGSAVE into a directory that is gone")
        assert {Kind.NOT_PERSISTED} == set(drill.kinds())


async def test_f18_forgotten_script(server: Server) -> None:
    """A server that has forgotten the script gets it again within the same decision."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault(), server.client() as client:
            for _ in range(10):
                client.script_flush()
                await drill.flowed(0.05)
        await drill.recovered()
    drill.check(18, "SCRIPT FLUSH, 10 times")
    assert {} == drill.kinds()


async def test_f19_password_changed(server: Server) -> None:
    """A new password cuts off nobody who is in; who comes in later is told apart from an outage, and gets in again
    with the right one.
    """
    async with Drill(server.url) as drill:
        await drill.settled()
        with server.client() as client:
            client.config_set("requirepass", "another")
            await drill.flowed(0.2)
            assert {} == drill.kinds()
            with drill.fault():
                client.client_kill_filter(_type="normal", skipme=True)
                await drill.endured()
                client.config_set("requirepass", PASSWORD)
            await drill.recovered()
    drill.check(19, "CONFIG SET requirepass, connections killed")
    assert {Kind.AUTHENTICATION} == set(drill.kinds())


async def test_f19_password_file_rotated(server: Server, tmp_path: Path) -> None:
    """A password that is read from a file can be changed on both sides without a restart."""
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    async with Drill(f"redis://127.0.0.1:{server.port}/0?password_file={file}") as drill:
        await drill.settled()
        with server.client() as client:
            with drill.fault():
                client.config_set("requirepass", "another")
                client.client_kill_filter(_type="normal", skipme=True)
                await drill.endured()
                file.write_text("another\n")
            await drill.recovered()
    drill.check(19, "the same; then the new one is written to `password_file`")


RIGHTS = ("+evalsha", "+eval", "+get", "+set", "+time", "~rl1:*")


@pytest.mark.parametrize(
    ("what", "hurt"),
    [
        ("ACL DELUSER", ("DELUSER", "limiter")),
        ("ACL SETUSER -evalsha -eval", ("SETUSER", "limiter", "-evalsha", "-eval")),
        ("ACL SETUSER with other keys", ("SETUSER", "limiter", "resetkeys", "~other:*")),
        ("ACL SETUSER -set", ("SETUSER", "limiter", "-set")),
    ],
)
async def test_f20_user_with_fewer_rights(server: Server, what: str, hurt: tuple[str, ...]) -> None:
    """With the documented rights all works; without one of them it is a mistake in the configuration that ends."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "limiter", "reset", "on", f">{PASSWORD}", *RIGHTS)
        async with Drill(f"redis://limiter:{PASSWORD}@127.0.0.1:{server.port}/0") as drill:
            await drill.settled()
            with drill.fault():
                client.execute_command("ACL", *hurt)
                await drill.endured()
                client.execute_command("ACL", "SETUSER", "limiter", "reset", "on", f">{PASSWORD}", *RIGHTS)
            await drill.recovered()
    drill.check(20, what)
    assert {Kind.PERMISSION, Kind.AUTHENTICATION, Kind.DISCONNECTED} >= set(drill.kinds()) > set()


async def test_f21_no_room_for_clients(server: Server) -> None:
    """A server that takes no more clients is out for those who are not in."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with server.client() as client:
            client.ping()
            with drill.fault():
                client.config_set("maxclients", "1")
                client.client_kill_filter(_type="normal", skipme=True)
                await drill.endured()
                client.config_set("maxclients", "1000")
            await drill.recovered()
    drill.check(21, "maxclients 1, connections killed")
    assert {Kind.FULL, Kind.DISCONNECTED} >= set(drill.kinds()) > set()


async def test_f24_idle_connections_killed(server: Server) -> None:
    """A connection that the server closed between two requests costs no decision."""
    async with Drill(server.url) as drill:
        await drill.settled()
    for service in drill.services.values():
        with server.client() as client:
            for number in range(20):
                assert (await service.ask(f"/wide/{COSTS[0]}", f"key-{drill.token}-idle", COSTS[0])).source in HEALTHY
                client.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(0.005 * (number % 2))
        await service.store.close()
    drill.check(24, "CLIENT KILL between two requests, 20 times each")
    assert {} == drill.kinds()


async def test_f25_killed_in_flight(server: Server) -> None:
    """A connection that breaks while an answer is awaited: the request is not repeated, its outcome is unknown."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with server.client() as client:
            with drill.fault():
                for _ in range(5):
                    client.client_pause(60_000, all=False)
                    await drill.flowed(0.03)
                    client.client_kill_filter(_type="normal", skipme=True)
                    client.client_unpause()
                    await drill.flowed(0.05)
            await drill.recovered()
    drill.check(25, "CLIENT PAUSE WRITE, CLIENT KILL, 5 times")
    assert Kind.DISCONNECTED in drill.kinds()


async def test_f43_replica(server: Server) -> None:
    """Nothing is ever decided by a replica: it may be behind."""
    with Server(replicaof=f"127.0.0.1 {server.port}", masterauth=PASSWORD) as replica:
        async with Drill(replica.url) as drill:
            with drill.fault():
                await drill.endured()
            assert not any(sample.source == STORE for sample in drill.samples())
            with replica.client() as client:
                client.replicaof("NO", "ONE")
            await drill.recovered()
        drill.check(43, "the URL of a replica, which is promoted later")
    assert {Kind.READ_ONLY} == set(drill.kinds())


def own_keys(drill: Drill, principal: str) -> list[bytes]:
    """The keys of *principal* in every service."""
    keys: list[bytes] = []
    for service in drill.services.values():
        limiter = service.app.limiter
        name = drill.principal(service, principal).encode()
        target = b"/tight" if principal == "greedy" else f"/wide/{principal}".encode()
        keys += [hit.key for hit in limiter.hits(Request("GET", target, [(b"x-api-key", name)], "203.0.113.7"))]
    return keys


@pytest.mark.parametrize("row", [44, 45])
async def test_f44_f45_foreign_values(server: Server, row: int) -> None:
    """A key that holds what is not ours costs its own principal the store, and nobody else; it is not overwritten."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with server.client() as client:
            victims = own_keys(drill, str(COSTS[0]))
            with drill.fault():
                for key in victims:
                    client.delete(key)
                    _ = client.lpush(key, "theirs") if row == 44 else client.set(key, "theirs")
                await drill.endured(answers=10)
            others = [sample for sample in drill.during() if sample.path != f"/wide/{COSTS[0]}"]
            assert all(sample.source in HEALTHY for sample in others)
            types = {client.type(key) for key in victims}
            client.delete(*victims)
            for service in drill.services.values():
                service.forgetful = True
            await drill.recovered()
    drill.check(row, "LPUSH on a key of ours" if row == 44 else "SET of a key of ours to text")
    assert {b"list" if row == 44 else b"string"} == types
    assert {Kind.FOREIGN_VALUE} == set(drill.kinds())


async def test_f46_restart_without_data(server: Server) -> None:
    """A store that comes back empty gives everybody at most one limit more; counting goes on."""
    async with Drill(server.url, losses=2) as drill:
        await drill.settled()
        for _ in range(2):
            with drill.fault():
                server.kill()
                await drill.endured(answers=10, at_least_s=0.1)
            await asyncio.to_thread(server.start)
            await drill.recovered()
    drill.check(46, "`kill -9` and started empty, twice")
    keys_end(server)


async def test_f48_everything_deleted(server: Server) -> None:
    """Whoever deletes all keys gives everybody at most one limit more each time, and breaks nothing."""
    async with Drill(server.url, losses=6) as drill:
        await drill.settled()
        with drill.fault(), server.client() as client:
            for _ in range(6):
                client.flushall()
                await drill.flowed(0.1)
        await drill.recovered()
    drill.check(48, "FLUSHALL every 100 ms, 6 times")
    assert {} == drill.kinds()


async def test_f49_one_of_two_keys_gone(server: Server) -> None:
    """A rule with a burst keeps two keys; one without the other counts as empty, and the other still holds."""
    policy = Policy((Rule("bursty", Quota(5, WINDOW_MS), burst=2),), store=server.url)
    store = open_store(server.url, timeout_ms=1000)
    request = Request("GET", b"/", http_scope()["headers"], "203.0.113.7")
    limiter = Limiter(policy, store)
    admitted = [(await limiter.judge(request)).decision.allowed for _ in range(9)]
    with server.client() as client:
        short, long = (hit.key for hit in limiter.hits(request))
        assert 1 == client.delete(short)
        again = [(await limiter.judge(request)).decision.allowed for _ in range(9)]
        assert 14 == (await store.charge([hit._replace(cost=0) for hit in limiter.hits(request)])).tallies[1].used
        assert 1 == client.delete(long)
        assert not (await limiter.judge(request)).decision.allowed
    await store.close()
    assert (7, 7) == (sum(admitted), sum(again))
    keys_end(server)
    async with Drill(server.url, modes=(OnStoreError.LOCAL,), losses=1) as drill:
        await drill.settled()
        with drill.fault(), server.client() as client:
            client.delete(*own_keys(drill, "greedy"))
            await drill.flowed(0.2)
        await drill.recovered()
    drill.check(49, "DEL of one key")


async def test_f50_keys_end(server: Server) -> None:
    """Every key is written with its end; a window that would delete it at once cannot be configured."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            for _ in range(20):
                keys_end(server)
                await drill.flowed(0.02)
        await drill.recovered()
    drill.check(50, "SCAN and PTTL under traffic")
    for window_ms in (0, -1):
        with pytest.raises(ValueError, match="window"):
            Quota(1, window_ms)
