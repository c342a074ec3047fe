from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from ratelimiter.errors import ConfigError, Kind, StoreError, StoreUnavailable
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.redis.sentinel import sentinels_of
from tests.stores.redis.test_store import PATIENT_MS, closing, hit, opened, until_admitted, within
from tests.stores.redis_server import RedisServer, SentinelServer, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers


class Watched:
    """A master, a replica and three Sentinels."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.master = stack.enter_context(RedisServer())
        self.replica = stack.enter_context(RedisServer(replicaof=f"127.0.0.1 {self.master.port}"))
        self.sentinels = [stack.enter_context(SentinelServer(self.master.port)) for _ in range(3)]
        wait_until(lambda: all(self._knows_all(sentinel) for sentinel in self.sentinels), "the Sentinels meet")

    @staticmethod
    def _knows_all(sentinel: SentinelServer) -> bool:
        with sentinel.client() as client:
            state: Any = client.sentinel_master("mymaster")
            return int(state["num-other-sentinels"]) == 2 and int(state["num-slaves"]) == 1

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/mymaster/0"


@pytest.fixture
def watched() -> Iterator[Watched]:
    with contextlib.ExitStack() as stack:
        yield Watched(stack)


async def test_failover(watched: Watched) -> None:
    """When the master dies every decision comes within its deadline, and soon after the failover the new master counts
    on from what it was sent (F37).
    """
    async with closing(opened(watched.url, timeout_ms=200)) as store:
        await until_admitted(store, 5)
        for _ in range(5):
            await store.charge([hit()])
        wait_until(lambda: replicated(watched), "the replica has everything")
        watched.master.kill()
        begun_s = time.monotonic()
        failed = 0
        while True:
            results = await asyncio.gather(*[within(200, store.charge([hit()])) for _ in range(20)])
            if not any(isinstance(result, StoreError) for result in results):
                break
            failed += 1
            assert time.monotonic() - begun_s < 20
            await asyncio.sleep(0.02)
        promoted_s = time.monotonic()

        assert failed
        assert min(result.tallies[0].used for result in results if not isinstance(result, StoreError)) >= 6
        assert promoted_s - begun_s < 10


def replicated(watched: Watched) -> bool:
    with watched.master.client() as master, watched.replica.client() as replica:
        ours: Any = master.info("replication")
        theirs: Any = replica.info("replication")
        return bool(ours["master_repl_offset"] == theirs["slave_repl_offset"])


async def test_recovery_within_a_second_of_the_failover(watched: Watched) -> None:
    """From the moment that the Sentinels name the new master it takes less than a second until it is used."""
    async with closing(opened(watched.url, timeout_ms=100)) as store:
        await until_admitted(store, 5)
        watched.master.kill()

        def named() -> bool:
            with watched.replica.client() as client:
                return bool(client.role()[0] == b"master")

        async def keep_asking() -> None:
            while True:
                await within(100, store.charge([hit("load", 10**6)]))
                await asyncio.sleep(0.01)

        asking = asyncio.create_task(keep_asking())
        await asyncio.to_thread(wait_until, named, "the replica is promoted", 20)
        promoted_s = time.monotonic()
        await until_admitted(store, 20)
        asking.cancel()

        # The Sentinels name it a little after it was promoted.
        assert time.monotonic() - promoted_s < 2


async def test_sentinels_that_are_gone(watched: Watched) -> None:
    """Without any Sentinel an existing connection goes on; a new process degrades within its deadline (F38)."""
    async with closing(opened(watched.url, timeout_ms=100)) as store:
        await until_admitted(store, 5)
        for sentinel in watched.sentinels:
            sentinel.kill()

        assert (await store.charge([hit()])).admitted
        async with closing(opened(watched.url, timeout_ms=100)) as newcomer:
            result = await within(100, newcomer.charge([hit()]))

            assert isinstance(result, StoreUnavailable)
            assert Kind.UNREACHABLE is result.kind


async def test_majority_decides(watched: Watched) -> None:
    """One Sentinel that is dead or mistaken does not matter."""
    with SentinelServer(free_port(), quorum=1) as mistaken:
        watched.sentinels[0].kill()
        place = sentinels_of(urlsplit(watched.url.replace("://", f"://127.0.0.1:{mistaken.port},")))
        for _ in range(5):
            assert watched.master.port == (await place.locate()).port


async def test_unknown_service(watched: Watched) -> None:
    """A name that no Sentinel knows is an outage that says which name."""
    async with closing(opened(watched.url.replace("mymaster", "nobody"))) as store:
        result = await within(PATIENT_MS, store.charge([hit()]))

        assert isinstance(result, StoreUnavailable)
        assert Kind.NO_MASTER is result.kind
        assert "'nobody'" in str(result)


async def test_sentinel_is_not_taken_for_a_master(watched: Watched) -> None:
    """A redis:// URL that leads to a Sentinel says so."""
    async with closing(opened(f"redis://127.0.0.1:{watched.sentinels[0].port}")) as store:
        with pytest.raises(StoreUnavailable, match="is a sentinel, not a master"):
            await store.charge([hit()])


def test_url() -> None:
    """Every part of the URL arrives where it belongs."""
    place = sentinels_of(
        urlsplit("redis+sentinel://u:p%40@a,b:1,[::1]:2/my%2Fname/3?sentinel_password=s&client_name=edge")
    )

    assert [("a", 26379, "", "s"), ("b", 1, "", "s"), ("::1", 2, "", "s")] == [
        (one.host, one.port, one.username, one.password) for one in place.sentinels
    ]
    assert "my/name" == place.service
    assert ("u", "p@", 3, "edge") == (
        place.master.username,
        place.master.password,
        place.master.db,
        place.master.client_name,
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://h",
        "redis+sentinel:///mymaster",
        "redis+sentinel://h:x/mymaster",
        "redis+sentinel://h/mymaster/x",
        "redis+sentinel://h/mymaster?quorum=2",
    ],
)
def test_url_that_cannot_be_used(url: str) -> None:
    """A mistake in the URL is told when the store is opened."""
    with pytest.raises(ConfigError, match="; write "):
        open_store(url)


async def test_a_sentinel_with_a_password_is_named(watched: Watched) -> None:
    """Without its password the error names the Sentinel and the option to write; with it, decisions are made."""
    for sentinel in watched.sentinels:
        with sentinel.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "resetpass", ">hush")
    async with closing(opened(watched.url, timeout_ms=PATIENT_MS)) as store:
        with pytest.raises(StoreError, match=r"the Sentinel at 127\.0\.0\.1:\d+: .*\?sentinel_password=") as caught:
            await store.charge([hit()])
    assert Kind.AUTHENTICATION is caught.value.kind
    async with closing(opened(f"{watched.url}?sentinel_password=hush", timeout_ms=PATIENT_MS)) as store:
        assert (await store.charge([hit()])).now_ms > 0


async def test_a_server_that_is_no_sentinel_is_named(redis_server: RedisServer) -> None:
    """The port of the server itself, in place of a Sentinel's, is told as that."""
    url = f"redis+sentinel://127.0.0.1:{redis_server.port}/mymaster"
    async with closing(opened(url, timeout_ms=PATIENT_MS)) as store:
        with pytest.raises(StoreError, match=r"the Sentinel at .*; write the port of a Sentinel"):
            await store.charge([hit()])
