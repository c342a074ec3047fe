"""A guarded store always answers, and never admits more than it says."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.core.decision import OVER_CAPACITY, OVER_LIMIT, STORE_ERROR, WITHIN_LIMIT, Decision, decide
from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import AnyQuota, Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, LOCAL, REMEMBERED, STORE, Receipt
from ratelimiter.core.rule import Hit, OnStoreError, Rule
from ratelimiter.core.settlement import Settlement, settlement_of, topup
from ratelimiter.errors import (
    Kind,
    StoreError,
    StoreFault,
    StoreMisconfigured,
    StoreOverloaded,
    StoreTimeout,
    StoreUnavailable,
)
from ratelimiter.stores.base import Store
from ratelimiter.stores.circuit_breaker import FAILURES_MAX, PROBE_MS, CircuitBreaker
from ratelimiter.stores.fallback import COME_BACK_MS, WARM_EVERY, FallbackStore
from ratelimiter.stores.last_seen import LastSeen
from ratelimiter.stores.local_share import first_window_limit, local_limit, local_quota, outage_limit
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.stores.outage_log import OutageLog
from ratelimiter.testing import FakeClock
from tests.asgi_client import get
from tests.reference_store import START_MS, hits_of, rule_of, rule_with

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

MINUTE_MS = 60_000
BUCKETS = st.builds(
    lambda limit, refill, window_ms: Bucket(
        min(limit, max(1, 2**40 // window_ms), max(1, refill // 9)), refill, window_ms
    ),
    st.integers(1, 10**9),
    st.integers(1, 10**6),
    st.integers(1, 366 * 86_400_000),
)
WHAT_THEN = "each rule does what its on_store_error says"
AVAILABILITY = [StoreUnavailable("refused"), StoreTimeout("late"), StoreMisconfigured("who are you?")]


class Frail(Store):
    """A store that fails while *error* is set."""

    def __init__(self, clock: FakeClock) -> None:
        self.behind = MemoryStore(clock=clock)
        self.error: BaseException | None = None
        self.asked = 0
        self.settled = 0
        self.closed = 0

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.behind.charge_now(hits)

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        self.settled += 1
        if self.error is not None:
            raise self.error
        self.behind.settle_now(settlements)

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def store(clock: FakeClock) -> Frail:
    return Frail(clock)


@pytest.fixture
def guarded(store: Frail, clock: FakeClock) -> FallbackStore:
    return guard(store, clock)


def guard(store: Frail, clock: FakeClock, **settings: float) -> FallbackStore:
    return FallbackStore(store, local=MemoryStore(clock=clock), breaker=CircuitBreaker(clock=clock), **settings)  # type: ignore[arg-type]


def ruled(limit: int, mode: str = "local", *, name: str = "", burst: int = 0, shadow: bool = False) -> Rule:
    rule = rule_of(limit, MINUTE_MS, name=name or mode, burst=burst, shadow=shadow)
    return replace(rule, on_store_error=OnStoreError(mode))


async def decided(store: FallbackStore, hits: Sequence[Hit]) -> Decision:
    return decide(hits, await store.charge(hits))


async def break_down(guarded: FallbackStore, store: Frail) -> None:
    """Have the breaker open, at the expense of a principal of its own."""
    store.error = StoreTimeout("late")
    for _ in range(FAILURES_MAX):
        await guarded.charge(hits_of(ruled(1000, "allow"), principal="somebody else"))
    assert guarded.degraded


# While the store answers


async def test_passes_on_what_the_store_says(guarded: FallbackStore, store: Frail) -> None:
    """A healthy store's receipts are passed on as they are."""
    hits, reference = hits_of(ruled(3), ruled(2, "deny")), MemoryStore(clock=store.behind.now_ms)

    assert [reference.charge_now(hits) for _ in range(5)] == [await guarded.charge(hits) for _ in range(5)]
    assert not guarded.degraded
    assert {} == guarded.faults


async def test_the_way_in_need_is_kept_warm(store: Frail, clock: FakeClock) -> None:
    """One healthy admission in 64 is made locally as well, so that an outage finds code that works. No refusal is,
    so that nobody is charged there for what was refused.
    """
    local = MemoryStore(clock=clock)
    guarded = FallbackStore(store, local=local)
    hits = hits_of(ruled(10 * WARM_EVERY))
    for _ in range(20 * WARM_EVERY):
        await guarded.charge(hits)

    assert 10 == local.charge_now([hits[0]._replace(cost=0)]).tallies[0].used


