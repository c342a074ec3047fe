"""Goal: what only counts by its response, or costs what that says, is counted so, however many ask at once. Method: a
real server, a real Redis, a hundred callers at a time; middleware and sidecar.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.core.match import Match
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import EVERYONE
from ratelimiter.core.quota import Balance, Period, Quota, Slots
from ratelimiter.core.requirement import Requirement
from ratelimiter.core.rule import RESPONSE_HEADER, CostFrom, Rule
from ratelimiter.stores.memory import MemoryStore
from tests.asgi_client import get
from tests.engine.settling.service import ALL, Service
from tests.engine.settling.ways import WAYS, ask, connected, limited, raw
from tests.proxy.wire import until

if TYPE_CHECKING:
    from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

TOLD = CostFrom(RESPONSE_HEADER, "x-ratelimit-cost")
CALLERS = 40


def brute_force(redis: RedisServer, window_ms: int = 60_000, limit: int = 5) -> Policy:
    rule = Rule("brute-force", Quota(limit, window_ms), principal=(EVERYONE,), count=frozenset({"401", "404"}))
    return Policy((rule,), store=redis.url, decision_timeout_ms=1000)


def credits_of(redis: RedisServer, quota: Balance | Period) -> Policy:
    rule = Rule("credits", quota, principal=(EVERYONE,), cost=50, cost_from=TOLD)
    return Policy((rule,), store=redis.url, dialect="trace", decision_timeout_ms=1000)


async def statuses(port: int, *targets: str) -> list[int]:
    return [answer.status for answer in await asyncio.gather(*(ask(port, target) for target in targets))]


@pytest.mark.parametrize("way", WAYS)
async def test_a_hundred_guesses_at_once(way: str, redis_server: RedisServer) -> None:
    """Five are tried, and no more: not even when they come together, as each is charged before it is tried."""
    service = Service()
    async with limited(way, service, brute_force(redis_server)) as port:
        answers = await statuses(port, *["/login?password=guess"] * 100)
        late = await statuses(port, "/login?password=right")

    assert (5, 95) == (answers.count(401), answers.count(429))
    assert [429] == late
    assert 5 == service.done["login"]


@pytest.mark.parametrize("way", WAYS)
async def test_who_does_not_wait_for_the_answer_is_counted(way: str, redis_server: RedisServer) -> None:
    """Nobody knows what it would have been, so going before it comes is no way to try for nothing."""
    service = Service()
    async with limited(way, service, brute_force(redis_server)) as port:
        for number in range(1, 6):
            async with connected(port) as client:
                client.send(raw("/silent"))
                await until(lambda: service.now.get("silent"), "it is there")

            def gone(number: int = number) -> bool:
                return service.done.get("silent") == number

            await until(gone, "it has gone")
        assert [429] == await statuses(port, "/login?password=right")


@pytest.mark.parametrize("way", WAYS)
async def test_who_knows_the_password_is_not_counted(way: str, redis_server: RedisServer) -> None:
    """A thousandfold success leaves all five failures to whoever fails next."""
    service = Service()
    async with limited(way, service, brute_force(redis_server)) as port:
        async with connected(port) as client:
            right = [(await client.exchange(raw("/login?password=right"))).status for _ in range(200)]
        wrong = [(await ask(port, "/login?password=guess")).status for _ in range(7)]

    assert [200] * 200 == right
    assert [401] * 5 + [429] * 2 == wrong


@pytest.mark.parametrize("way", WAYS)
async def test_both_at_once(way: str, redis_server: RedisServer) -> None:
    """Failures among successes are counted exactly."""
    service = Service()

    async def knocks(port: int, password: str) -> list[int]:
        answers = []
        for _ in range(15):
            answers.append((await ask(port, f"/login?password={password}")).status)
            await asyncio.sleep(0.002)
        return answers

    async with limited(way, service, brute_force(redis_server, limit=20)) as port:
        several = await asyncio.gather(*(knocks(port, word) for word in ("right", "guess") for _ in range(20)))
        last = await statuses(port, *["/login?password=guess"] * 20)  # if there was no room before
        answers = [status for some in (*several, last) for status in some]

        assert 20 == answers.count(401)
        assert service.done["login"] == 20 + answers.count(200)
        assert [429] == await statuses(port, "/login?password=right")


@pytest.mark.parametrize("way", WAYS)
async def test_the_wait_is_true(way: str, redis_server: RedisServer) -> None:
    """Who waits as he is told is let in: the failures have gone, and successes never were there."""
    async with limited(way, Service(), brute_force(redis_server, window_ms=2000)) as port:
        for _ in range(2):
            assert [401] * 5 == await statuses(port, *["/login?password=guess"] * 5)
            refused = await ask(port, "/login?password=right")
            wait_s = int(refused.value("retry-after") or 0)
            assert 1 <= wait_s <= 2
            await asyncio.sleep(wait_s)
            assert [200] * 3 == [(await ask(port, "/login?password=right")).status for _ in range(3)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quota", [Balance(2000), Period(2000, "year", credits=True)], ids=["balance", "year"])
async def test_credits_are_never_overspent(way: str, quota: Balance | Period, redis_server: RedisServer) -> None:
    """Forty callers at once, each of whose calls costs less than was reserved: what is spent is what was there, but for
    less than one more call would need; and the refusal says exactly what is missing.
    """
    service, dice = Service(), random.Random(7)  # noqa: S311 - the same each time
    refusals: list[Any] = []

    async def caller(port: int, costs: list[int]) -> None:
        for cost in costs:
            while (answer := await ask(port, f"/work?cost={cost}&ms=2")).status == 402:
                refusals.append(json.loads(answer.body))
                if service.spent > 1950:
                    return
                await asyncio.sleep(0.005)
            assert (200, str(cost)) == (answer.status, answer.value("x-ratelimit-cost"))

    async with limited(way, service, credits_of(redis_server, quota)) as port:
        async with asyncio.timeout(60):
            await asyncio.gather(*(caller(port, [dice.randint(0, 50) for _ in range(100)]) for _ in range(CALLERS)))
        last = await ask(port, "/work?cost=50")

    assert 1950 < service.spent <= 2000
    assert refusals, "they never met the limit"
    assert all(each["requested"] == 50 and 1 <= each["shortfall"] <= 50 for each in refusals)
    assert 402 == last.status
    assert {
        "error": "credit_exhausted",
        "message": "Insufficient credits to complete this request.",
        "requested": 50,
        "shortfall": 50 - (2000 - service.spent),
    } == json.loads(last.body)
    assert (last.value("retry-after") is None) == isinstance(quota, Balance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("target", "left"),
    [
        ("/work?cost=0", 60),
        ("/work?cost=7", 53),
        ("/work?cost=50", 10),
        ("/work", 10),  # it did not say: what was reserved stands
        ("/work?cost=-3", 10),
        ("/work?cost=1.5", 10),
        ("/work?cost=60", 0),  # more than was reserved: as far as it is there
        ("/work?cost=1000", 0),
    ],
)
async def test_what_a_call_costs(way: str, target: str, left: int, redis_server: RedisServer) -> None:
    """What is left afterwards, by what the next one lacks."""
    async with limited(way, Service(), credits_of(redis_server, Balance(60))) as port:
        assert 200 == (await ask(port, target)).status
        while (answer := await ask(port, "/work?cost=50")).status == 200:
            left -= 50
        assert 50 - left == json.loads(answer.body)["shortfall"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_window_is_paid_by_what_was_said(way: str, redis_server: RedisServer) -> None:
    """Less is given back, more is charged, even beyond the limit."""
    rule = Rule("work", Quota(100, 2000), principal=(EVERYONE,), cost=10, cost_from=TOLD)
    policy = Policy((rule,), store=redis_server.url, decision_timeout_ms=1000)
    async with limited(way, Service(), policy) as port, connected(port) as client:
        cheap = [(await client.exchange(raw("/work?cost=1"))).status for _ in range(40)]
        dear = (await client.exchange(raw("/work?cost=500"))).status
        begun_s = time.monotonic()
        refused = await client.exchange(raw("/work?cost=1"))
        await asyncio.sleep(int(refused.value("retry-after") or 0))
        again = (await client.exchange(raw("/work?cost=1"))).status

        assert ([200] * 40, 200, 429, 200) == (cheap, dear, refused.status, again)
        assert time.monotonic() - begun_s < 3


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_without_an_answer_costs_nothing(way: str, redis_server: RedisServer) -> None:
    """A caller who goes before the service has begun to answer gets back what was reserved, once that is known."""
    async with limited(way, Service(), credits_of(redis_server, Balance(60))) as port:
        async with connected(port) as client:
            client.send(raw("/silent"))
            while (answer := await ask(port, "/work?cost=0")).status == 200:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.005)
            assert 40 == json.loads(answer.body)["shortfall"]
        end_s = time.monotonic() + 3
        while (await ask(port, "/work?cost=0")).status == 402:
            assert time.monotonic() < end_s
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
async def test_what_we_refuse_ourselves_counts_as_well(way: str, redis_server: RedisServer) -> None:
    """A 401 of the limiter is one like the service's, and gives back what it will not cost; who only tries keys meets a
    limit.
    """
    here, work = (EVERYONE,), Match(path="/work")
    rules = (
        Rule("failures", Quota(3, 60_000), principal=here, match=work, count=frozenset({"401"})),
        Rule("slots", Slots(1, lease_ttl_ms=3_600_000), principal=here),
        Rule("credits", Balance(50), principal=here, cost=50, cost_from=TOLD),
    )
    lacking = Requirement(credentials=True, match=work)
    policy = Policy(rules, requirements=(lacking,), store=redis_server.url, decision_timeout_ms=1000)
    service = Service()
    async with limited(way, service, policy) as port:
        tried = [(await ask(port, "/work")).status for _ in range(4)]
        free = (await ask(port, "/login?password=right")).status

    assert ([401] * 3 + [429], 200) == (tried, free)
    assert {"login", ALL} == service.done.keys()


async def test_two_limiters_in_one_stack_settle_once() -> None:
    """What the outer one has charged, the inner one neither charges nor gives back."""
    policy = Policy((Rule("failures", Quota(5, 60_000), principal=(EVERYONE,), count=frozenset({"401"})),))
    store, service = MemoryStore(), Service()
    inner = RateLimitMiddleware(service, config=policy, store=store)
    outer = RateLimitMiddleware(inner, config=policy, store=store)
    answers = [await get(outer, f"/login?password={word}") for word in ["right"] * 6 + ["guess"] * 6]

    assert [200] * 6 + [401] * 5 + [429] == [answer.status for answer in answers]
