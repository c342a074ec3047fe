from __future__ import annotations

import asyncio
import contextlib
import hashlib
import multiprocessing
import random
import socket
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import pytest

from ratelimiter.core.quota import Quota
from ratelimiter.core.receipt import Receipt
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.errors import (
    ConfigError,
    Kind,
    StoreError,
    StoreFault,
    StoreMisconfigured,
    StoreOverloaded,
    StoreTimeout,
    StoreUnavailable,
)
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.redis import script
from ratelimiter.stores.redis.connection import CODES, ScriptMissing, error_of
from ratelimiter.stores.redis.store import RedisStore
from ratelimiter.stores.redis.url import address_of
from tests.stores import contract
from tests.stores.contract import StoreContract
from tests.stores.redis_server import RedisServer, free_port, wait_until
from tests.stores.stored_reference import StoredReference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from ratelimiter.clock import Clock
    from ratelimiter.stores.base import Store

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

AnyStore = TypeVar("AnyStore", bound="Store")

PATIENT_MS = 5000  # where the deadline is not the point
SLACK_S = 0.5  # what a loaded machine may need on top of a deadline; tests/faults measures the deadline itself
WINDOW_MS = 60_000


def hit(key: str = "a", limit: int = 100, cost: int = 1, name: str = "rule") -> Hit:
    return Hit(f"rl1:{{{key}}}:default:{name}:0".encode(), Quota(limit, WINDOW_MS), cost, Rule(name, Quota(limit, 1)))


def opened(url: str, timeout_ms: int = PATIENT_MS) -> RedisStore:
    store = open_store(url, timeout_ms=timeout_ms)
    assert isinstance(store, RedisStore)
    return store


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = opened(redis_server.url)
    yield store
    await store.close()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server to hurt."""
    with RedisServer() as server:
        yield server


@contextlib.asynccontextmanager
async def closing(store: AnyStore) -> AsyncIterator[AnyStore]:
    try:
        yield store
    finally:
        await store.close()


async def within(deadline_ms: int, charging: Awaitable[Receipt]) -> Receipt | StoreError:
    """What came of *charging*; it must have come by its deadline."""
    begun_s = time.monotonic()
    try:
        return await charging
    except StoreError as error:
        return error
    finally:
        assert time.monotonic() - begun_s < deadline_ms / 1000 + SLACK_S


async def until_admitted(store: Store, within_s: float) -> float:
    """How many seconds it took until a charge succeeded; callers ask all the time."""
    begun_s = time.monotonic()
    while True:
        try:
            await store.charge([hit("probe", 10**6)])
        except StoreError:
            assert time.monotonic() - begun_s < within_s
            await asyncio.sleep(0.01)
        else:
            return time.monotonic() - begun_s


def calls(server: RedisServer, command: str) -> int:
    with server.client() as client:
        stats: Any = client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


class TestContract(StoreContract):
    """The contract, with a clock of the test's own; so keys must not expire while that clock stands still."""

    @pytest.fixture(autouse=True)
    def keys_that_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = script.TEXT.replace(b", px, expiry[key])", b")")
        assert text != script.TEXT
        words = {"TEXT": text, "SHA": hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()}
        for name, word in words.items():
            monkeypatch.setattr(script, f"_BULK_{name}", b"$%d\r\n%b\r\n" % (len(word), word))

    @pytest.fixture(autouse=True)
    def refusals_that_are_not_stored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contract, "ReferenceStore", StoredReference)

    @pytest.fixture
    def make_store(self, redis_server: RedisServer) -> Callable[[Clock], RedisStore]:
        address = address_of(urlsplit(redis_server.url))
        return lambda clock: RedisStore(address, timeout_ms=PATIENT_MS, clock=clock)


# --- one after another


async def test_admits_up_to_the_limit(store: RedisStore) -> None:
    """The limit is reached and not passed; the refusal says when to come back."""
    receipts = [await store.charge([hit(limit=3)]) for _ in range(4)]

    assert [True, True, True, False] == [receipt.admitted for receipt in receipts]
    assert [1, 2, 3, 3] == [receipt.tallies[0].used for receipt in receipts]
    assert 0 < receipts[3].tallies[0].retry_after_ms <= WINDOW_MS
    assert all(receipt.source == "store" for receipt in receipts)