async def test_close_closes_the_store(guarded: FallbackStore, store: Frail) -> None:
    """Closing a guard lets go of what it guards."""
    await guarded.close()

    assert 1 == store.closed


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan")])
def test_a_share_is_a_part(store: Frail, share: float) -> None:
    """A share of nothing, of less or of more than all is refused at the door."""
    with pytest.raises(ValueError, match="local_share must be above 0 and at most 1"):
        FallbackStore(store, local_share=share)


# The breaker


@pytest.mark.parametrize("error", AVAILABILITY, ids=lambda error: type(error).__name__)
async def test_opens_after_failures_in_a_row(guarded: FallbackStore, store: Frail, error: StoreError) -> None:
    """After five failures in a row the store is left alone."""
    hits = hits_of(ruled(1000))
    store.error = error
    for _ in range(FAILURES_MAX - 1):
        await guarded.charge(hits)
    assert not guarded.degraded
    for _ in range(100):
        await guarded.charge(hits)

    assert guarded.degraded
    assert FAILURES_MAX == store.asked
    assert {error.kind: FAILURES_MAX} == guarded.faults


async def test_one_probe_per_interval_under_a_thousand_callers(
    guarded: FallbackStore, store: Frail, clock: FakeClock
) -> None:
    """While the store is out, a thousand concurrent callers ask it once in each interval, and all get their answer."""
    await break_down(guarded, store)
    hits, asked = hits_of(ruled(500)), store.asked
    clock.advance(PROBE_MS - 1)
    for expected in (0, 1, 1, 2):
        receipts = await asyncio.gather(*(guarded.charge(hits) for _ in range(1000)))
        assert expected == store.asked - asked
        assert {LOCAL} == {receipt.source for receipt in receipts}
        clock.advance(1 if expected != 1 else PROBE_MS // 2)


async def test_closes_at_the_first_success(guarded: FallbackStore, store: Frail, clock: FakeClock) -> None:
    """Within one interval of the fault's end the store decides again, for everybody."""
    await break_down(guarded, store)
    store.error = None
    hits = hits_of(ruled(5))
    assert LOCAL == (await guarded.charge(hits)).source
    clock.advance(PROBE_MS)
    receipts = await asyncio.gather(*(guarded.charge(hits) for _ in range(100)))

    assert {STORE} == {receipt.source for receipt in receipts}
    assert 5 == sum(receipt.admitted for receipt in receipts)
    assert not guarded.degraded


@pytest.mark.parametrize(
    "error",
    [StoreOverloaded("full"), StoreFault("WRONGTYPE"), ZeroDivisionError()],
    ids=lambda error: type(error).__name__,
)
async def test_what_says_nothing_about_the_store_never_opens_it(
    guarded: FallbackStore, store: Frail, error: Exception
) -> None:
    """Our own overload and anybody's mistake are answered without the store, and the next caller asks it again."""
    store.error = error
    receipts = [await guarded.charge(hits_of(ruled(1000))) for _ in range(100)]

    assert {LOCAL} == {receipt.source for receipt in receipts}
    assert 100 == store.asked
    assert not guarded.degraded
    assert {getattr(error, "kind", "ZeroDivisionError"): 100} == guarded.faults


@pytest.mark.parametrize("error", [StoreOverloaded("full"), StoreFault("WRONGTYPE")], ids=lambda e: type(e).__name__)
async def test_a_probe_that_proves_nothing_does_not_put_off_the_recovery(
    guarded: FallbackStore, store: Frail, clock: FakeClock, error: Exception
) -> None:
    """Somebody whose requests are mistakes cannot use up the probes of all the others."""
    await break_down(guarded, store)
    clock.advance(PROBE_MS)
    store.error = error
    await guarded.charge(hits_of(ruled(1)))
    assert guarded.degraded
    store.error = None

    assert STORE == (await guarded.charge(hits_of(ruled(1)))).source


async def test_cancellation_is_no_failure(guarded: FallbackStore, store: Frail, clock: FakeClock) -> None:
    """A caller that leaves is let go, counts as nothing, and does not take the probe along."""
    store.error = asyncio.CancelledError()
    for _ in range(2 * FAILURES_MAX):
        with pytest.raises(asyncio.CancelledError):
            await guarded.charge(hits_of(ruled(1)))
    assert not guarded.degraded
    assert {} == guarded.faults
    await break_down(guarded, store)
    clock.advance(PROBE_MS)
    store.error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await guarded.charge(hits_of(ruled(1)))
    store.error = None

    assert STORE == (await guarded.charge(hits_of(ruled(1)))).source


# What each rule says


async def test_local_is_the_window(guarded: FallbackStore, store: Frail, clock: FakeClock) -> None:
    """Without the store a rule that says local is the same window, in this process."""
    store.error = StoreTimeout("late")
    hits, reference = hits_of(ruled(3, burst=2)), MemoryStore(clock=clock)
    for _ in range(50):
        assert reference.charge_now(hits)._replace(source=LOCAL) == await guarded.charge(hits)
        clock.advance(7000)


async def test_allow_admits(guarded: FallbackStore, store: Frail) -> None:
    """Rules that say allow admit, and charge nobody."""
    store.error = StoreTimeout("late")
    decisions = [await decided(guarded, hits_of(ruled(3, "allow"))) for _ in range(100)]

    assert {(True, WITHIN_LIMIT, FAIL_OPEN, 3)} == {
        (d.allowed, d.reason, d.source, d.outcomes[0].remaining) for d in decisions
    }


async def test_deny_refuses(guarded: FallbackStore, store: Frail) -> None:
    """A rule that says deny refuses as what it is: an error of the store, and nobody's limit."""
    store.error = StoreTimeout("late")

    assert Decision(False, STORE_ERROR, START_MS, (), None, FAIL_CLOSED) == await decided(
        guarded, hits_of(ruled(3, "deny"))
    )


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (["allow", "local", "deny"], [FAIL_CLOSED] * 3),
        (["allow", "deny"], [FAIL_CLOSED] * 3),
        (["local", "deny"], [FAIL_CLOSED] * 3),
        (["allow", "local"], [FAIL_OPEN, FAIL_OPEN, LOCAL]),
        (["local", "local"], [LOCAL] * 3),
        (["allow", "allow"], [FAIL_OPEN] * 3),
    ],
)
async def test_of_mixed_modes(store: Frail, clock: FakeClock, modes: list[str], expected: list[str]) -> None:
    """One rule that says deny refuses the request and charges nobody; else those that say local decide. Where a rule
    let the request go, that is what is said of it.
    """
    guarded = guard(store, clock)
    store.error = StoreTimeout("late")
    hits = hits_of(*(ruled(2, mode, name=f"{mode}-{index}") for index, mode in enumerate(modes)))
    receipts = [await guarded.charge(hits) for _ in range(3)]

    assert expected == [receipt.source for receipt in receipts]
    assert [FAIL_CLOSED not in expected] * 2 == [receipt.admitted for receipt in receipts[:2]]
    assert (expected[2] == FAIL_OPEN) == receipts[2].admitted
    peek = [hit._replace(cost=0) for hit in hits if hit.rule.on_store_error is OnStoreError.LOCAL]
    if peek:
        assert (0 if FAIL_CLOSED in expected else 2) == guarded._local.charge_now(peek).tallies[0].used


