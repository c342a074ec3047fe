"""The embedded store keeps the contract, and its memory."""

from __future__ import annotations

import gc
import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ratelimiter.core.quota import AnyQuota, Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.rule import Hit
from ratelimiter.core.settlement import settlement_of
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.exact_log import ExactLog
from tests.reference_store import START_MS, hits_of, rule_of, rule_with
from tests.stores.contract import StoreContract, admissions, plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.clock import Clock

MINUTE_MS = 60_000


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def make_store(self) -> Callable[[Clock], MemoryStore]:
        return lambda clock: MemoryStore(clock=clock)


def one(limit: int, principal: object, *, window_ms: int = MINUTE_MS, cost: int = 1, name: str = "rule") -> list[Hit]:
    return hits_of(rule_of(limit, window_ms, name=name), principal=str(principal), cost=cost)


class TestBounds:
    def test_needs_room_for_a_key(self) -> None:
        """A store that could hold nothing is refused at the door."""
        with pytest.raises(ValueError, match="keys_max must be at least 1, not 0"):
            MemoryStore(keys_max=0)

    @pytest.mark.parametrize("hits_each", [1, 2, 3])
    def test_never_more_than_keys_max(self, clock: FakeClock, hits_each: int) -> None:
        """Ten times as many principals as fit leave no more than fit, whatever a request is charged to."""
        store = MemoryStore(keys_max=50, clock=clock)
        rules = [rule_of(5, MINUTE_MS * (1 + index), name=f"rule-{index}") for index in range(hits_each)]
        for index in range(500):
            store.charge_now(hits_of(*rules, principal=str(index)))
            clock.advance(index % 3)

            assert len(store) <= 50
        assert len(store) > 50 - hits_each

    @pytest.mark.parametrize("keys_max", [1, 2, 3])
    def test_the_smallest_stores_stay_strict(self, clock: FakeClock, keys_max: int) -> None:
        """A request of more hits than fit is charged to the overflow: strict, and within bounds."""
        store = MemoryStore(keys_max=keys_max, clock=clock)
        rules = [rule_of(2, MINUTE_MS, burst=1), rule_of(9, MINUTE_MS, name="other")]
        admitted = [store.charge_now(hits_of(*rules, principal="p")).admitted for _ in range(9)]

        assert 3 == sum(admitted)
        assert len(store) <= keys_max

    async def test_refused_keys_survive_a_flood(self, clock: FakeClock) -> None:
        """Whoever has spent his limit cannot buy it back with other names: for the whole window a refused key stays
        refused, however many newcomers flood (bypass 23).
        """
        store = MemoryStore(keys_max=100, clock=clock)
        spent = [one(3, f"spent-{index}") for index in range(40)]
        for hits in spent:
            assert 3 == await admissions(store, hits, 4)
        for index in range(2000):
            clock.advance(29)
            await store.charge(one(3, f"newcomer-{index}"))
            if index % 100 == 99:
                assert 0 == sum([(await store.charge(hits)).admitted for hits in spent])
        clock.advance(MINUTE_MS - 2000 * 29)

        assert [3] * 40 == [await admissions(store, hits, 4) for hits in spent]

    async def test_a_nearly_spent_key_survives_newcomers(self, clock: FakeClock) -> None:
        """A client at 59 of 60 does not get 60 more by flooding with one-hit names: they go before he does."""
        store = MemoryStore(keys_max=100, clock=clock)
        attacker = one(60, "attacker")
        assert 59 == await admissions(store, attacker, 59)
        for index in range(5000):
            await store.charge(one(60, f"newcomer-{index}"))

        assert 1 == await admissions(store, attacker, 60)

    async def test_newcomers_share_a_window_when_all_are_refused(self, clock: FakeClock) -> None:
        """With every key refused, newcomers share one window per rule, as strict as one principal's; afterwards they
        have windows of their own again.
        """
        store = MemoryStore(keys_max=20, clock=clock)
        for index in range(20):
            await admissions(store, one(1, f"spent-{index}"), 2)
        newcomers = [await store.charge(one(4, f"newcomer-{index}")) for index in range(30)]

        assert 4 == sum(receipt.admitted for receipt in newcomers)
        assert 20 == len(store)
        clock.advance(MINUTE_MS)
        assert [4] * 5 == [await admissions(store, one(4, f"newcomer-{index}"), 6) for index in range(5)]

    async def test_keys_that_were_refused_make_room_in_time(self, clock: FakeClock) -> None:
        """Keys that were set aside while refused go when they no longer matter, before any live key does."""
        store = MemoryStore(keys_max=32, clock=clock)
        for index in range(32):
            await admissions(store, one(1, f"spent-{index}"), 2)
        await store.charge(one(1, "newcomer"))
        clock.advance(2 * MINUTE_MS)
        living = [one(1, f"living-{index}") for index in range(32)]

        assert [True] * 32 == [(await store.charge(hits)).admitted for hits in living]
        assert [False] * 32 == [(await store.charge(hits)).admitted for hits in living]

    async def test_a_key_no_longer_refused_is_judged_by_what_it_was_charged(self, clock: FakeClock) -> None:
        """A refusal that ends because one unit left does not make a nearly full key the first to go."""
        store = MemoryStore(keys_max=21, clock=clock)
        attacker = one(10, "attacker")
        await store.charge(attacker)
        clock.advance(1000)
        assert 9 == await admissions(store, attacker, 10)
        for index in range(19):
            await admissions(store, one(1, f"spent-{index}"), 2)
        for index in range(2):
            await store.charge(one(1, f"newcomer-{index}"))  # the second sets all twenty aside
        clock.advance(MINUTE_MS - 1000)  # one unit of the attacker's leaves; nobody else's
        for index in range(100):
            await store.charge(one(1, f"later-{index}"))

        assert 1 == await admissions(store, attacker, 10)

    async def test_keys_of_the_request_in_hand_stay(self, clock: FakeClock) -> None:
        """Making room for one hit of a request never forgets another one of its own."""
        store = MemoryStore(keys_max=2, clock=clock)
        first, second, third = (rule_of(1, MINUTE_MS * n, name=f"rule-{n}") for n in (1, 2, 3))
        await store.charge(hits_of(first))
        await store.charge(hits_of(second, principal="q"))
        receipt = await store.charge(hits_of(first, third))

        assert (False, 1) == (receipt.admitted, receipt.tallies[0].used)
        assert not (await store.charge(hits_of(first))).admitted

    async def test_a_wrong_clock_does_not_block_the_store(self, clock: FakeClock) -> None:
        """Keys from a clock that was far ahead make room like any others, refused ones included."""
        store = MemoryStore(keys_max=32, clock=clock)
        clock.advance(10**11)
        for index in range(32):
            await admissions(store, one(1, f"ahead-{index}"), 2)
        await store.charge(one(1, "ahead"))
        clock.advance(-(10**11))
        living = [one(1, f"living-{index}") for index in range(32)]

        assert [True] * 32 == [(await store.charge(hits)).admitted for hits in living]
        assert [False] * 32 == [(await store.charge(hits)).admitted for hits in living]


