"""Storages of `limits` as stores: on a real memcached and a real Redis, as good as several round trips can be."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimiter.core.decision import OVER_CAPACITY, OVER_LIMIT, decide
from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.receipt import LOCAL, NEVER, REMEMBERED, STORE
from ratelimiter.core.rule import OnStoreError, Rule
from ratelimiter.errors import ConfigError, Kind, StoreError, StoreFault, StoreTimeout, StoreUnavailable
from ratelimiter.stores import limits_bridge
from ratelimiter.stores.factory import open_store, store_for
from ratelimiter.stores.limits_bridge import LimitsBridge, slid
from tests.reference_store import hits_of, rule_of
from tests.stores.memcached_server import MemcachedServer
from tests.stores.redis_server import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ratelimiter.core.rule import Hit

HOUR_MS = 3_600_000  # so long that its end does not come while a test runs
TIMEOUT_MS = 2000  # generous, where it is not what the test is about: the machine may be busy
KINDS = ["memcached sliding", "memcached fixed", "redis sliding", "redis moving", "redis fixed"]


@pytest.fixture(scope="module")
def memcached() -> Iterator[MemcachedServer]:
    with MemcachedServer() as server:
        yield server


def url_of(kind: str, memcached: MemcachedServer, redis_server: RedisServer) -> str:
    server, strategy = kind.split()
    return f"limits+{memcached.url if server == 'memcached' else redis_server.url}?strategy={strategy}"


@pytest.fixture(params=KINDS)
async def store(
    request: pytest.FixtureRequest, memcached: MemcachedServer, redis_server: RedisServer
) -> AsyncIterator[LimitsBridge]:
    store = open_store(url_of(request.param, memcached, redis_server), timeout_ms=TIMEOUT_MS)
    assert isinstance(store, LimitsBridge)
    yield store
    await store.close()


def fresh(*rules: object, cost: int | None = None, principal: str = "") -> list[Hit]:
    return hits_of(*rules, cost=cost, principal=principal or uuid.uuid4().hex)  # type: ignore[arg-type]


# What holds of every strategy


async def test_counts_down_and_refuses(store: LimitsBridge) -> None:
    """A limit of 3 admits 3 and refuses the fourth; every number is in its range."""
    hits = fresh(rule_of(3, HOUR_MS))
    receipts = [await store.charge(hits) for _ in range(5)]

    assert [True, True, True, False, False] == [receipt.admitted for receipt in receipts]
    assert [1, 2, 3, 3, 3] == [receipt.tallies[0].used for receipt in receipts]
    assert [0, 0, 0] == [receipt.tallies[0].retry_after_ms for receipt in receipts[:3]]
    for receipt in receipts:
        assert 0 < receipt.tallies[0].reset_ms <= 2 * HOUR_MS
        assert abs(receipt.now_ms - time.time() * 1000) < 5000
        assert STORE == receipt.source
    assert all(0 < receipt.tallies[0].retry_after_ms <= 2 * HOUR_MS for receipt in receipts[3:])
    assert OVER_LIMIT == decide(hits, receipts[3]).reason


async def test_what_is_refused_charges_nothing(store: LimitsBridge) -> None:
    """A refusal of one rule leaves the other untouched, in whatever order they come (1, 3)."""
    tight, roomy = rule_of(1, HOUR_MS, name="tight"), rule_of(9, HOUR_MS, name="roomy")
    for order in ((tight, roomy), (roomy, tight)):
        hits = fresh(*order)
        receipts = [await store.charge(hits) for _ in range(4)]

        assert [True, False, False, False] == [receipt.admitted for receipt in receipts]
        assert [1, 1] == [tally.used for tally in receipts[-1].tallies]


async def test_cost(store: LimitsBridge) -> None:
    """Costs are charged whole or not at all; one above the limit has no moment of retry; 0 charges nothing."""
    rule, principal = rule_of(5, HOUR_MS), uuid.uuid4().hex
    told = []
    for cost in (0, 3, 3, 2, 0, 6):
        hits = fresh(rule, cost=cost, principal=principal)
        receipt = await store.charge(hits)
        told.append((receipt.admitted, receipt.tallies[0].used, receipt.tallies[0].retry_after_ms > 0))
        if cost == 6:
            assert OVER_CAPACITY == decide(hits, receipt).reason

    assert [(True, 0, False), (True, 3, False), (False, 3, True), (True, 5, False), (True, 5, False)] == told[:5]
    assert (False, 5, False) == told[5]


async def test_a_shadow_never_refuses(store: LimitsBridge) -> None:
    """A shadow rule is charged while it fits, says when it would refuse, and the request is admitted."""
    hits = fresh(rule_of(2, HOUR_MS, name="shadow", shadow=True), rule_of(9, HOUR_MS, name="roomy"))
    receipts = [await store.charge(hits) for _ in range(4)]

    assert [True] * 4 == [receipt.admitted for receipt in receipts]
    assert [(1, 1), (2, 2), (2, 3), (2, 4)] == [tuple(tally.used for tally in r.tallies) for r in receipts]
    assert receipts[3].tallies[0].retry_after_ms > 0


async def test_a_changed_limit_keeps_its_counters(store: LimitsBridge) -> None:
    """A limit that is raised or lowered goes on from what was counted (7)."""
    principal = uuid.uuid4().hex
    for _ in range(3):
        await store.charge(fresh(rule_of(3, HOUR_MS), principal=principal))

    assert 4 == (await store.charge(fresh(rule_of(9, HOUR_MS), principal=principal))).tallies[0].used
    assert not (await store.charge(fresh(rule_of(2, HOUR_MS), principal=principal))).admitted
    assert (await store.charge(fresh(rule_of(2, HOUR_MS), principal=principal, cost=0))).admitted


async def test_a_crowd_gets_no_more_than_the_limit(store: LimitsBridge) -> None:
    """Of 40 concurrent requests at a limit of 7 no more than 7 are admitted; whoever came too late is told to wait."""
    hits = fresh(rule_of(7, HOUR_MS))
    receipts = await asyncio.gather(*(store.charge(hits) for _ in range(40)))

    assert 1 <= sum(receipt.admitted for receipt in receipts) <= 7
    assert all(receipt.tallies[0].retry_after_ms > 0 for receipt in receipts if not receipt.admitted)


async def test_whoever_comes_too_late_is_told_to_wait(store: LimitsBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room was seen, then another request took it, then there was room again: refused, but never with a wait of 0, as
    that would mean that it fits. A shadow rule that comes too late refuses nothing.
    """

    async def too_late(*_: object, **__: object) -> bool:
        return False

    store._bind()
    monkeypatch.setattr(store._limiter, "hit", too_late)
    enforced, shadow = fresh(rule_of(3, HOUR_MS)), fresh(rule_of(3, HOUR_MS, shadow=True))
    refused, admitted = await store.charge(enforced), await store.charge(shadow)

    assert [False, True] == [refused.admitted, admitted.admitted]
    assert OVER_LIMIT == decide(enforced, refused).reason
    assert refused.tallies[0].retry_after_ms > 0


