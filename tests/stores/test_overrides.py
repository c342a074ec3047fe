"""Goal: orders are kept whole, end by themselves, and no operator undoes another's. Method: one contract for the
embedded store, a real server, a master behind Sentinels and a Cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from typing import TYPE_CHECKING

import pytest

from ratelimiter.errors import Kind, StoreError, StoreMisconfigured, StoreUnavailable
from ratelimiter.stores import overrides
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.stores.overrides import MemoryOverrideStore, OverridesFullError, RedisOverrideStore, Snapshot
from ratelimiter.testing import FakeClock
from tests.stores.redis.test_store import PATIENT_MS, hit
from tests.stores.redis_server import RedisCluster, RedisServer, SentinelServer, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ratelimiter.stores.overrides import OverrideStore

_names = itertools.count()
TOLD = '{"verb":"block"'


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """Where each kind of shared store is."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(RedisCluster())
        server = stack.enter_context(RedisServer())
        sentinel = stack.enter_context(SentinelServer(server.port))
        yield {
            "redis": server.url,
            "sentinel": f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/0",
            "cluster": cluster.url,
        }


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "redis", "sentinel", "cluster"])
async def book(request: pytest.FixtureRequest, urls: dict[str, str], clock: FakeClock) -> AsyncIterator[OverrideStore]:
    """A book of its own policy, whose time is the clock's."""
    if request.param == "memory":
        yield MemoryOverrideStore(MemoryStore(clock=clock))
        return
    store = open_store(urls[request.param], timeout_ms=PATIENT_MS)
    found = store.override_store(f"policy-{next(_names)}")
    assert isinstance(found, RedisOverrideStore)
    found._clock = clock
    yield found
    await store.close()


async def test_nothing_is_there_at_first(book: OverrideStore, clock: FakeClock) -> None:
    """A book that nobody has written to has no version, no orders and nothing to tell."""
    assert await book.version() == ""
    assert Snapshot("", clock(), {}) == await book.read()
    assert [] == await book.told(10)


async def test_what_is_written_is_read(book: OverrideStore, clock: FakeClock) -> None:
    """An order stands with its end and its JSON until it is replaced or removed; each write makes another version."""
    versions = [await book.version()]
    assert "" == await book.write(TOLD, "block:ab", (clock() + 60_000, '{"a":"ü"}'))
    versions.append(await book.version())
    assert '{"a":"ü"}' == await book.write(TOLD, "block:ab", (0, '{"a":2}'))
    versions.append(await book.version())
    page = await book.read()
    assert {"block:ab": (0, '{"a":2}')} == page.fields
    assert versions[-1] == page.version
    assert '{"a":2}' == await book.write(TOLD, "block:ab")
    versions.append(await book.version())

    assert {} == (await book.read()).fields
    assert len(versions) == len(set(versions))


async def test_orders_end(book: OverrideStore, clock: FakeClock) -> None:
    """At its end an order is gone, for readers at once and for good with the next write."""
    await book.write(TOLD, "block:ab", (clock() + 1000, "{}"))
    await book.write(TOLD, "block:cd", (0, "{}"))
    clock.advance(999)
    assert {"block:ab", "block:cd"} == (await book.read()).fields.keys()
    clock.advance(1)
    assert {"block:cd"} == (await book.read()).fields.keys()
    assert "" == await book.write(TOLD, "block:ab", (0, "{}"))  # what has ended was not there before


async def test_a_version_by_itself(book: OverrideStore) -> None:
    """What changes no order can still have everybody look again."""
    await book.write(TOLD, "block:ab", (0, "{}"))
    before = await book.version()
    await book.write(TOLD)

    assert before != await book.version()
    assert {"block:ab"} == (await book.read()).fields.keys()