async def test_all_or_none(store: RedisStore) -> None:
    """A request refused by one rule is charged to none (invariant 1)."""
    await store.charge([hit("tight", 1)])
    receipt = await store.charge([hit("roomy", 9), hit("tight", 1)])

    assert not receipt.admitted
    assert (0, 1) == (receipt.tallies[0].used, receipt.tallies[1].used)


async def test_closed_store_may_be_used_again(store: RedisStore) -> None:
    """Closing lets go of the connection; the next charge opens a new one, and the tallies are where they were."""
    await store.charge([hit()])
    await store.close()
    await store.close()

    assert 2 == (await store.charge([hit()])).tallies[0].used


def test_store_outlives_its_event_loop(redis_server: RedisServer) -> None:
    """A store that was used in one event loop can be used in the next."""
    store = opened(redis_server.url)

    async def charged_once() -> int:
        try:
            return (await store.charge([hit()])).tallies[0].used
        finally:
            await store.close()

    assert [1, 2] == [asyncio.run(charged_once()) for _ in range(2)]


async def test_no_connection_before_the_first_charge() -> None:
    """A store can be opened while its server is not there."""
    await opened(f"redis://127.0.0.1:{free_port()}").close()


# --- group commit


async def test_concurrent_requests_share_script_calls(store: RedisStore, redis_server: RedisServer) -> None:
    """What arrives together travels together, and the limit holds exactly."""
    await store.charge([hit("warm")])
    with redis_server.client() as client:
        client.config_resetstat()
    receipts = await asyncio.gather(*[store.charge([hit(limit=100)]) for _ in range(300)])

    assert 100 == sum(receipt.admitted for receipt in receipts)
    assert 3 <= calls(redis_server, "evalsha") <= 4  # the last few may be shared by two


async def test_every_caller_gets_his_own_receipt(store: RedisStore) -> None:
    """Requests of one, two and three hits in one batch: each is answered for its own keys."""

    async def ask(number: int) -> None:
        hits = [hit(f"{number}-{part}", 1000, cost=number + part) for part in range(number % 3 + 1)]
        receipt = await store.charge(hits)

        assert [number + part for part in range(number % 3 + 1)] == [tally.used for tally in receipt.tallies]

    await asyncio.gather(*[ask(number) for number in range(500)])


async def test_request_with_more_keys_than_a_batch_travels_alone(redis_server: RedisServer) -> None:
    """The bound on keys splits batches, never a request."""
    async with closing(RedisStore(address_of(urlsplit(redis_server.url)), timeout_ms=PATIENT_MS, keys_max=4)) as store:
        await store.charge([hit("warm")])
        with redis_server.client() as client:
            client.config_resetstat()
        wide = [hit("w", name=f"rule-{number}") for number in range(6)]
        receipts = await asyncio.gather(*[store.charge(hits) for hits in ([hit("a")], wide, [hit("b")])])

        assert [1, 6, 1] == [len(receipt.tallies) for receipt in receipts]
        assert 3 == calls(redis_server, "evalsha")


async def test_cancelled_callers_harm_nobody(store: RedisStore, redis_server: RedisServer) -> None:
    """A thousand callers, half of them cancelled at any moment: the others get their own answers."""
    chance = random.Random(7)  # noqa: S311 - a test, not a secret

    async def ask(number: int) -> int:
        receipt = await store.charge([hit(f"own-{number}", 10, cost=number % 10 + 1), hit("all", 10**6)])
        assert number % 10 + 1 == receipt.tallies[0].used
        return receipt.tallies[1].used

    tasks = [asyncio.create_task(ask(number)) for number in range(1000)]
    for task in chance.sample(tasks, 500):
        if chance.random() < 0.05:
            await asyncio.sleep(0)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    seen = [result for result in results if isinstance(result, int)]

    assert 500 <= len(seen) == len(set(seen))
    assert all(isinstance(result, int | asyncio.CancelledError) for result in results)
    total = (await store.charge([hit("all", 10**6, cost=0)])).tallies[0].used
    assert len(seen) <= total <= 1000
    with redis_server.client() as client:
        assert 2 >= client.info("clients")["connected_clients"]


async def test_cancelled_before_departure_is_not_charged(store: RedisStore) -> None:
    """Who has given up before his batch left is left out of it."""
    await store.charge([hit("warm")])
    given_up, staying = (asyncio.create_task(store.charge([hit()])) for _ in range(2))
    await asyncio.sleep(0)
    given_up.cancel()

    assert 1 == (await staying).tallies[0].used