async def test_local_rules_are_charged_all_or_none(guarded: FallbackStore, store: Frail) -> None:
    """When one local rule refuses, the others are not charged (1, 3), and the refusal names the one that refuses."""
    store.error = StoreTimeout("late")
    tight, roomy, allow = ruled(1, name="tight"), ruled(9, name="roomy"), ruled(5, "allow")
    hits = hits_of(roomy, allow, tight)
    first, second = await decided(guarded, hits), await decided(guarded, hits)

    assert [True, False] == [first.allowed, second.allowed]
    assert [8, 5, 0] == [outcome.remaining for outcome in second.outcomes]
    assert second.binding is not None
    assert ("tight", OVER_LIMIT, MINUTE_MS) == (second.binding.rule.name, second.reason, second.retry_after_ms)


@pytest.mark.parametrize("mode", ["allow", "deny", "local"])
async def test_a_shadow_never_refuses(guarded: FallbackStore, store: Frail, mode: str) -> None:
    """Whatever a shadow rule says should happen without the store, it refuses nothing."""
    store.error = StoreTimeout("late")
    for hits in (hits_of(ruled(1, mode, shadow=True)), hits_of(ruled(1, mode, shadow=True), ruled(1000, name="roomy"))):
        assert all([(await decided(guarded, hits)).allowed for _ in range(10)])


# The share