class TestExpiry:
    @pytest.mark.parametrize("window_ms", [1000, MINUTE_MS])
    async def test_memory_falls_as_traffic_goes_on(self, clock: FakeClock, window_ms: int) -> None:
        """Without a timer, every charge after the window drops a few keys that no longer matter."""
        store = MemoryStore(clock=clock)
        for index in range(1000):
            await store.charge(one(5, index, window_ms=window_ms))
        assert 1000 == len(store)
        clock.advance(window_ms)
        sizes = []
        for _ in range(1000):
            await store.charge(one(5, "regular", window_ms=window_ms))
            clock.advance(window_ms)
            sizes.append(len(store))

        assert sorted(sizes, reverse=True) == sizes
        assert 1 == sizes[-1]
        assert max(before - after for before, after in itertools.pairwise(sizes)) <= 2  # no scan

    async def test_set_aside_keys_go_as_traffic_goes_on(self, clock: FakeClock) -> None:
        """Keys that were set aside under pressure do not stay for good when the pressure is gone."""
        store = MemoryStore(keys_max=100, clock=clock)
        for index in range(100):
            await admissions(store, one(1, f"spent-{index}"), 2)
        await store.charge(one(1, "newcomer"))
        clock.advance(2 * MINUTE_MS)
        for index in range(200):
            await store.charge(one(1, f"later-{index}"))
            clock.advance(MINUTE_MS)

        assert len(store) <= 2

    async def test_an_emptied_key_in_front_is_no_stumbling_block(self, clock: FakeClock) -> None:
        """A key whose window was found empty by a peek or by a refused request is dropped like any other."""
        store = MemoryStore(clock=clock)
        tight = rule_of(1, 10 * MINUTE_MS, name="tight")
        for principal in ("peeked", "refused"):
            await store.charge(one(5, principal))
        await store.charge(hits_of(tight, principal="refused"))
        clock.advance(MINUTE_MS)
        await store.charge(one(5, "peeked", cost=0))
        await store.charge([*one(5, "refused"), *hits_of(tight, principal="refused")])

        assert (await store.charge(one(5, "other"))).admitted
        assert (await store.charge(one(5, "other"))).admitted
        assert 2 == len(store)

    async def test_a_shadow_that_never_fits_is_no_stumbling_block(self, clock: FakeClock) -> None:
        """A shadow rule is not charged a cost above its limit; its key, emptied by time, may go."""
        store = MemoryStore(clock=clock)
        shadow = rule_of(2, MINUTE_MS, shadow=True)
        await store.charge(hits_of(shadow))
        clock.advance(MINUTE_MS)
        receipt = await store.charge(hits_of(shadow, cost=3))

        assert (True, 0) == (receipt.admitted, receipt.tallies[0].used)
        assert 0 == len(store)

    async def test_windows_of_different_lengths(self, clock: FakeClock) -> None:
        """Short-lived keys go while long-lived ones stay."""
        store = MemoryStore(clock=clock)
        for index in range(100):
            await store.charge(one(1, f"long-{index}", window_ms=60 * MINUTE_MS))
            await store.charge(one(1, f"short-{index}", window_ms=1000))
        clock.advance(1000)
        for index in range(100):
            await store.charge(one(9, "short", window_ms=1000, cost=0 if index % 2 else 1))
            clock.advance(1000)

        assert 101 == len(store)
        assert 0 == sum(
            [(await store.charge(one(1, f"long-{i}", window_ms=60 * MINUTE_MS))).admitted for i in range(100)]
        )

    async def test_a_changed_window_keeps_the_counters(self, clock: FakeClock) -> None:
        """A rule whose window length changes still knows what it was charged (7), and no key is held twice."""
        store = MemoryStore(clock=clock)
        assert 3 == await admissions(store, one(3, "p"), 4)
        clock.advance(1000)
        longer = await store.charge(one(3, "p", window_ms=2 * MINUTE_MS))
        shorter = await store.charge(one(3, "p", window_ms=1500))

        assert (False, 2 * MINUTE_MS - 1000) == (longer.admitted, longer.tallies[0].retry_after_ms)
        assert (False, 500) == (shorter.admitted, shorter.tallies[0].retry_after_ms)
        assert 1 == len(store)

    async def test_refusals_and_peeks_leave_nothing(self, clock: FakeClock) -> None:
        """Keys that were never charged take no room."""
        store = MemoryStore(clock=clock)
        for index in range(50):
            await store.charge(one(1, index, cost=0))
            await store.charge(one(1, index, cost=2))

        assert 0 == len(store)

    async def test_charging_now_is_charging(self, clock: FakeClock) -> None:
        """`charge` and `charge_now` are one store under one clock, whichever way a request takes."""
        awaited, immediate = MemoryStore(clock=clock), MemoryStore(clock=clock)
        for index in range(20):
            clock.advance(index * 1000)
            hits = one(3, index % 3)
            assert plain(immediate.charge_now(hits)) == plain(await awaited.charge(hits))
        assert len(awaited) == len(immediate)


