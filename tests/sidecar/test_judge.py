"""Goal: a proxy's judge says what the limiter decides, whatever it remembers. Method: the same questions to a gate that
remembers and to new ones that cannot.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.config import loader
from ratelimiter.core.request import Request
from ratelimiter.errors import ConfigError
from ratelimiter.proxy.eager import run
from ratelimiter.sidecar.judge import NEEDING_NO_TASK, LimiterJudge
from ratelimiter.stores.base import Store
from ratelimiter.stores.factory import OPENERS, store_for
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit
    from ratelimiter.proxy.interfaces import Verdict


def request(peer: str = "203.0.113.7", method: str = "GET") -> Request:
    return Request(method, b"/x", [(b"host", b"api.example")], peer)


async def asked(gate: LimiterJudge, *requests: Request) -> list[Verdict]:
    """The verdicts, as the proxy gets them: without tasks."""
    verdicts: list[Verdict | BaseException] = []
    done = asyncio.Event()

    def settle(verdict: Verdict | BaseException) -> None:
        verdicts.append(verdict)
        if len(verdicts) == len(requests):
            done.set()

    for each in requests:
        run(gate.judge(each), settle)
    await done.wait()
    for verdict in verdicts:
        if isinstance(verdict, BaseException):
            raise verdict
    return verdicts  # type: ignore[return-value]


steps = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([0, 1, 300, 700, 999, 1000, 4000])), max_size=25
)


@given(steps=steps, dialect=st.sampled_from(["problem", "plain", "trace"]))
async def test_what_is_remembered_is_what_would_be_said(steps: list[tuple[str, int]], dialect: str) -> None:
    """A refusal from memory has the figures of this moment and this principal, to the byte."""
    policy = loader.build(limit="2 per 5 seconds", dialect=dialect, principal="header:X-API-Key", environ={})
    clock, twin = FakeClock(), FakeClock()
    gate = LimiterJudge(policy, MemoryStore(clock=clock))
    store = MemoryStore(clock=twin)
    for key, later_ms in steps:
        clock.advance(later_ms)
        twin.advance(later_ms)
        one = request()._replace(headers=[(b"x-api-key", key.encode())])
        assert await asked(LimiterJudge(policy, store), one) == await asked(gate, one)


async def test_a_swap_forgets_the_words_and_keeps_the_counts() -> None:
    """The next refusal is in the new dialect, and is one."""
    first = loader.build(limit="1/hour", dialect="problem", environ={})
    gate = LimiterJudge(first, MemoryStore())
    await asked(gate, request(), request())
    gate.swap(loader.build(limit="1/hour", dialect="plain", environ={}))
    (verdict,) = await asked(gate, request())

    assert verdict.reply is not None
    assert 429 == verdict.reply.status
    assert not verdict.reply.body.startswith(b"{")


async def test_a_swap_that_cannot_be_changes_nothing() -> None:
    """The old policy stays in force, whole."""
    gate = LimiterJudge(loader.build(limit="1/hour", environ={}), MemoryStore())
    with pytest.raises(ConfigError):
        gate.swap(loader.build(limit="2/hour", store="redis://127.0.0.1:1", dialect="plain", environ={}))

    assert ("problem", 1) == (gate.presenter.dialect.name, gate.limiter.policy.rules[0].quota.limit)
    assert gate.policy is gate.limiter.policy


class Hasty(Store):
    """A store that uses what is for tasks only, as those of others may."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        async with asyncio.timeout(1):
            await asyncio.sleep(0)
            return await self._store.charge(hits)

    async def close(self) -> None:
        pass


async def test_stores_that_need_a_task_get_one() -> None:
    """Whatever is not known to do without."""
    policy = loader.build(limit="1/hour", store="redis+cluster://127.0.0.1:7000", environ={})
    verdicts = await asked(LimiterJudge(policy, Hasty()), request(), request())

    assert [None, 429] == [verdict.reply and verdict.reply.status for verdict in verdicts]
    assert set(OPENERS) > NEEDING_NO_TASK


async def test_through_redis() -> None:
    """Concurrent questions share round trips, and no more are admitted than the limit."""
    with RedisServer() as redis:
        policy = loader.build(limit="30/hour", store=redis.url, decision_timeout="5s", environ={})
        store = store_for(policy)
        verdicts = await asked(LimiterJudge(policy, store), *[request() for _ in range(100)])
        await store.close()

    assert 30 == sum(verdict.reply is None for verdict in verdicts)


@pytest.mark.parametrize(
    ("settings", "peer", "trusted"),
    [
        ({}, "127.0.0.1", False),
        ({}, None, False),
        ({"trusted_proxies": "10.0.0.0/8"}, "10.1.2.3", True),
        ({"trusted_proxies": "10.0.0.0/8"}, "::ffff:10.1.2.3", True),
        ({"trusted_proxies": "10.0.0.0/8"}, "203.0.113.7", False),
        ({"trusted_proxies": "10.0.0.0/8"}, None, True),
        ({"trusted_hops": 1}, "203.0.113.7", True),
    ],
)
def test_who_may_speak_for_others(settings: dict[str, str], peer: str | None, trusted: bool) -> None:
    """The same peers whose word is taken for a principal's address."""
    policy = loader.build(limit="1/hour", environ={}, **settings)

    assert trusted == LimiterJudge(policy, MemoryStore()).trusts(peer)