async def test_told(book: OverrideStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write is told of with what was there before and when, the latest first, and the oldest go."""
    monkeypatch.setattr(overrides, "TOLD_MAX", 3)
    for number in range(5):
        await book.write(f'{{"number":{number}', "shadow", (0, f'{{"now":{number}}}'))
    lines = [json.loads(line) for line in await book.told(10)]

    assert [{"number": n, "old": {"now": n - 1}, "at_ms": clock()} for n in (4, 3, 2)] == lines
    assert 1 == len(await book.told(1))


async def test_two_operators_lose_nothing(book: OverrideStore) -> None:
    """Who writes at the same time as others undoes nothing of theirs."""
    await asyncio.gather(*[book.write(TOLD, f"block:{number}", (0, "{}")) for number in range(50)])

    assert {f"block:{number}" for number in range(50)} == (await book.read()).fields.keys()
    assert 50 == len(await book.told(100))


async def test_there_is_an_end_to_them(book: OverrideStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are as many as may be, none is added; one can be replaced, and removed."""
    monkeypatch.setattr(overrides, "ORDERS_MAX", 2)
    await book.write(TOLD, "a", (0, "{}"))
    await book.write(TOLD, "b", (0, "{}"))
    version = await book.version()
    with pytest.raises(OverridesFullError):
        await book.write(TOLD, "c", (0, "{}"))
    assert version == await book.version()
    await book.write(TOLD, "b", (0, '{"b":2}'))
    await book.write(TOLD, "a")
    await book.write(TOLD, "c", (0, "{}"))

    assert {"b", "c"} == (await book.read()).fields.keys()


@pytest.mark.parametrize("scheme", ["redis", "sentinel", "cluster"])
async def test_erased_counters_begin_anew(urls: dict[str, str], scheme: str) -> None:
    """After `erase` a key has been charged nothing."""
    store = open_store(urls[scheme], timeout_ms=PATIENT_MS)
    book = store.override_store("erasing")
    assert book is not None
    charges = [hit(f"erased-{scheme}-{number}") for number in range(3)]
    for charge in charges:
        assert 1 == (await store.charge([charge])).tallies[0].used
    await book.erase([charge.key for charge in charges])

    assert [1, 1, 1] == [(await store.charge([charge])).tallies[0].used for charge in charges]
    await store.close()


async def test_the_keys_expire(redis_server: RedisServer) -> None:
    """Every key has a TTL: until the last override that was ever written has ended, a day at least, and very long while
    there is one without an end (6).
    """
    store = open_store(redis_server.url, timeout_ms=PATIENT_MS)
    book = store.override_store("expiring")
    assert book is not None
    with redis_server.client() as client:
        now_ms = (await book.read()).now_ms
        await book.write(TOLD, "a", (now_ms + 3 * 86_400_000, "{}"))
        assert 3 * 86_400_000 - 5000 < client.pttl("rl1:{orders}:expiring") <= 3 * 86_400_000
        await book.write(TOLD, "b", (now_ms + 1000, "{}"))
        assert 3 * 86_400_000 - 5000 < client.pttl("rl1:{orders}:expiring") <= 3 * 86_400_000
        await book.write(TOLD, "b", (0, "{}"))
        assert overrides.KEPT_MS - 5000 < client.pttl("rl1:{orders}:expiring")
        assert overrides.KEPT_MS - 5000 < client.pttl("rl1:{orders}:expiring:audit")
        await book.write(TOLD, "a")
        await book.write(TOLD, "b")
        assert 86_000_000 < client.pttl("rl1:{orders}:expiring") <= 3 * 86_400_000
    await store.close()


async def test_without_a_server() -> None:
    """Nobody there is a StoreUnavailable, within the deadline and again and again."""
    store = open_store(f"redis://127.0.0.1:{free_port()}/0", timeout_ms=PATIENT_MS)
    book = store.override_store("nowhere")
    assert book is not None
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await book.version()
    await store.close()


async def test_a_server_that_hangs() -> None:
    """No answer is a timeout, after which a new connection finds the server that has come back."""
    with RedisServer() as server:
        store = open_store(server.url, timeout_ms=200)
        book = store.override_store("hanging")
        assert book is not None
        await book.write(TOLD, "a", (0, "{}"))
        server.freeze()
        for _ in range(2):
            with pytest.raises(StoreError):
                await book.version()
        server.thaw()
        for _ in range(100):
            with contextlib.suppress(StoreError):
                assert {"a"} == (await book.read()).fields.keys()
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("never answered again")
        await store.close()


async def test_what_the_user_may_do() -> None:
    """A user without the commands of orders is told so, and charges go on over the same connection."""
    with RedisServer() as server:
        with server.client() as client:
            charging = ["+evalsha", "+eval", "+get", "+set", "+time"]
            client.acl_setuser("charging", enabled=True, nopass=True, commands=charging, keys=["rl1:*"])
            reading = [*charging, "+hget", "+hscan"]
            client.acl_setuser("reading", enabled=True, nopass=True, commands=reading, keys=["rl1:*"])
            writing = ["+hlen", "+hexists", "+hset", "+hdel", "+pexpire", "+lpush", "+ltrim", "+lrange", "+del"]
            client.acl_setuser("operator", enabled=True, nopass=True, commands=[*reading, *writing], keys=["rl1:*"])
        url = server.url.replace("redis://", "redis://{}:x@")
        for user, may_read, may_write in (
            ("charging", False, False),
            ("reading", True, False),
            ("operator", True, True),
        ):
            store = open_store(url.format(user), timeout_ms=PATIENT_MS)
            book = store.override_store("acl")
            assert book is not None
            for may, doing in ((may_read, book.read), (may_write, lambda book=book: book.write(TOLD, "a", (0, "{}")))):
                if may:
                    await doing()
                else:
                    with pytest.raises(StoreMisconfigured) as caught:
                        await doing()
                    assert Kind.PERMISSION is caught.value.kind
            if may_write:
                await book.erase([hit("acl").key])
                await book.told(1)
            assert (await store.charge([hit("acl")])).admitted
            await store.close()


def test_who_keeps_none() -> None:
    """An approximate store keeps no orders."""
    assert open_store("limits+memcached://127.0.0.1:1").override_store("any") is None