class CountedKey(bytes):
    """A key that knows how many of its kind exist; the store keeps the first of equals."""

    alive: ClassVar[int] = 0

    def __init__(self, *_: Any) -> None:
        CountedKey.alive += 1

    def __del__(self) -> None:
        CountedKey.alive -= 1


class MemoryStoreMachine(RuleBasedStateMachine):
    """Charges, floods, pauses and peeks in any order. `len()` is the number of keys that exist, never more than fit;
    and while no key had to make room, verdicts are those of exact logs.
    """

    KEYS_MAX = 24

    def __init__(self) -> None:
        super().__init__()
        gc.collect()
        CountedKey.alive = 0
        self.clock = FakeClock(START_MS)
        self.store = MemoryStore(keys_max=self.KEYS_MAX, clock=self.clock)
        self.logs: dict[bytes, ExactLog] = {}
        self.flooded = False
        self.newcomers = 0

    @initialize(window_ms=st.sampled_from([10, 1000]))
    def choose_window(self, window_ms: int) -> None:
        self.window_ms = window_ms

    @rule(
        principal=st.integers(0, 5),
        limit=st.sampled_from([1, 3]),
        cost=st.integers(0, 3),
        factor=st.sampled_from([1, 3]),
    )
    def charge(self, principal: int, limit: int, cost: int, factor: int) -> None:
        window_ms = self.window_ms * factor
        names = f"rule-{limit}-{factor}"
        (hit,) = hits_of(rule_of(limit, window_ms, name=names), principal=f"p{principal}", cost=cost)
        log = self.logs.setdefault(hit.key, ExactLog(limit, window_ms))
        receipt = self.store.charge_now([hit._replace(key=CountedKey(hit.key))])
        if not self.flooded:
            assert log.charge(cost, self.clock.now_ms) == receipt.admitted
            assert log.used(self.clock.now_ms) == receipt.tallies[0].used

    @rule(principal=st.integers(0, 5), cost=st.integers(0, 2))
    def charge_several(self, principal: int, cost: int) -> None:
        rules = [rule_of(1, self.window_ms, name="rule-1-1"), rule_of(3, 3 * self.window_ms, name="rule-3-3")]
        hits = hits_of(*rules, principal=f"p{principal}", cost=cost)
        logs = [
            self.logs.setdefault(hit.key, ExactLog(r.quota.limit, r.quota.window_ms))
            for hit, r in zip(hits, rules, strict=True)
        ]
        receipt = self.store.charge_now([hit._replace(key=CountedKey(hit.key)) for hit in hits])
        if not self.flooded:
            now_ms = self.clock.now_ms
            assert all(log.used(now_ms) + cost <= log.limit for log in logs) == receipt.admitted
            if receipt.admitted:
                for log in logs:
                    log.note(cost, now_ms)

    @rule(count=st.integers(1, 40), cost=st.integers(1, 2))
    def flood(self, count: int, cost: int) -> None:
        self.flooded = True
        for _ in range(count):
            self.newcomers += 1
            (hit,) = hits_of(rule_of(1, self.window_ms, name="flood"), principal=str(self.newcomers), cost=1)
            for _ in range(cost):
                self.store.charge_now([hit._replace(key=CountedKey(hit.key))])

    @rule(parts=st.sampled_from([0, 1, 9, 10, 11, 29, 30, 31, 60]))
    def advance(self, parts: int) -> None:
        self.clock.advance(parts * self.window_ms // 10)

    @rule(parts=st.sampled_from([1, 10, 11, 1000]))
    def step_back(self, parts: int) -> None:
        self.clock.advance(-parts * self.window_ms // 10)
        self.flooded = True  # a log knows nothing of such clocks

    @invariant()
    def the_size_is_the_number_of_keys(self) -> None:
        assert CountedKey.alive == len(self.store) <= self.KEYS_MAX


TestMemoryStoreMachine = pytest.mark.slow(MemoryStoreMachine.TestCase)
TestMemoryStoreMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# --- other kinds than windows


def crowd(store: MemoryStore, quota: AnyQuota, count: int, start: int = 0, lease: int = 0) -> list[bool]:
    """Whether each of *count* newcomers is admitted."""
    rule = rule_with(quota)
    keys = [f"newcomer-{quota.kind}-{number}".encode() for number in range(start, start + count)]
    return [store.charge_now([Hit(key, quota, 1, rule, lease)]).admitted for key in keys]


@pytest.mark.parametrize("quota", [Slots(2), Balance(5)], ids=lambda quota: quota.kind)
def test_leases_and_balances_make_no_room(clock: FakeClock, quota: AnyQuota) -> None:
    """A flood of newcomers of whatever kind neither frees a taken slot nor restores a spent balance."""
    store = MemoryStore(keys_max=50, clock=clock)
    hit = Hit(b"precious", quota, quota.limit, rule_with(quota), 7 if quota.kind == "slots" else 0)
    assert store.charge_now([hit]).admitted
    for flood in (Quota(1, MINUTE_MS), Bucket(1, 1, MINUTE_MS), Period(1, "month")):
        crowd(store, flood, 500)

    assert len(store) <= 50
    assert quota.limit == store.charge_now([hit._replace(cost=0, lease=0)]).tallies[0].used


def test_newcomers_share_a_state_when_nothing_makes_room(clock: FakeClock) -> None:
    """Full of open leases, a store is as strict to all newcomers together as to one, and stays of its size."""
    store = MemoryStore(keys_max=20, clock=clock)
    assert all(crowd(store, Slots(3), 20, lease=7))
    assert 3 == sum(crowd(store, Slots(3), 30, start=20, lease=8))
    assert 20 == len(store)
    clock.advance(30_000)
    assert all(crowd(store, Slots(3), 20, start=50, lease=9))
    assert 20 == len(store)


def test_what_no_longer_counts_is_dropped(clock: FakeClock) -> None:
    """Settled slots go at once, drained buckets and ended periods as others come."""
    store = MemoryStore(clock=clock)
    slots = Hit(b"s", Slots(1), 1, rule_with(Slots(1)), 7)
    store.charge_now([slots])
    store.settle_now([settlement_of(slots, 0, clock())])
    assert 0 == len(store)
    crowd(store, Bucket(1, 1, 1000), 100)
    clock.advance(1000)
    crowd(store, Period(1, "hour"), 100)
    assert 101 >= len(store)
    clock.advance(3_600_000)
    crowd(store, Balance(1), 60)
    assert 61 >= len(store)


def test_what_was_erased_begins_anew(clock: FakeClock) -> None:
    """Also of other kinds than windows."""
    store = MemoryStore(clock=clock)
    assert [[True], [False]] == [crowd(store, Balance(1), 1) for _ in range(2)]
    store.erase([b"newcomer-balance-0"])
    assert [True] == crowd(store, Balance(1), 1)