async def test_admits_again(store: LimitsBridge) -> None:
    """Whoever comes back when he is told to is admitted soon: within two windows and what a busy machine takes."""
    hits = fresh(rule_of(2, 1000))
    while (receipt := await store.charge(hits)).admitted:
        pass
    end_s = time.monotonic() + 4
    while not receipt.admitted:
        assert time.monotonic() < end_s
        await asyncio.sleep(receipt.tallies[0].retry_after_ms / 1000)
        receipt = await store.charge(hits)


async def test_works_again_after_close(store: LimitsBridge) -> None:
    """A closed store may be used again, and knows what was counted."""
    hits = fresh(rule_of(1, HOUR_MS))
    assert (await store.charge(hits)).admitted
    await store.close()

    assert not (await store.charge(hits)).admitted
    await store.close()
    await store.close()


def test_serves_one_event_loop_after_another(memcached: MemcachedServer, redis_server: RedisServer) -> None:
    """A store that outlives its event loop, as in tests of applications, opens its connections anew."""
    for kind in KINDS:
        store = open_store(url_of(kind, memcached, redis_server), timeout_ms=TIMEOUT_MS)
        hits = fresh(rule_of(1, HOUR_MS))

        async def ask(store: LimitsBridge = store, hits: list[Hit] = hits) -> bool:  # type: ignore[assignment]
            try:
                return (await store.charge(hits)).admitted
            finally:
                await store.close()

        assert [True, False] == [asyncio.run(ask()) for _ in range(2)]