@pytest.mark.parametrize(
    ("limit", "share", "expected"),
    [
        *[(10, 1.0, 10), (10, 0.5, 5), (10, 0.25, 3), (10, 0.01, 1), (1, 0.001, 1), (3, 1 / 3, 1)],
        *[(70, 0.1, 7), (1000, 0.07, 70), (10**9, 0.1, 10**8), (10**9, 1e-9, 1), (100, 0.29, 29), (100, 0.07, 7)],
    ],
)
def test_a_share_is_rounded_up_to_whole_units(limit: int, share: float, expected: int) -> None:
    """The share as it is written, in decimals, rounded up, so that it is never nothing."""
    assert expected == local_limit(Quota(limit, 1000), share)


@pytest.mark.parametrize("share", [0.5, 0.34, 0.1])
async def test_headers_speak_of_what_is_left_here(store: Frail, clock: FakeClock, share: float) -> None:
    """Without the store remaining counts down from the share to 0, with a burst, too: a client that heeds it is not
    refused, and one that stops at 0 has given nothing away but the burst.
    """
    guarded = guard(store, clock, local_share=share)
    store.error = StoreTimeout("late")
    for rule in (ruled(10), ruled(10, burst=10, name="with-burst")):
        remaining = []
        while (decision := await decided(guarded, hits_of(rule))).allowed:
            remaining.append(decision.outcomes[0].remaining)
        count = local_limit(rule.quota, share)

        assert list(range(count - 1, -1, -1)) == remaining[:count]
        assert [0] * len(remaining[count:]) == remaining[count:]
        assert local_limit(rule.quotas[0], share) == len(remaining)
        assert decision.retry_after_ms == MINUTE_MS


async def test_a_cost_above_the_share(store: Frail, clock: FakeClock) -> None:
    """A request that only the whole limit could hold is to come back when the store may be there again; one that even
    that could not hold never.
    """
    guarded = guard(store, clock, local_share=0.5)
    store.error = StoreTimeout("late")
    later, never = [await decided(guarded, hits_of(ruled(10), cost=cost)) for cost in (6, 11)]

    assert (False, OVER_LIMIT, COME_BACK_MS, LOCAL) == (later.allowed, later.reason, later.retry_after_ms, later.source)
    assert (False, OVER_CAPACITY, None) == (never.allowed, never.reason, never.retry_after_ms)


@given(
    st.integers(1, 4),
    st.sampled_from([1.0, 0.5, 0.3, 0.01]),
    st.sampled_from([0, 3]),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9000), st.integers(1, 3)), max_size=60),
)
async def test_an_outage_is_bounded(
    processes: int, share: float, burst: int, requests: list[tuple[int, int, int]]
) -> None:
    """While the store is out, N processes admit at most N times their share in any window: what check-config prints."""
    clock = FakeClock(START_MS)
    store = Frail(clock)
    store.error = StoreTimeout("late")
    guards = [guard(store, clock, local_share=share) for _ in range(processes)]
    rule = ruled(5, burst=burst)
    bound = outage_limit(rule, share, processes)
    admitted: list[tuple[int, int]] = []
    for process, pause_ms, cost in requests:
        clock.advance(pause_ms)
        if (await guards[process % processes].charge(hits_of(rule, cost=cost))).admitted:
            admitted.append((clock.now_ms, cost))

    assert bound is not None
    for end_ms, _ in admitted:
        assert bound >= sum(cost for at_ms, cost in admitted if end_ms - MINUTE_MS < at_ms <= end_ms)


def test_what_an_outage_admits() -> None:
    """Nothing bounds what is allowed, nothing passes what is denied, and a burst is shared like the limit."""
    assert 4 * 5 == outage_limit(ruled(10), 0.5, 4)
    assert 3 * 8 == outage_limit(ruled(10, burst=5), 0.5, 3)
    assert 0 == outage_limit(ruled(10, "deny"), 0.5, 4)
    assert outage_limit(ruled(10, "allow"), 0.5, 4) is None
    assert outage_limit(ruled(10, "deny", shadow=True), 0.5, 4) is None


# What is logged


