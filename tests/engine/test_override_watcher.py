"""Goal: what is ordered is applied everywhere within a second, and stands while the store is out. Method: limiters on
the embedded store with a clock as argument, and on real servers.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.admin.expiry import Expiry
from ratelimiter.admin.operator import Operator
from ratelimiter.core.decision import BLOCKED, OVER_LIMIT, SUSPENDED, WITHIN_LIMIT
from ratelimiter.core.overrides import Override
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import Source
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Rule
from ratelimiter.engine import override_watcher
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.override_watcher import STEP, OverrideWatcher, override_from
from ratelimiter.stores.factory import open_store, store_for
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.stores.overrides import OverrideStore, Snapshot
from ratelimiter.testing import FakeClock
from tests.requesting import request
from tests.stores.redis.test_store import PATIENT_MS
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ratelimiter.core.request import Request

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

KEY = Source("header", "x-api-key")
RULE = Rule("rule", Quota(2, 60_000), principal=(KEY,))
ALICE = "header:X-API-Key=alice"


def of(key: str = "alice") -> Request:
    return request("/", headers=[("x-api-key", key)])


async def reasons(limiter: Limiter, count: int, key: str = "alice") -> list[str]:
    return [(await limiter.judge(of(key))).decision.reason for _ in range(count)]


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


class TestInOneProcess:
    """On the embedded store, applied at once."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def limiter(self, clock: FakeClock) -> Limiter:
        return Limiter(Policy((RULE,)), MemoryStore(clock=clock), clock=clock)

    @pytest.fixture
    def standing(self, limiter: Limiter, clock: FakeClock) -> OverrideWatcher:
        return OverrideWatcher(limiter, clock=clock)

    @pytest.fixture
    def operator(self, limiter: Limiter) -> Operator:
        return Operator(lambda: limiter.policy, limiter.store, "test")

    async def test_without_a_timer(self, limiter: Limiter, standing: OverrideWatcher, operator: Operator) -> None:
        """What has no end needs nobody to look."""
        assert not standing.needs_time
        await operator.block(ALICE)
        assert [BLOCKED] == await reasons(limiter, 1)
        await operator.unblock(ALICE)
        assert [WITHIN_LIMIT] == await reasons(limiter, 1)
        assert standing._task is None

    async def test_ends(
        self, limiter: Limiter, standing: OverrideWatcher, operator: Operator, clock: FakeClock
    ) -> None:
        """What has an end ends by itself."""
        await operator.block(ALICE, Expiry(for_ms=60_000))
        assert standing.needs_time
        clock.advance(59_999)
        await standing.poll()
        assert [BLOCKED] == await reasons(limiter, 1)
        clock.advance(1)
        await standing.poll()
        assert [WITHIN_LIMIT] == await reasons(limiter, 1)
        await standing.stop()

    async def test_reset_keeps_nothing(self, limiter: Limiter, standing: OverrideWatcher, operator: Operator) -> None:
        """After a reset all of the limit is there, and of others nothing is forgotten."""
        assert [WITHIN_LIMIT, WITHIN_LIMIT, OVER_LIMIT] == await reasons(limiter, 3)
        assert [WITHIN_LIMIT, WITHIN_LIMIT, OVER_LIMIT] == await reasons(limiter, 3, "bob")
        await operator.reset(ALICE)
        assert [WITHIN_LIMIT, WITHIN_LIMIT, OVER_LIMIT] == await reasons(limiter, 3)
        assert [OVER_LIMIT] == await reasons(limiter, 1, "bob")

    async def test_shadow(self, limiter: Limiter, standing: OverrideWatcher, operator: Operator) -> None:
        """No rule refuses, and what is counted is what would be counted otherwise."""
        await operator.shadow(on=True)
        assert [WITHIN_LIMIT, WITHIN_LIMIT, SUSPENDED, SUSPENDED] == await reasons(limiter, 4)
        decision, hits, *_ = await limiter.judge(of())
        assert (True, ()) == (decision.allowed, hits)
        assert decision.outcomes[0].rule.shadow
        assert decision.binding == decision.outcomes[0]  # of which clients are told, as ever
        await operator.shadow(on=False)
        assert [OVER_LIMIT] == await reasons(limiter, 1)

    async def test_another_policy_has_orders_of_its_own(
        self, limiter: Limiter, standing: OverrideWatcher, operator: Operator
    ) -> None:
        """A policy of another name does not obey them; one of the same name does, with other rules, too."""
        await operator.set_override(ALICE, rule="rule", limit="5/minute")
        limiter.swap(Policy((Rule("rule", Quota(1, 60_000), principal=(KEY,)),)))
        await standing.poll()
        assert 5 == (await limiter.judge(of())).decision.outcomes[0].rule.quota.limit
        limiter.swap(Policy((RULE,), name="other"))
        await standing.poll()
        assert 2 == (await limiter.judge(of())).decision.outcomes[0].rule.quota.limit

    async def test_what_makes_no_sense_is_left_out(
        self, limiter: Limiter, standing: OverrideWatcher, operator: Operator, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An order about a rule that is no longer there, or that a newer version wrote, is told of once."""
        book = limiter.store.override_store("default")
        assert book is not None
        for field, text in (
            ("override:ab:gone", '{"who": "ab", "rule": "gone", "limit": "unlimited"}'),
            ("override:ab:x", "[]"),
            ("override:ab:y", "no json"),
            ("override:ab:z", '{"who": "ab", "limit": "5 parsecs"}'),
            ("novelty:ab", "{}"),
        ):
            await book.write("{", field, (0, text))
        await operator.block(ALICE)

        assert [BLOCKED] == await reasons(limiter, 1)
        assert 5 == len([record for record in caplog.records if record.name == "ratelimiter.orders"])

    async def test_ends_of_the_policy_s_overrides(self, clock: FakeClock) -> None:
        """An override of the file ends without anybody's order."""
        override = Override(frozenset({_digest("alice")}), rule="rule", quota=Quota(9, 60_000), until_ms=clock() + 1000)
        limiter = Limiter(Policy((RULE,), overrides=(override,)), MemoryStore(clock=clock), clock=clock)
        standing = OverrideWatcher(limiter, clock=clock)
        assert standing.needs_time
        assert 9 == limiter.hits(of())[0].quota.limit
        clock.advance(1000)
        await standing.poll()
        assert 2 == limiter.hits(of())[0].quota.limit
        assert not standing.needs_time

    async def test_who_lets_go_of_the_limiter(self) -> None:
        """The timer holds nobody alive."""
        limiter = Limiter(Policy((RULE,), store="redis://127.0.0.1:1/0"), MemoryStore())
        standing = OverrideWatcher(limiter, poll_s=0.01)
        standing.start()
        task, gone = standing._task, weakref.ref(limiter)
        del limiter
        gc.collect()
        assert task is not None
        await asyncio.wait_for(task, 5)
        assert gone() is None


def _digest(key: str) -> str:
    from ratelimiter.core.planner import reader_for

    return reader_for(Policy((RULE,))).principal("header:x-api-key", key.encode()).digest


def policy_at(url: str, **more: Any) -> Policy:
    return Policy((RULE,), store=url, decision_timeout_ms=PATIENT_MS, **more)


async def until(condition: Any, within_s: float) -> float:
    """Seconds until *condition*, a coroutine function, gives true."""
    begun_s = time.monotonic()
    while not await condition():
        assert time.monotonic() - begun_s < within_s, f"not within {within_s} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun_s


async def test_within_a_second_elsewhere(redis_server: RedisServer) -> None:
    """Orders given over one connection are applied over another, and taken back; a cached refusal does not outlive a
    reset.
    """
    policy = policy_at(redis_server.url)
    limiter = Limiter(policy, store_for(policy))
    standing = OverrideWatcher(limiter)
    standing.start()
    store = open_store(redis_server.url, timeout_ms=PATIENT_MS)
    operator = Operator(lambda: policy, store, "test")

    async def says(*expected: str) -> bool:
        return (await limiter.judge(of())).decision.reason in expected

    for _ in range(3):
        assert await says(WITHIN_LIMIT, OVER_LIMIT)
    for order, reason in (
        (operator.reset(ALICE), WITHIN_LIMIT),
        (operator.block(ALICE), BLOCKED),
        (operator.unblock(ALICE), OVER_LIMIT),
        (operator.set_override(ALICE, limit="9/minute"), WITHIN_LIMIT),
        (operator.remove_override(ALICE), OVER_LIMIT),
        (operator.shadow(on=True), SUSPENDED),
        (operator.shadow(on=False), OVER_LIMIT),
    ):
        await order
        await until(lambda reason=reason: says(reason), 1.0)
        while reason == WITHIN_LIMIT and await says(WITHIN_LIMIT):
            pass
    await standing.stop()
    await limiter.close()
    await store.close()


async def test_while_the_store_is_out(caplog: pytest.LogCaptureFixture) -> None:
    """The last orders stand, but for those that end; one line says so, and one that it is over."""
    caplog.set_level(logging.INFO, logger="ratelimiter.orders")
    with RedisServer() as server:
        policy = policy_at(server.url, local_share=1.0)
        limiter = Limiter(policy, store_for(policy))
        standing = OverrideWatcher(limiter)
        store = open_store(server.url, timeout_ms=PATIENT_MS)
        operator = Operator(lambda: policy, store, "test")
        await operator.block(ALICE)
        await operator.block("header:X-API-Key=bob", Expiry(for_ms=700))
        await standing.poll()
        server.kill()
        await standing.poll()
        assert [BLOCKED] == await reasons(limiter, 1)
        assert [BLOCKED] == await reasons(limiter, 1, "bob")

        async def bob_is_in() -> bool:
            await standing.poll()
            return [WITHIN_LIMIT] == await reasons(limiter, 1, "bob")

        await until(bob_is_in, 5)
        assert [BLOCKED] == await reasons(limiter, 1)
        assert 1 == len([record for record in caplog.records if record.name == "ratelimiter.orders"])
        server.start()  # with nothing in it: what was ordered is gone with it

        async def alice_is_in() -> bool:
            await standing.poll()
            return BLOCKED not in await reasons(limiter, 1)

        await until(alice_is_in, 5)
        lines = [record.getMessage() for record in caplog.records if record.name == "ratelimiter.orders"]
        assert [("cannot be read" in lines[0]), ("can be read again" in lines[-1])] == [True, True]
        await limiter.close()
        await store.close()


async def test_a_user_that_may_not_read_them(caplog: pytest.LogCaptureFixture) -> None:
    """A server whose ACL is from before is no worse for it: limits are kept, and one line says what is missing."""
    with RedisServer() as server:
        with server.client() as client:
            commands = ["+evalsha", "+eval", "+get", "+set", "+time"]
            client.acl_setuser("limited", enabled=True, nopass=True, commands=commands, keys=["rl1:*"])
        policy = policy_at(server.url.replace("redis://", "redis://limited:x@"))
        limiter = Limiter(policy, store_for(policy))
        standing = OverrideWatcher(limiter)
        for _ in range(3):
            await standing.poll()

        assert [WITHIN_LIMIT, WITHIN_LIMIT, OVER_LIMIT] == await reasons(limiter, 3)
        assert 1 == len(caplog.records)
        assert "+hget +hscan" in caplog.text
        await limiter.close()


async def test_ends_are_the_store_s_moments(redis_server: RedisServer) -> None:
    """A process whose clock is an hour off obeys as long as all others."""
    policy = policy_at(redis_server.url)
    wrong = FakeClock(int(time.time() * 1000) - 3_600_000)
    limiter = Limiter(policy, store_for(policy), clock=wrong)
    standing = OverrideWatcher(limiter, clock=wrong)
    store = open_store(redis_server.url, timeout_ms=PATIENT_MS)
    await Operator(lambda: policy, store, "test").block(ALICE, Expiry(for_ms=30_000))
    await standing.poll()
    assert [BLOCKED] == await reasons(limiter, 1)
    wrong.advance(29_000)
    await standing.poll()
    assert [BLOCKED] == await reasons(limiter, 1)
    wrong.advance(1100)
    await standing.poll()
    assert [WITHIN_LIMIT] == await reasons(limiter, 1)
    await limiter.close()
    await store.close()


async def test_values_are_nowhere_in_the_store(redis_server: RedisServer) -> None:
    """Of an exact principal the store holds nothing but the digest (8)."""
    policy = policy_at(redis_server.url)
    store = open_store(redis_server.url, timeout_ms=PATIENT_MS)
    operator = Operator(lambda: policy, store, "test")
    named = "header:X-API-Key=unmistakable"
    await operator.block(named)
    await operator.set_override(named, limit="unlimited")
    await operator.reset(named)
    with redis_server.client() as client:
        held = [
            *client.keys(),
            *client.hgetall("rl1:{orders}:default").items(),
            *client.lrange("rl1:{orders}:default:audit", 0, -1),
        ]
    assert len(held) > 5
    assert "unmistakable" not in repr(held)
    assert "unmistakable" not in json.dumps(await operator.told())
    await store.close()


class Many(OverrideStore):
    """An override store with many overrides, of which some can be changed."""

    shared = True

    def __init__(self, number: int) -> None:
        entries = [{"who": f"{n:032x}", "limit": "9/minute"} for n in range(number)]
        self.fields = {f"override:{entry['who']}:": (0, json.dumps(entry)) for entry in entries}
        self.changes = 1

    async def version(self) -> str:
        return str(self.changes)

    async def now_ms(self) -> int:
        return 0

    async def read(self) -> Snapshot:
        return Snapshot(str(self.changes), 0, dict(self.fields))

    async def write(self, told: str, field: str = "", value: tuple[int, str] | None = None) -> str:
        raise NotImplementedError

    async def told(self, number: int) -> list[str]:
        raise NotImplementedError

    async def erase(self, keys: Sequence[bytes]) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("number", [10_000, 100_000])
async def test_many_overrides_delay_no_request(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are built a few at a time, with the event loop turning in between; then only what has changed is parsed, and
    nothing if nothing has. Counted in turns and calls, not in time.
    """
    parsed = 0

    def counted(entry: dict[str, Any], until_ms: int) -> Override:
        nonlocal parsed
        parsed += 1
        return override_from(entry, until_ms)

    monkeypatch.setattr(override_watcher, "override_from", counted)
    store = Many(number)
    limiter = Limiter(Policy((Rule("minute", Quota(3, 60_000)),)), MemoryStore())
    monkeypatch.setattr(limiter.store, "override_store", lambda _: store)
    watcher = OverrideWatcher(limiter)
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(turning())
    await watcher.poll()
    assert number == parsed == len(limiter.overrides.overrides)
    assert turns >= number // STEP

    await watcher.poll()
    assert number == parsed
    field = next(iter(store.fields))
    store.fields[field] = (0, json.dumps({"who": "f" * 32, "limit": "8/minute"}))
    store.changes += 1
    await watcher.poll()
    task.cancel()

    assert number + 1 == parsed
    assert 8 in {override.quota.limit for override in limiter.overrides.overrides if isinstance(override.quota, Quota)}