# What can go wrong


@pytest.mark.parametrize("scheme", ["memcached", "redis"])
async def test_nobody_there(scheme: str) -> None:
    """A refused connection is a matter of availability."""
    store = open_store(f"limits+{scheme}://127.0.0.1:{free_port()}", timeout_ms=TIMEOUT_MS)

    with pytest.raises(StoreUnavailable) as caught:
        await store.charge(fresh(rule_of(1, HOUR_MS)))
    assert Kind.UNREACHABLE == caught.value.kind


@pytest.mark.parametrize("scheme", ["memcached", "redis"])
async def test_the_deadline_holds(scheme: str) -> None:
    """A server that stands still is answered for at the deadline, and when it goes on nobody gets another's answer."""
    with MemcachedServer() if scheme == "memcached" else RedisServer() as server:
        store = open_store(f"limits+{server.url}", timeout_ms=100)
        used = {cost: fresh(rule_of(100, HOUR_MS), cost=cost) for cost in range(1, 20)}
        for hits in used.values():
            await store.charge(hits)
        server.freeze()
        try:
            before_s = time.monotonic()
            answers = await asyncio.gather(*(store.charge(hits) for hits in used.values()), return_exceptions=True)
            took_s = time.monotonic() - before_s
        finally:
            server.thaw()
        assert {StoreTimeout} == {type(answer) for answer in answers}
        assert took_s < 0.1 + 0.4
        end_s = time.monotonic() + 5
        while True:
            try:
                now = {
                    cost: (await store.charge([hits[0]._replace(cost=0)])).tallies[0].used
                    for cost, hits in used.items()
                }
                break
            except StoreError:
                assert time.monotonic() < end_s
        assert all(seen in (cost, 2 * cost) for cost, seen in now.items()), now
        await store.close()


async def test_a_foreign_value_is_a_fault(redis_server: RedisServer) -> None:
    """A key that holds somebody else's value is a mistake, and no outage."""
    hits = fresh(rule_of(1, HOUR_MS))
    with redis_server.client() as client:
        client.set(b"LIMITS:" + hits[0].key, b"not a list")
    store = open_store(f"limits+{redis_server.url}?strategy=moving", timeout_ms=TIMEOUT_MS)

    with pytest.raises(StoreFault):
        await store.charge(hits)
    await store.close()


async def test_a_wrong_password_is_a_matter_of_configuration() -> None:
    """Whom the server does not let in is told so, and the password is not repeated."""
    with RedisServer(requirepass="sesame") as server:
        store = open_store(f"limits+{server.url.replace('://', '://:hidden@')}", timeout_ms=TIMEOUT_MS)
        with pytest.raises(StoreError) as caught:
            await store.charge(fresh(rule_of(1, HOUR_MS)))
        await store.close()

    assert Kind.AUTHENTICATION == caught.value.kind
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "limits+memcached://127.0.0.1:1?strategy=moving",
            "'moving' is not a strategy of memcached; write sliding or fixed",
        ),
        ("limits+redis://127.0.0.1:1?strategy=swift", "'swift' is not a strategy; write sliding, fixed, moving"),
        (
            "limits+memcached://hidden",
            "what follows limits+memcached:// is not what limits wants; write its host and port",
        ),
        ("limits+memory://", "'limits+memory://' does not begin the URL of a store"),
    ],
)
def test_a_url_that_will_not_do(url: str, shown: str) -> None:
    """What is wrong with a URL is said at the start, and no password with it."""
    with pytest.raises(ConfigError) as caught:
        open_store(url)

    assert str(caught.value).startswith(f"store: {shown}")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "client"), limits_bridge.SCHEMES.items())