async def test_overload_is_ours(redis_server: RedisServer) -> None:
    """Beyond the bound of the queue a request fails at once, is not charged, and is told that this is our own load."""
    async with closing(
        RedisStore(address_of(urlsplit(redis_server.url)), timeout_ms=PATIENT_MS, queue_max=10)
    ) as store:
        results = await asyncio.gather(*[store.charge([hit()]) for _ in range(12)], return_exceptions=True)

        assert [True] * 10 == [isinstance(result, Receipt) for result in results[:10]]
        assert all(isinstance(result, StoreOverloaded) and result.kind is Kind.OVERLOADED for result in results[10:])
        assert not isinstance(results[11], StoreUnavailable)
        assert 11 == (await store.charge([hit()])).tallies[0].used


async def test_event_loop_that_stood_still_is_not_the_stores_fault(redis_server: RedisServer) -> None:
    """An answer that came in time but could not be read in time is still an answer (F52)."""
    async with closing(opened(redis_server.url, timeout_ms=50)) as store:
        await store.charge([hit()])
        charging = asyncio.create_task(store.charge([hit()]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - this is the fault

        assert 2 == (await charging).tallies[0].used


def charge_in_a_process(url: str, times: int) -> int:
    """How many of *times* concurrent requests to one key are admitted; of several processes, one."""

    async def charged() -> int:
        async with closing(opened(url)) as store:
            receipts = await asyncio.gather(*[store.charge([hit("shared", 100)]) for _ in range(times)])
            return sum(receipt.admitted for receipt in receipts)

    return asyncio.run(charged())


def test_processes_share_one_limit(redis_server: RedisServer) -> None:
    """Four processes at once get exactly the limit between them (2)."""
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        admitted = list(processes.map(charge_in_a_process, [redis_server.url] * 4, [200] * 4))

    assert 100 == sum(admitted)


async def test_closing_answers_those_who_wait(own_redis: RedisServer) -> None:
    """Nobody waits for a store that was closed, and nothing is opened behind its back."""
    store = opened(own_redis.url)
    await store.charge([hit()])
    own_redis.freeze()
    waiting = [asyncio.create_task(store.charge([hit()])) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting.append(asyncio.create_task(store.charge([hit()])))
    await asyncio.sleep(0)
    await store.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    own_redis.thaw()

    assert [StoreUnavailable] * 4 == [type(result) for result in results]
    await asyncio.sleep(0.05)
    with own_redis.client() as client:
        assert 1 == client.info("clients")["connected_clients"]


# --- the script is not there


async def test_flushed_script_is_sent_once(store: RedisStore, redis_server: RedisServer) -> None:
    """After SCRIPT FLUSH nobody notices anything, and the text travels once, not once per caller (F18)."""
    await store.charge([hit()])
    with redis_server.client() as client:
        client.script_flush()
        client.config_resetstat()
    receipts = await asyncio.gather(*[store.charge([hit()]) for _ in range(100)])

    assert list(range(2, 102)) == sorted(receipt.tallies[0].used + (not receipt.admitted) for receipt in receipts)
    assert 1 == calls(redis_server, "eval")


# --- connections that break


async def test_killed_idle_connection_is_replaced(store: RedisStore, redis_server: RedisServer) -> None:
    """An idle connection that the server has closed costs no decision (F24)."""
    for count in range(1, 6):
        assert count == (await store.charge([hit()])).tallies[0].used
        with redis_server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        if count % 2:
            await asyncio.sleep(0.01)


async def test_killed_idle_connection_is_noticed_without_the_event_loop(
    store: RedisStore, redis_server: RedisServer
) -> None:
    """Even a closure that the event loop had no time to hear of is noticed before anything is sent."""
    await store.charge([hit()])
    with redis_server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    time.sleep(0.15)  # noqa: ASYNC251 - the event loop must not hear of it

    assert 2 == (await store.charge([hit()])).tallies[0].used


async def test_killed_in_flight_is_not_sent_again(own_redis: RedisServer) -> None:
    """What was sent over a connection that broke may have been charged, so it fails and is not repeated (F25)."""
    async with closing(opened(own_redis.url)) as store:
        await store.charge([hit()])
        with own_redis.client() as client:
            client.config_resetstat()
            client.client_pause(10_000, all=False)
            charging = asyncio.create_task(store.charge([hit()]))
            await asyncio.sleep(0.05)
            client.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(StoreUnavailable) as caught:
                await charging
            client.client_unpause()

        assert Kind.DISCONNECTED is caught.value.kind
        assert 2 == (await store.charge([hit()])).tallies[0].used


async def test_stopped_server_costs_no_more_than_the_deadline(own_redis: RedisServer) -> None:
    """Callers of a server that stands still are answered at the deadline; afterwards all goes on by itself (F3)."""
    async with closing(opened(own_redis.url, timeout_ms=50)) as store:
        await until_admitted(store, 5)
        before = connections(own_redis)
        own_redis.freeze()
        try:
            for _ in range(10):
                results = await asyncio.gather(*[within(50, store.charge([hit()])) for _ in range(50)])

                assert all(isinstance(result, StoreUnavailable) for result in results)
        finally:
            own_redis.thaw()

        assert await until_admitted(store, 5) < 1
        assert connections(own_redis) - before <= 12
        # What had been sent may have been charged late, but at most once each, and only one batch was sent.
        assert (await store.charge([hit(cost=0)])).tallies[0].used <= 50


async def test_answer_that_comes_too_late_is_nobodys(own_redis: RedisServer) -> None:
    """A server that was only slow: its late answer is not taken for the answer to the next call (F5)."""
    async with closing(opened(own_redis.url, timeout_ms=50)) as store:
        await until_admitted(store, 5)
        sleeper = threading.Thread(target=sleep_of, args=(own_redis, 0.3))
        sleeper.start()
        await asyncio.sleep(0.05)

        assert isinstance(await within(50, store.charge([hit("late")])), StoreTimeout)
        sleeper.join()
        assert await until_admitted(store, 5) < 1
        receipt = await store.charge([hit("other", cost=5)])
        assert 5 == receipt.tallies[0].used
        assert (await store.charge([hit("late", cost=0)])).tallies[0].used <= 1


def sleep_of(server: RedisServer, seconds: float) -> None:
    with server.client() as client:
        client.execute_command("DEBUG", "SLEEP", seconds)


def connections(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.info("stats")["total_connections_received"])


async def test_restart_under_load(own_redis: RedisServer) -> None:
    """While the server is away callers fail; when it is back so are we, without a storm of connections (F1, F23)."""
    async with closing(opened(own_redis.url, timeout_ms=200)) as store:
        await until_admitted(store, 5)
        own_redis.kill()
        stop = asyncio.Event()

        async def keep_asking() -> None:
            while not stop.is_set():
                result = await within(200, store.charge([hit("load", 10**6)]))
                await asyncio.sleep(0.01 if isinstance(result, StoreError) else 0.1)

        callers = [asyncio.create_task(keep_asking()) for _ in range(100)]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own_redis.start)
        took_s = await until_admitted(store, 5)
        stop.set()
        await asyncio.gather(*callers)

        assert took_s < 1
        with own_redis.client() as client:
            # A few of them are the helper's own.
            assert client.info("stats")["total_connections_received"] < 20


async def test_nobody_there() -> None:
    """A closed port, an unknown name and a missing socket are told at once, without retries (F1, F47)."""
    for url in (f"redis://127.0.0.1:{free_port()}", "redis://nowhere.invalid", "unix:///nowhere/redis.sock"):
        async with closing(opened(url)) as store:
            result = await within(1000, store.charge([hit()]))

            assert isinstance(result, StoreUnavailable)
            assert Kind.UNREACHABLE is result.kind


async def test_resolver_that_hangs_is_asked_once(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many attempts give up on a resolver that hangs, it holds one thread; then we are back (F47)."""
    asked = 0
    wakes = threading.Event()
    resolve = socket.getaddrinfo

    def hangs(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        wakes.wait(10)
        return resolve(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    async with closing(opened(f"redis://localhost:{redis_server.port}", timeout_ms=50)) as store:
        end_s = time.monotonic() + 1
        while time.monotonic() < end_s:
            assert isinstance(await within(50, store.charge([hit()])), StoreUnavailable)
            await asyncio.sleep(0.01)

        assert 1 == asked
        wakes.set()
        assert await until_admitted(store, 5) < 1


async def test_host_that_swallows_connections() -> None:
    """Where not even a connection comes about, callers have their answer at the deadline, and attempts are few (F2)."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        async with closing(opened(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout_ms=50)) as store:
            for _ in range(3):
                results = await asyncio.gather(*[within(50, store.charge([hit()])) for _ in range(20)])

                assert all(isinstance(result, StoreTimeout) for result in results)


# --- whoever answers


@contextlib.asynccontextmanager
async def impostor(answer: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """Something that listens and answers each chunk with what *answer* says; its URL."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while data := await reader.read(65536):
            writer.write(answer(data))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0)


def handshake(data: bytes) -> bytes | None:
    # To SETNAME, CONFIG GET maxmemory-policy and ROLE.
    return b"+OK\r\n*0\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n" if b"SETNAME" in data else None


async def test_port_that_speaks_http() -> None:
    """A wrong port that speaks another protocol is a fault, not an outage, and the message says so (F29)."""
    async with impostor(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as url, closing(opened(url)) as store:
        with pytest.raises(StoreFault, match="does not speak like a Redis server") as caught:
            await store.charge([hit()])

    assert Kind.PROTOCOL is caught.value.kind


def nonce_of(data: bytes) -> bytes:
    words = data.split(b"\r\n")
    return words[words.index(b"EVALSHA") + 6 + 2 * int(words[words.index(b"EVALSHA") + 4]) + 0]


async def test_answer_to_another_call_reaches_nobody() -> None:
    """Replies out of step fail the call and end the connection: never does a caller get another's answer (F30)."""
    seen: list[bytes] = []

    def answer(data: bytes) -> bytes:
        if (greeting := handshake(data)) is not None:
            return greeting
        seen.append(nonce_of(data))
        reply = b"*6\r\n$%d\r\n%b\r\n:1\r\n:1\r\n:1\r\n:1\r\n:0\r\n" % (len(seen[0]), seen[0])
        return reply * 2 if len(seen) == 1 else reply

    async with impostor(answer) as url, closing(opened(url)) as store:
        assert 1 == (await store.charge([hit()])).tallies[0].used
        await asyncio.sleep(0.05)
        with pytest.raises(StoreFault) as caught:
            await store.charge([hit()])

    assert Kind.MISMATCH is caught.value.kind


async def test_farewell_of_a_full_server(own_redis: RedisServer) -> None:
    """A server with no room for more clients is not available; its farewell may get lost in the hang-up (F21)."""
    with own_redis.client() as client:
        client.config_set("maxclients", 1)
        async with closing(opened(own_redis.url)) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.charge([hit()])
        client.config_set("maxclients", 100)

    assert caught.value.kind in (Kind.FULL, Kind.DISCONNECTED)


@pytest.mark.parametrize(
    ("text", "expected", "kind"),
    [
        ("LOADING Redis is loading the dataset in memory", StoreUnavailable, Kind.LOADING),
        ("BUSY Redis is busy running a script.", StoreUnavailable, Kind.BUSY),
        ("OOM command not allowed when used memory > 'maxmemory'.", StoreUnavailable, Kind.OUT_OF_MEMORY),
        (
            "ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed",
            StoreUnavailable,
            Kind.OUT_OF_MEMORY,
        ),
        ("READONLY You can't write against a read only replica.", StoreUnavailable, Kind.READ_ONLY),
        ("MASTERDOWN Link with MASTER is down", StoreUnavailable, Kind.NO_MASTER),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailable, Kind.NO_REPLICAS),
        ("MISCONF Redis is configured to save RDB snapshots", StoreUnavailable, Kind.NOT_PERSISTED),
        ("CLUSTERDOWN The cluster is down", StoreUnavailable, Kind.CLUSTER_DOWN),
        ("ERR max number of clients reached", StoreUnavailable, Kind.FULL),
        ("NOAUTH Authentication required.", StoreMisconfigured, Kind.AUTHENTICATION),
        ("WRONGPASS invalid username-password pair", StoreMisconfigured, Kind.AUTHENTICATION),
        ("ERR AUTH <password> called without any password configured", StoreMisconfigured, Kind.AUTHENTICATION),
        ("NOPERM this user has no permissions", StoreMisconfigured, Kind.PERMISSION),
        ("ERR The user executing the script can't run this command", StoreMisconfigured, Kind.PERMISSION),
        ("DENIED Redis is running in protected mode", StoreMisconfigured, Kind.PERMISSION),
        ("ERR DB index is out of range", StoreMisconfigured, Kind.PERMISSION),
        ("MOVED 1 127.0.0.1:7000", StoreMisconfigured, Kind.MOVED),
        ("WRONGTYPE Operation against a key", StoreFault, Kind.FOREIGN_VALUE),
        ("CROSSSLOT Keys in request don't hash to the same slot", StoreMisconfigured, Kind.MOVED),
        ("ERR user_script:1: Script attempted to access nonexistent global variable", StoreFault, Kind.REFUSED),
        ("NOSCRIPT No matching script.", ScriptMissing, Kind.REFUSED),
        ("", StoreFault, Kind.REFUSED),
    ],
)
def test_error_replies_are_told_apart(text: str, expected: type[StoreError], kind: Kind) -> None:
    """Each error of a server is one of availability, logic and configuration, with a label of its own."""
    error = error_of(text)

    assert (expected, kind) == (type(error), error.kind)


def test_every_code_has_a_class() -> None:
    """No code maps to the bare base class: somebody has to decide what is to be done about it."""
    assert all(issubclass(cls, StoreUnavailable | StoreFault | StoreMisconfigured) for cls, _ in CODES.values())


# --- what the server says when it cannot serve


def run_endless_script(server: RedisServer) -> None:
    with server.client() as client, contextlib.suppress(Exception):
        client.eval("while true do end", 0)


async def test_busy_server(own_redis: RedisServer) -> None:
    """Somebody's endless script is an outage; we do not kill it (F11)."""
    async with closing(opened(own_redis.url)) as store:
        await store.charge([hit()])
        with own_redis.client() as client:
            client.config_set("busy-reply-threshold", 20)
        thread = threading.Thread(target=run_endless_script, args=(own_redis,))
        thread.start()
        await asyncio.sleep(0.2)
        with pytest.raises(StoreUnavailable) as caught:
            await store.charge([hit()])
        with own_redis.client() as client:
            client.script_kill()
        thread.join()

        assert Kind.BUSY is caught.value.kind
        assert 2 == (await store.charge([hit()])).tallies[0].used


async def test_server_out_of_memory(own_redis: RedisServer) -> None:
    """A full server is an outage, and nothing is charged by halves (F12)."""
    async with closing(opened(own_redis.url)) as store:
        await store.charge([hit()])
        with own_redis.client() as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(StoreUnavailable) as caught:
                await store.charge([hit(), hit("b")])
            client.config_set("maxmemory", "0")

        assert Kind.OUT_OF_MEMORY is caught.value.kind
        assert [1, 0] == [tally.used for tally in (await store.charge([hit(cost=0), hit("b", cost=0)])).tallies]


@pytest.mark.parametrize(
    ("setting", "value", "kind"),
    [("min-replicas-to-write", "1", Kind.NO_REPLICAS)],
)
async def test_server_that_refuses_writes(own_redis: RedisServer, setting: str, value: str, kind: Kind) -> None:
    """A server that refuses to write is an outage (F16)."""
    async with closing(opened(own_redis.url)) as store:
        await store.charge([hit()])
        with own_redis.client() as client:
            client.config_set(setting, value)
        with pytest.raises(StoreUnavailable) as caught:
            await store.charge([hit()])

    assert kind is caught.value.kind


async def test_server_that_cannot_save(tmp_path: Path) -> None:
    """A server that stopped to take writes because it cannot save them is an outage (F17)."""
    directory = tmp_path / "data"
    directory.mkdir()
    with RedisServer(dir=str(directory), save="1 1") as server, server.client() as client:
        async with closing(opened(server.url)) as store:
            directory.rmdir()
            await store.charge([hit()])
            client.bgsave()
            wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "the save fails")
            with pytest.raises(StoreUnavailable) as caught:
                await store.charge([hit()])

    assert Kind.NOT_PERSISTED is caught.value.kind


async def test_server_that_is_loading(own_redis: RedisServer) -> None:
    """A server that still reads its data is an outage that ends by itself (F10)."""
    with own_redis.client() as client:
        client.execute_command("DEBUG", "POPULATE", 3000)
        client.config_set("key-load-delay", 500)
        client.config_set("loading-process-events-interval-bytes", 1024)
    reload = threading.Thread(target=debug_reload, args=(own_redis,))
    reload.start()
    kinds = set()
    async with closing(opened(own_redis.url)) as store:
        end_s = time.monotonic() + 5
        while Kind.LOADING not in kinds and time.monotonic() < end_s:
            result = await within(PATIENT_MS, store.charge([hit()]))
            if isinstance(result, StoreError):
                kinds.add(result.kind)
            await asyncio.sleep(0.01)
        reload.join()

        assert {Kind.LOADING} == kinds
        assert await until_admitted(store, 5) < 1


def debug_reload(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command("DEBUG", "RELOAD")


async def test_replica_is_not_asked(own_redis: RedisServer) -> None:
    """A replica is refused on arrival; a master that was demoted is left at its first refusal to write (F14, F43)."""
    with RedisServer(replicaof=f"127.0.0.1 {own_redis.port}") as replica:
        async with closing(opened(replica.url)) as store:
            with pytest.raises(StoreUnavailable, match="is a slave") as caught:
                await store.charge([hit()])

            assert Kind.READ_ONLY is caught.value.kind

            with replica.client() as client:
                client.replicaof("NO", "ONE")
            await until_admitted(store, 5)
            with replica.client() as client:
                client.replicaof("127.0.0.1", str(own_redis.port))
            with pytest.raises(StoreUnavailable) as caught:
                await store.charge([hit()])

            assert Kind.READ_ONLY is caught.value.kind


# --- values that are not ours


async def test_key_of_another_application(store: RedisStore, redis_server: RedisServer) -> None:
    """A key that holds another application's value fails the one request, as a fault; the batch goes on (F44)."""
    await store.charge([hit("warm")])
    with redis_server.client() as client:
        client.rpush(hit().key.decode(), "x")
    results = await asyncio.gather(*[store.charge([hit(key)]) for key in ("b", "a", "c")], return_exceptions=True)

    assert [Receipt, StoreFault, Receipt] == [type(result) for result in results]
    assert Kind.FOREIGN_VALUE is results[1].kind  # type: ignore[union-attr]
    with redis_server.client() as client:
        assert 1 == client.llen(hit().key.decode())


# --- getting in


async def test_password() -> None:
    """The right password opens, a wrong one and none are configuration errors (F19)."""
    with RedisServer(requirepass="p:@/ä") as server:
        for url, expected in (
            (f"redis://:p%3A%40%2F%C3%A4@127.0.0.1:{server.port}", None),
            (f"redis://:wrong@127.0.0.1:{server.port}", Kind.AUTHENTICATION),
            (f"redis://127.0.0.1:{server.port}", Kind.AUTHENTICATION),
        ):
            async with closing(opened(url)) as store:
                result = await within(PATIENT_MS, store.charge([hit()]))

                assert expected == (result.kind if isinstance(result, StoreMisconfigured) else None)
                assert "wrong" not in str(result)


async def test_password_file_is_read_at_every_connect(own_redis: RedisServer, tmp_path: Path) -> None:
    """A rotated password needs no restart: the file is read again, old connections live on (F19)."""
    secret = tmp_path / "password"
    secret.write_text("first\n")
    with own_redis.client() as client:
        client.config_set("requirepass", "first")
        url = f"{own_redis.url}?password_file={secret}"
        async with closing(opened(url)) as store:
            await store.charge([hit()])
            client.config_set("requirepass", "second")
            await store.charge([hit()])
            secret.write_text("second\n")
            client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)

            assert 3 == (await store.charge([hit()])).tallies[0].used


RIGHTS = "+evalsha +eval +get +set +time ~rl1:*"


@pytest.mark.parametrize(
    ("rights", "expected"),
    [
        (RIGHTS, None),
        (RIGHTS.replace("+evalsha ", ""), Kind.PERMISSION),
        (RIGHTS.replace("+eval ", ""), Kind.PERMISSION),
        (RIGHTS.replace("+get ", ""), Kind.PERMISSION),
        (RIGHTS.replace("+set ", ""), Kind.PERMISSION),
        (RIGHTS.replace("+time ", ""), Kind.PERMISSION),
        (RIGHTS.replace("~rl1:*", "~other:*"), Kind.PERMISSION),
    ],
)
async def test_acl_user_with_the_documented_rights(
    redis_server: RedisServer, rights: str, expected: Kind | None
) -> None:
    """The documented rights suffice, and each of them is needed (F20)."""
    assert RIGHTS in (RedisStore.__doc__ or "")
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "limiter", "reset", "on", ">secret", *rights.split())
    async with closing(opened(f"redis://limiter:secret@127.0.0.1:{redis_server.port}")) as store:
        result = await within(PATIENT_MS, store.charge([hit()]))

    assert expected == (result.kind if isinstance(result, StoreMisconfigured) else None), result
    assert (expected is None) == isinstance(result, Receipt)


async def test_database_and_name(redis_server: RedisServer) -> None:
    """The URL's database is used, and CLIENT LIST shows who we are."""
    async with closing(opened(f"redis://127.0.0.1:{redis_server.port}/3?client_name=edge")) as store:
        await store.charge([hit()])
        with redis_server.client() as client:
            assert 1 == client.info("keyspace")["db3"]["keys"]
            assert "edge" in [one["name"] for one in client.client_list()]
    async with closing(opened(f"redis://127.0.0.1:{redis_server.port}/99")) as store:
        with pytest.raises(StoreMisconfigured):
            await store.charge([hit()])


async def test_unix_socket(redis_server: RedisServer) -> None:
    """A unix socket serves as well."""
    async with closing(opened(f"unix://{redis_server.socket}?db=1")) as store:
        assert 1 == (await store.charge([hit()])).tallies[0].used


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `cert.pem` for localhost, signed by itself, and `key.pem`."""
    directory: Path = tmp_path_factory.mktemp("tls")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    words += ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run(words, check=True, capture_output=True)
    return directory


async def test_tls(certificate: Path) -> None:
    """TLS works if each side trusts the other's certificate; without trust, or to another host, it fails."""
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    port = free_port()
    files = {"tls_cert_file": str(cert), "tls_key_file": str(key), "tls_ca_cert_file": str(cert)}
    with RedisServer(plain=False, tls_port=str(port), **files):
        ours = f"ssl_ca_certs={cert}&ssl_certfile={cert}&ssl_keyfile={key}"
        for url, expected in (
            (f"rediss://localhost:{port}/0?{ours}", None),
            (f"rediss://localhost:{port}/0?ssl_cert_reqs=none&ssl_certfile={cert}&ssl_keyfile={key}", None),
            (f"rediss://127.0.0.1:{port}/0?{ours}&ssl_check_hostname=false", None),
            (f"rediss://127.0.0.1:{port}/0?{ours}", Kind.TLS),
            (f"rediss://localhost:{port}/0", Kind.TLS),
        ):
            async with closing(opened(url)) as store:
                result = await within(PATIENT_MS, store.charge([hit()]))

                assert expected == (result.kind if isinstance(result, StoreMisconfigured) else None), (url, result)
                assert (expected is None) == isinstance(result, Receipt), (url, result)
        # A server that wants a certificate of ours says so only after TLS is up, and its hang-up may come first.
        async with closing(opened(f"rediss://localhost:{port}/0?ssl_ca_certs={cert}")) as store:
            result = await within(PATIENT_MS, store.charge([hit()]))

            assert isinstance(result, StoreError)
            assert result.kind in (Kind.TLS, Kind.DISCONNECTED)


async def test_tls_to_a_plain_port(redis_server: RedisServer) -> None:
    """TLS spoken to a server that does not: it waits for the rest of the line, and we no longer than the deadline."""
    async with closing(opened(f"rediss://127.0.0.1:{redis_server.port}", timeout_ms=200)) as store:
        result = await within(200, store.charge([hit()]))

        assert isinstance(result, StoreError)
        assert result.kind in (Kind.TLS, Kind.UNREACHABLE, Kind.TIMEOUT)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:0",
        "redis://h:99999",
        "redis://h/x",
        "redis://h?sentinel=1",
        "redis://h?ssl_ca_certs=x",
        "unix://",
        "rediss://h?ssl_check_hostname=maybe",
        "rediss://h?ssl_cert_reqs=optional",
        "rediss://h?ssl_ca_certs=/nowhere.pem",
        "rediss://h?ssl_certfile=/nowhere.pem",
    ],
)
def test_url_that_cannot_be_used(url: str) -> None:
    """A mistake in the URL is told when the store is opened, without the password."""
    with pytest.raises(ConfigError) as caught:
        open_store(url.replace("://", "://u:hidden@"))

    assert "hidden" not in str(caught.value)
    assert "; write " in str(caught.value)


async def test_a_server_that_may_evict_our_keys_is_told_of_once(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An evicted key is a limit that begins anew, and no error ever says so: the log does, once."""
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    for _ in range(2):
        store = opened(own_redis.url)
        await store.charge([hit()])
        await store.close()
    told = [record.message for record in caplog.records if "maxmemory-policy" in record.message]

    assert 1 == len(told)
    assert f"127.0.0.1:{own_redis.port} may evict" in told[0]