async def test_one_line_per_change_of_state(
    guarded: FallbackStore, store: Frail, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage of ten seconds under load is two lines: it began, and it is over."""
    caplog.set_level(logging.DEBUG, "ratelimiter")
    hits = hits_of(ruled(1000), principal="alice@example.com")
    store.error = StoreUnavailable("connection refused\nby 10.0.0.1", Kind.UNREACHABLE)
    for _ in range(10_000):
        await guarded.charge(hits)
        clock.advance(1)
    decided_there = 0  # those that failed were decided here, too
    store.error = None
    for _ in range(1000):
        await guarded.charge(hits)
        clock.advance(1)

    assert [
        f"the store gives no answer (unreachable): connection refused by 10.0.0.1; {WHAT_THEN}",
        f"the store answers again: limits are shared again; {10_000 - decided_there} decisions were made without it",
    ] == caplog.messages


async def test_a_mistake_is_told_once(guarded: FallbackStore, store: Frail, caplog: pytest.LogCaptureFixture) -> None:
    """A fault that comes with every request is one line for its kind, however long its text; overload is none, as the
    metrics count it.
    """
    caplog.set_level(logging.DEBUG, "ratelimiter")
    for error in (StoreFault("x" * 5000, Kind.FOREIGN_VALUE), StoreFault("?", Kind.MISMATCH), StoreOverloaded("full")):
        store.error = error
        for _ in range(100):
            await guarded.charge(hits_of(ruled(1000), principal="alice@example.com"))

    assert ["foreign_value", "mismatch"] == [message.split("(")[1].split(")")[0] for message in caplog.messages]
    assert all(len(message) < 300 for message in caplog.messages)


async def test_a_mistake_of_ours_has_a_traceback(
    guarded: FallbackStore, store: Frail, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that is no StoreError is a bug: its one line says where."""
    store.error = ZeroDivisionError("division by zero")
    for _ in range(100):
        await guarded.charge(hits_of(ruled(1000)))

    (record,) = caplog.records
    assert record.exc_info is not None
    assert "(ZeroDivisionError): division by zero" in record.message


async def test_no_principal_in_the_log(
    guarded: FallbackStore, store: Frail, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a principal's value nor a key is in anything that is logged (8)."""
    caplog.set_level(logging.DEBUG, "ratelimiter")
    app = RateLimitMiddleware(application, limit="5/minute", store=guarded, principal="header:X-API-Key")
    for store.error in (StoreFault("WRONGTYPE"), StoreTimeout("late"), KeyError("x")):
        for _ in range(10):
            await get(app, headers={"X-API-Key": "key-of-alice"})

    assert caplog.messages
    assert "key-of-alice" not in caplog.text
    assert "rl1:" not in caplog.text


# What a client sees


async def application(scope: object, receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[operator]


def app_of(store: FallbackStore, mode: str, **settings: object) -> RateLimitMiddleware:
    policy = Policy((ruled(3, mode),))
    return RateLimitMiddleware(application, config=policy, store=store, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dialect", ["problem", "plain", "intrace", "trace", "tracefinance", "sentinel"])
async def test_deny_is_a_503_with_retry_after(guarded: FallbackStore, store: Frail, dialect: str) -> None:
    """In every dialect: not the client's fault, so no 429, and when to come back."""
    store.error = StoreTimeout("late")
    answer = await get(app_of(guarded, "deny", dialect=dialect))

    assert 503 == answer.status
    assert int(answer.line("retry-after") or 0) >= 1
    assert answer.line("x-ratelimit-limit") is None


async def test_local_is_a_429_with_the_numbers_of_the_share(store: Frail, clock: FakeClock) -> None:
    """With half the limit here, 2 of 3 pass, and the headers count down from that."""
    store.error = StoreTimeout("late")
    app = app_of(guard(store, clock, local_share=0.5), "local")
    answers = [await get(app) for _ in range(3)]

    assert [200, 200, 429] == [answer.status for answer in answers]
    assert ["1", "0", "0"] == [answer.line("x-ratelimit-remaining") for answer in answers]
    assert ["3"] * 3 == [answer.line("x-ratelimit-limit") for answer in answers]
    assert "60" == answers[2].line("retry-after")


async def test_allow_is_the_application(guarded: FallbackStore, store: Frail) -> None:
    """No fault of the store produces a 5xx that the application did not."""
    for store.error in (StoreTimeout("late"), StoreFault("WRONGTYPE"), StoreOverloaded("full"), ZeroDivisionError()):
        assert {200} == {(await get(app_of(guarded, "allow"))).status for _ in range(20)}


async def test_recovers_by_itself(guarded: FallbackStore, store: Frail, clock: FakeClock) -> None:
    """Denied while the store is out, admitted within a second of its return."""
    app = app_of(guarded, "deny")
    await break_down(guarded, store)
    assert 503 == (await get(app)).status
    store.error = None
    clock.advance(PROBE_MS)

    assert 200 == (await get(app)).status


async def test_a_shadow_does_not_hide_that_a_rule_let_everybody_go(store: Frail, clock: FakeClock) -> None:
    """What is only watched says nothing of how the request was judged: on call one must see that it failed open."""
    guarded = guard(store, clock)
    store.error = StoreTimeout("late")
    watched = ruled(1, "local", name="watched", shadow=True)
    receipt = await guarded.charge(hits_of(ruled(1, "allow", name="open"), watched))

    assert (FAIL_OPEN, True) == (receipt.source, receipt.admitted)


# Other kinds than windows, and settlements


def seat(lease: int, mode: str = "local", limit: int = 2) -> Hit:
    rule = replace(rule_with(Slots(limit), mode), on_store_error=OnStoreError(mode))
    return Hit(b"seats", rule.quota, 1, rule, lease)


async def test_settlements_go_to_who_charged(guarded: FallbackStore, store: Frail, clock: FakeClock) -> None:
    """What the store charged it settles; what was charged locally is settled locally, when the store is back, too; of
    what was let through nothing is kept.
    """
    ours, theirs = seat(7), seat(8)
    assert STORE == (await guarded.charge([theirs])).source
    await break_down(guarded, store)
    assert LOCAL == (await guarded.charge([ours])).source
    assert LOCAL == (await guarded.charge([seat(9)])).source
    assert not (await guarded.charge([seat(10)])).admitted
    store.error = None
    for source in (FAIL_OPEN, FAIL_CLOSED, REMEMBERED):
        await guarded.settle([settlement_of(ours, 0, clock())], source)
    store.error = StoreTimeout("late")
    assert not (await guarded.charge([seat(10)])).admitted
    await guarded.settle([settlement_of(ours, 0, clock())], LOCAL)
    assert (await guarded.charge([seat(10)])).admitted
    assert 1 == store.behind.charge_now([theirs._replace(cost=0)]).tallies[0].used


async def test_a_settlement_never_raises(guarded: FallbackStore, store: Frail, clock: FakeClock) -> None:
    """A store that fails is noted, and one that is out is not asked."""
    await guarded.charge([seat(7)])
    store.error = StoreTimeout("late")
    await guarded.settle([settlement_of(seat(7), 0, clock())])
    assert 1 == guarded.faults["timeout"]
    await break_down(guarded, store)
    asked = store.settled
    await guarded.settle([settlement_of(seat(7), 0, clock())])
    assert asked == store.settled


async def test_leases_are_not_warmed_up(store: Frail, clock: FakeClock) -> None:
    """What will be settled with the store is not charged here as well, where nothing would ever settle it."""
    local = MemoryStore(clock=clock)
    guarded = FallbackStore(store, local=local)
    for lease in range(1, 3 * WARM_EVERY):
        await guarded.charge([seat(lease, limit=1000)])

    assert 0 == len(local)


@pytest.mark.parametrize(
    ("quota", "share", "expected"),
    [
        (Bucket(10, 5, 1000), 0.5, Bucket(5, 3, 1000)),
        (Bucket(1, 1, 1000), 0.1, Bucket(1, 1, 1000)),
        (Bucket(10**9, 86_400_000, 86_400_000), 0.25, Bucket(250_000_000, 21_600_000, 86_400_000)),
        (Bucket(10**6, 86_400_000, 86_400_000), 0.7, Bucket(700_000, 60_480_000, 86_400_000)),
        (Bucket(10**9, 10**8, 86_400_000), 0.999999, Bucket(999_999_000, 99_999_900, 86_400_000)),
        (Period(100, "month", "Europe/Berlin"), 0.25, Period(25, "month", "Europe/Berlin")),
        (Slots(3, 5000), 0.5, Slots(2, 5000)),
    ],
)
def test_the_local_share_of_every_kind(quota: AnyQuota, share: float, expected: AnyQuota) -> None:
    """A share of the units, and of a bucket of what comes back, too; in whole units, rounded up."""
    assert expected == local_quota(quota, share)


@given(BUCKETS, st.sampled_from([0.001, 0.1, 0.3333, 0.5, 0.999999]))
def test_every_bucket_has_a_share(bucket: Bucket, share: float) -> None:
    """Whatever the numbers, an outage finds a bucket that can be reckoned with."""
    ours = local_quota(bucket, share)
    assert isinstance(ours, Bucket)
    assert ceil(bucket.limit * Fraction(str(share))) >= ours.limit >= 1
    assert ours.refill <= bucket.refill


async def test_nobody_else_credits_a_top_up(guarded: FallbackStore, store: Frail) -> None:
    """Without the store a top-up is refused, even where the rule would let requests through."""
    rule = rule_with(Balance(5), "allow")
    rule = replace(rule, on_store_error=OnStoreError.ALLOW)
    await break_down(guarded, store)

    assert FAIL_CLOSED == (await guarded.charge([topup(b"k", rule.quota, 5, rule)])).source
    assert FAIL_OPEN == (await guarded.charge([Hit(b"k", rule.quota, 5, rule)])).source


async def test_failures_that_are_not_in_a_row_open_nothing(guarded: FallbackStore, store: Frail) -> None:
    """A key that always fails degrades no other one, as long as the store answers in between."""
    for _ in range(100):
        store.error = StoreTimeout("late")
        for _ in range(FAILURES_MAX - 1):
            await guarded.charge(hits_of(ruled(1000), principal="unlucky"))
        store.error = None
        assert STORE == (await guarded.charge(hits_of(ruled(1000), principal="alice"))).source

    assert not guarded.degraded


# Recovery without traffic, and the state before any


def state_store(clock: FakeClock, store: Frail, **settings: Any) -> FallbackStore:
    return FallbackStore(
        store,
        local=MemoryStore(clock=clock),
        breaker=CircuitBreaker(probe_ms=5),
        outages=OutageLog(clock=clock),
        **settings,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of what tells nobody
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("mode", ["local", "allow", "deny"])
async def test_the_store_is_back_without_a_request(store: Frail, clock: FakeClock, mode: str) -> None:
    """While the circuit breaker is open, probes need no traffic, so readiness tied to the store has no deadlock."""
    guarded = state_store(clock, store)
    store.error = StoreTimeout("late")
    for _ in range(FAILURES_MAX):
        await guarded.charge(hits_of(ruled(1000, mode)))
    assert (True, "degraded") == (guarded.degraded, guarded.state)

    store.error = None
    await until(lambda: not guarded.degraded)

    assert "ok" == guarded.state


async def test_the_state_is_unknown_until_the_store_was_asked(
    store: Frail, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is asked once at the start; a store that does not answer is one plain line, before any request."""
    guarded = state_store(clock, store)
    assert "unknown" == guarded.state
    store.error = StoreMisconfigured("WRONGPASS invalid username-password pair", Kind.AUTHENTICATION)

    await guarded.ask()
    await guarded.ask()

    assert "degraded" == guarded.state
    expected = f"the store gives no answer (authentication): WRONGPASS invalid username-password pair; {WHAT_THEN}"
    assert [expected] == caplog.messages
    assert LOCAL == (await guarded.charge(hits_of(ruled(3)))).source
    await guarded.close()


async def test_a_store_that_answers_is_known_at_once(store: Frail, clock: FakeClock) -> None:
    """A probe or a request, whichever comes first, makes a healthy store known, and nothing is logged or kept."""
    by_probe, by_request = state_store(clock, store), state_store(clock, store)

    await by_probe.ask()
    await by_request.charge(hits_of(ruled(3)))
    asked = store.asked
    await by_request.ask()

    assert ["ok", "ok"] == [by_probe.state, by_request.state]
    assert asked == store.asked, "a known store is not asked again"


async def test_a_store_that_is_let_go_of_is_not_probed_for_ever(clock: FakeClock) -> None:
    """The task that probes does not hold the store."""

    class Late(Frail):
        async def charge(self, hits: Sequence[Hit]) -> Receipt:
            raise StoreTimeout("late")

    guarded = state_store(clock, Late(clock))
    await guarded.ask()
    gone = weakref.ref(guarded)
    del guarded
    gc.collect()

    await until(lambda: gone() is None)


# An outage goes on from what the store last said


async def test_a_spent_limit_stays_spent(guarded: FallbackStore, store: Frail, clock: FakeClock) -> None:
    """What the store has said of a key counts when it stops: not one more until that has left the window."""
    hits = hits_of(ruled(100))
    for _ in range(100):
        assert (await guarded.charge(hits)).admitted
    await break_down(guarded, store)
    first = await guarded.charge(hits)
    clock.advance(first.tallies[0].retry_after_ms - 1)
    before = await guarded.charge(hits)
    clock.advance(1)

    assert (False, LOCAL) == (first.admitted, first.source)
    assert not before.admitted
    assert (await guarded.charge(hits)).admitted


@pytest.mark.parametrize(("spent", "share", "left"), [(60, 1.0, 40), (60, 0.5, 20), (0, 0.5, 50), (100, 0.1, 0)])
async def test_what_is_left_is_shared(store: Frail, clock: FakeClock, spent: int, share: float, left: int) -> None:
    """A process admits its share of what the store had left, not of the whole limit."""
    guarded = guard(store, clock, local_share=share)
    hits = hits_of(ruled(100))
    for _ in range(spent):
        await guarded.charge(hits)
    await break_down(guarded, store)

    assert left == sum([(await guarded.charge(hits)).admitted for _ in range(120)])


@pytest.mark.parametrize(
    "quota", [Bucket(5, 1, MINUTE_MS), Period(5, "day"), Quota(500, MINUTE_MS)], ids=lambda quota: quota.kind
)
async def test_every_kind_goes_on(store: Frail, clock: FakeClock, quota: AnyQuota) -> None:
    """Buckets, periods and coarse windows go on as windows do, and each hit of a request by itself."""
    guarded = guard(store, clock)
    rule = replace(rule_with(quota), on_store_error=OnStoreError.LOCAL)
    other = ruled(1000, name="other")
    hits = hits_of(rule, other)
    for _ in range(quota.limit):
        assert (await guarded.charge(hits)).admitted
    await break_down(guarded, store)
    receipt = await guarded.charge(hits)

    assert (False, LOCAL) == (receipt.admitted, receipt.source)
    assert (await guarded.charge(hits_of(other))).tallies[0].used == quota.limit + 1


async def test_the_clock_of_the_store_may_be_another(clock: FakeClock) -> None:
    """What the store said an hour ahead of us, or behind, is as old as it is by our own clock."""
    for ahead_ms in (-3_600_000, 3_600_000):
        theirs = FakeClock(clock() + ahead_ms)
        store = Frail(theirs)
        guarded = guard(store, clock)
        hits = hits_of(ruled(WARM_EVERY))
        for _ in range(WARM_EVERY):
            await guarded.charge(hits)
        await break_down(guarded, store)
        receipt = await guarded.charge(hits)

        assert (False, MINUTE_MS) == (receipt.admitted, receipt.tallies[0].retry_after_ms)


@settings(max_examples=60)
@given(st.data())
def test_the_stated_bound_holds(data: st.DataObject) -> None:
    """However processes share a limit before and in an outage, one window admits at most what check-config says."""
    limit, share = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 1.0]))
    processes = data.draw(st.integers(1, 4))
    rule = ruled(limit)
    hits = hits_of(rule)
    clock = FakeClock(START_MS)
    behind = MemoryStore(clock=clock)
    admitted: list[int] = []

    async def scenario() -> None:
        stores = []
        for _ in range(processes):
            frail = Frail(clock)
            frail.behind = behind
            stores.append((frail, guard(frail, clock, local_share=share)))
        for outage in (False, True):
            for frail, guarded in stores:
                frail.error = StoreTimeout("late") if outage else None
                if outage:
                    guarded._breaker.trip()
            for _ in range(data.draw(st.integers(0, 40))):
                _, guarded = stores[data.draw(st.integers(0, processes - 1))]
                if (await guarded.charge(hits)).admitted:
                    admitted.append(clock())
                clock.advance(data.draw(st.sampled_from([0, 0, 1, 500, 20_000])))
        for _, guarded in stores:
            await guarded.close()

    asyncio.run(scenario())
    bound = first_window_limit(rule, share, processes)
    assert bound is not None
    for instant in admitted:
        assert sum(instant - MINUTE_MS < other <= instant for other in admitted) <= bound


async def test_memory_of_what_was_seen_is_bounded(store: Frail, clock: FakeClock) -> None:
    """However many keys come, two generations are held."""
    seen = LastSeen(keys_max=10)
    for number in range(1000):
        hits = hits_of(ruled(3), ruled(5, name="other"), principal=f"p{number}")
        seen.note(hits, store.behind.charge_now(hits))
        seen.turn()

    assert len(seen) <= 2 * (10 + 1)
    assert (1, START_MS) == seen.take(hits[1].key)
    assert (0, 0) == seen.take(hits[1].key)