def test_a_client_that_is_not_installed(scheme: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What must be installed beside `limits` is said at the start."""
    monkeypatch.setattr(limits_bridge, "find_spec", lambda name: None)

    with pytest.raises(ConfigError) as caught:
        open_store(f"limits+{scheme}://u:hidden@127.0.0.1:1")
    expected = f"needs the package {client}, which is not installed; write pip install {client}"
    assert f"store: limits+{scheme}:// {expected}" == str(caught.value)


def test_a_window_is_whole_seconds(memcached: MemcachedServer) -> None:
    """A policy that these stores cannot keep is refused before the first request."""
    policy = Policy((rule_of(1, 1500),), store=f"limits+{memcached.url}")

    with pytest.raises(ConfigError, match="store: a window of 1500 ms is not a whole number of seconds"):
        store_for(policy)


async def test_is_guarded_and_remembered(memcached: MemcachedServer) -> None:
    """Behind a limiter it is a shared store like any other: it always answers, and its refusals are remembered."""
    rule = replace(rule_of(1, HOUR_MS), on_store_error=OnStoreError.LOCAL)
    up, down = (
        store_for(Policy((rule,), store=f"limits+{url}", decision_timeout_ms=TIMEOUT_MS))
        for url in (memcached.url, f"memcached://127.0.0.1:{free_port()}")
    )
    hits = fresh(rule)

    assert [STORE, STORE, REMEMBERED] == [(await up.charge(hits)).source for _ in range(3)]
    assert [LOCAL, LOCAL] == [(await down.charge(hits)).source for _ in range(2)]
    await up.close()
    await down.close()


# The arithmetic of two counters


@settings(max_examples=1000)
@given(
    st.integers(1, 50),
    st.integers(1, 60),
    st.integers(0, 60),
    st.integers(0, 60),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 60),
)
def test_two_counters_let_go_when_they_are_said_to(  # noqa: PLR0917 - drawn by hypothesis
    limit: int, window_s: int, before: int, now: int, elapsed: float, cost: int
) -> None:
    """At the announced moment there is room, two ms before there is not; before reset nothing changes."""
    left_s = (1 - elapsed) * window_s

    def used_at(after_s: float) -> int:
        # From the same `left_s` as what is tested: reckoned from the other end a whole number may come out just below.
        if after_s < left_s:
            return int(before * (left_s - after_s) / window_s) + now
        return int(now * max(0.0, window_s - (after_s - left_s)) / window_s)

    hit = hits_of(rule_of(limit, window_s * 1000), cost=cost)[0]
    look = slid(hit, before, left_s, now, left_s)

    assert used_at(0) == look.used
    if cost > limit:
        assert look.retry_after_ms == NEVER
    elif look.used + cost <= limit:
        assert 0 == look.retry_after_ms
    else:
        assert look.retry_after_ms > 0
        assert used_at(look.retry_after_ms / 1000) + cost <= limit
        assert look.retry_after_ms <= 2 or used_at((look.retry_after_ms - 2) / 1000) + cost > limit
    assert (look.reset_ms > 0) == (look.used > 0)
    if look.reset_ms > 2:
        assert used_at((look.reset_ms - 2) / 1000) == look.used


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (Rule("in-flight", Slots(5)), "in-flight is a limit of another kind"),
        (Rule("credits", Balance(5)), "write redis:// or memory://"),
        (Rule("monthly", Period(5, "month")), "monthly is a limit of another kind"),
        (Rule("smooth", Bucket(5, 1, 1000)), "smooth is a limit of another kind"),
        (Rule("failures", Quota(5, 1000), count=frozenset({"401"})), "takes nothing back"),
    ],
)
def test_what_the_bridge_cannot_keep_is_refused(rule: Rule, problem: str) -> None:
    """Kinds other than windows, and what is settled later, are refused when the store is opened."""
    with pytest.raises(ConfigError, match=problem):
        open_store("limits+memcached://127.0.0.1:1").check(Policy((rule,)))
