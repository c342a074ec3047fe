"""What every store must pass. A store's own test module subclasses `StoreContract` and says how the store is made.

    class TestMemoryStore(StoreContract):
        @pytest.fixture
        def make_store(self):
            return lambda clock: MemoryStore(clock=clock)

`make_store` takes a clock and gives a store that reads its time there. A store may be shared by many tests: no two
tests, and no two examples of a property, use the same key.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimiter.core.quota import PRECISION, Balance, Quota, Slots
from ratelimiter.core.receipt import NEVER, Receipt, Tally
from ratelimiter.core.rule import LONG_WINDOWS, Hit
from ratelimiter.core.settlement import Settlement, settlement_of, topup
from ratelimiter.testing import FakeClock
from tests.exact_log import ExactLog
from tests.reference_store import (
    START_MS,
    ReferenceStore,
    costs,
    gaps_ms,
    hits_of,
    kinds,
    mixed_requests,
    rule_of,
    rule_with,
    settlements,
    starts_ms,
    window_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from ratelimiter.clock import Clock
    from ratelimiter.core.rule import Rule
    from ratelimiter.stores.base import Store

_principals = itertools.count()

NOON_MS = START_MS // 86_400_000 * 86_400_000 + 43_200_000 + 1_000_000  # no period ends soon, in any zone

# The store outlives an example, and every example has keys of its own. One property runs for several stores, so what
# failed for one is not kept to be tried on another.
shared_store = settings(
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
    database=None,
)


def fresh() -> str:
    """A principal that nobody has been charged as."""
    return f"principal-{next(_principals)}-{id(_principals):x}"


@st.composite
def rule_sets(draw: st.DrawFn) -> list[Rule]:
    """One to four rules, exact and coarse, with bursts and shadows among them."""
    return [
        rule_of(
            draw(st.sampled_from([1, 2, 3, PRECISION, PRECISION + 1, 1000])),
            draw(st.sampled_from([6, 128, 129, 1000, 60_000])),
            name=f"rule-{index}",
            burst=draw(st.sampled_from([0, 0, 1, 128])),
            shadow=draw(st.sampled_from([False, False, True])),
        )
        for index in range(draw(st.integers(1, 4)))
    ]


class StoreContract:
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock(START_MS)

    @pytest.fixture
    def make_store(self) -> Callable[[Clock], Store]:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, make_store: Callable[[Clock], Store], clock: FakeClock) -> AsyncIterator[Store]:
        store = make_store(clock)
        yield store
        await store.close()

    @shared_store
    @given(st.data())
    async def test_agrees_with_the_core(self, store: Store, clock: FakeClock, data: st.DataObject) -> None:
        """Receipts are those of the core, number for number, whatever comes: rules, costs, bursts, shadows, clock steps
        of less than a window, and rules that come and go.
        """
        reference, principal = ReferenceStore(), fresh()
        rules = data.draw(rule_sets())
        clock.now_ms = data.draw(starts_ms(window_of(rules[0])))
        for _ in range(data.draw(st.integers(1, 12))):
            rule = data.draw(st.sampled_from(rules))
            clock.advance(data.draw(gaps_ms(window_of(rule))))
            if data.draw(st.integers(0, 9)) == 0:
                clock.advance(-data.draw(st.integers(0, rule.quota.window_ms)))
            applied = rules[: data.draw(st.integers(1, len(rules)))]
            hits = hits_of(*applied, principal=principal, cost=data.draw(costs(rule.quota)))
            expected = reference.charge_at(hits, clock.now_ms)

            assert plain(expected) == plain(await store.charge(hits))

    @shared_store
    @given(st.data())
    async def test_agrees_with_the_core_when_the_policy_changes(
        self, store: Store, clock: FakeClock, data: st.DataObject
    ) -> None:
        """Counters are kept when limit, burst or window of a rule change (7)."""
        reference, principal = ReferenceStore(), fresh()
        clock.now_ms = START_MS
        for _ in range(data.draw(st.integers(2, 12))):
            limit = data.draw(st.sampled_from([1, 3, PRECISION, PRECISION + 1, 1000]))
            rule = rule_of(
                limit, data.draw(st.sampled_from([128, 129, 1000])), burst=data.draw(st.sampled_from([0, 2]))
            )
            clock.advance(data.draw(gaps_ms(window_of(rule))))
            hits = hits_of(rule, principal=principal, cost=data.draw(costs(rule.quota)))
            expected = reference.charge_at(hits, clock.now_ms)

            assert plain(expected) == plain(await store.charge(hits))

    @shared_store
    @given(st.data())
    async def test_equals_an_exact_log(self, store: Store, clock: FakeClock, data: st.DataObject) -> None:
        """What a store admits up to limit 128 is what an exact log admits (2)."""
        quota = Quota(data.draw(st.sampled_from([1, 2, 3, PRECISION])), data.draw(st.sampled_from([5, 1000])))
        rule, log, principal = rule_of(quota.limit, quota.window_ms), ExactLog(quota.limit, quota.window_ms), fresh()
        clock.now_ms = START_MS
        for gap_ms, cost in data.draw(st.lists(st.tuples(gaps_ms(quota), costs(quota)), max_size=12)):
            clock.advance(gap_ms)
            receipt = await store.charge(hits_of(rule, principal=principal, cost=cost))

            assert log.charge(cost, clock.now_ms) == receipt.admitted
            assert log.used(clock.now_ms) == receipt.tallies[0].used

    async def test_counts_down_and_refuses(self, store: Store) -> None:
        """A limit of 3 admits 3 and refuses the fourth, with every number in place."""
        hits = hits_of(rule_of(3, 60_000), principal=fresh())
        receipts = [await store.charge(hits) for _ in range(4)]

        assert [True, True, True, False] == [receipt.admitted for receipt in receipts]
        assert [1, 2, 3, 3] == [receipt.tallies[0].used for receipt in receipts]
        assert Receipt(START_MS, False, [Tally(3, 60_000, 60_000)]) == plain(receipts[-1])

    @pytest.mark.parametrize(("limit", "burst"), [(3, 0), (1000, 0), (3, 2), (128, 128)])
    async def test_retry_is_exact(self, store: Store, clock: FakeClock, limit: int, burst: int) -> None:
        """One millisecond before the announced moment a retry is refused, at it admitted (4)."""
        rule = rule_of(limit, 60_000, burst=burst)
        principal = fresh()
        clock.now_ms = START_MS + 12_345
        assert (await store.charge(hits_of(rule, principal=principal, cost=limit + burst - 1))).admitted
        clock.advance(7)
        assert (await store.charge(hits_of(rule, principal=principal))).admitted
        clock.advance(100)
        refused = await store.charge(hits_of(rule, principal=principal, cost=limit))
        retry_after_ms = max(tally.retry_after_ms for tally in refused.tallies)
        clock.advance(retry_after_ms - 1)

        assert not (await store.charge(hits_of(rule, principal=principal, cost=limit))).admitted
        clock.advance(1)
        assert (await store.charge(hits_of(rule, principal=principal, cost=limit))).admitted

    async def test_all_or_nothing(self, store: Store, clock: FakeClock) -> None:
        """When one of three rules refuses, in whatever place, none of them is charged (1, 3)."""
        roomy, tight, wide = (
            rule_of(9, 1000, name="roomy"),
            rule_of(1, 1000, name="tight"),
            rule_of(500, 7, name="wide"),
        )
        for order in itertools.permutations([roomy, tight, wide]):
            principal = fresh()
            first = await store.charge(hits_of(*order, principal=principal))
            second = await store.charge(hits_of(*order, principal=principal))

            assert [True, False] == [first.admitted, second.admitted]
            assert [1, 1, 1] == [tally.used for tally in second.tallies]

    async def test_a_hammering_client_is_admitted_on_time(self, store: Store, clock: FakeClock) -> None:
        """Refusals do not prolong a refusal (3)."""
        hits = hits_of(rule_of(1, 1000), principal=fresh())
        await store.charge(hits)
        for _ in range(999):
            clock.advance(1)
            assert not (await store.charge(hits)).admitted
        clock.advance(1)

        assert (await store.charge(hits)).admitted

    async def test_a_shadow_counts_and_never_refuses(self, store: Store) -> None:
        """A shadow rule says what its enforcing twin would say, and the request is admitted."""
        principal, other = fresh(), fresh()
        twin, shadow = rule_of(2, 1000, name="twin"), rule_of(2, 1000, name="twin", shadow=True)
        roomy = rule_of(9, 1000, name="roomy")
        for expected in (True, True, False):
            enforced = await store.charge(hits_of(twin, principal=principal))
            shadowed = await store.charge(hits_of(shadow, roomy, principal=other))

            assert (expected, True) == (enforced.admitted, shadowed.admitted)
            assert enforced.tallies[0] == tuple(shadowed.tallies[0])

    @pytest.mark.parametrize("limit", [3, 1000])
    async def test_cost_0_peeks(self, store: Store, clock: FakeClock, limit: int) -> None:
        """A request of cost 0 is admitted and counts nothing: at an unknown key, at a full one, at a lowered limit."""
        principal, rule = fresh(), rule_of(limit, 1000)
        for used, peeked in ((0, rule), (limit, rule), (limit, rule_of(1, 1000))):
            receipt = await store.charge(hits_of(peeked, principal=principal, cost=0))
            assert (True, used, 0) == (receipt.admitted, receipt.tallies[0].used, receipt.tallies[0].retry_after_ms)
            await store.charge(hits_of(rule, principal=principal, cost=limit))

    async def test_a_cost_that_never_fits(self, store: Store) -> None:
        """A cost above the limit is refused, charges nothing, and no wait is announced."""
        hits = hits_of(rule_of(3, 1000), principal=fresh(), cost=4)

        assert Receipt(START_MS, False, [Tally(0, 0, NEVER)]) == plain(await store.charge(hits))

    async def test_burst(self, store: Store, clock: FakeClock) -> None:
        """The greediest client gets L + B in its first window, 10 L + B in ten."""
        hits, admitted = hits_of(rule_of(3, 10, burst=2), principal=fresh()), []
        for _ in range(LONG_WINDOWS * 10):
            admitted.append((await store.charge(hits)).admitted)
            clock.advance(1)

        assert (5, 32) == (sum(admitted[:10]), sum(admitted))

    async def test_keys_are_apart(self, store: Store) -> None:
        """Keys that look alike hold windows of their own (7); bytes of any kind can be a key."""
        base = fresh().encode()
        suffixes = [b"", b":", b"{", b"}", b"\r\n", b"\x00", b"*", b"\xff", b" ", b"A", b"a", b"a" * 200]
        hits = [hits_of(rule_of(1, 60_000))[0]._replace(key=base + suffix) for suffix in suffixes]

        assert [True] * len(hits) == [(await store.charge([hit])).admitted for hit in hits]
        assert [False] * len(hits) == [(await store.charge([hit])).admitted for hit in hits]

    async def test_of_a_crowd_exactly_the_room_is_admitted(self, store: Store) -> None:
        """Of 100 concurrent requests at 7 remaining, 7 are admitted (bypass 17)."""
        rules, principal = [rule_of(10, 60_000), rule_of(50, 60_000, name="other")], fresh()
        await store.charge(hits_of(*rules, principal=principal, cost=3))
        receipts = await asyncio.gather(*(store.charge(hits_of(*rules, principal=principal)) for _ in range(100)))

        assert 7 == sum(receipt.admitted for receipt in receipts)
        assert [10, 10] == [t.used for t in (await store.charge(hits_of(*rules, principal=principal, cost=0))).tallies]

    @pytest.mark.parametrize("limit", [3, 1000])
    async def test_a_clock_that_was_wrong_locks_nobody_out(self, store: Store, clock: FakeClock, limit: int) -> None:
        """After a step back of any size a full key is admitted again within 2 W and a cell, and gives away at most one
        limit; a step forward empties it (I12).
        """
        rule = rule_of(limit, 1000)
        for step_ms in (-1, -500, -1000, -5000, -(10**9), 5000, 10**9):
            principal, clock.now_ms = fresh(), START_MS
            await store.charge(hits_of(rule, principal=principal, cost=limit))
            clock.advance(step_ms)
            given_away = (await store.charge(hits_of(rule, principal=principal, cost=limit))).admitted
            assert given_away == (abs(step_ms) > 1000 + window_of(rule).resolution_ms)
            refused = await store.charge(hits_of(rule, principal=principal, cost=limit))
            assert 0 < refused.tallies[0].retry_after_ms <= 2 * 1000 + window_of(rule).resolution_ms - 1
            clock.advance(refused.tallies[0].retry_after_ms)
            assert (await store.charge(hits_of(rule, principal=principal, cost=limit))).admitted

    # --- other kinds than windows, and what is settled

    @shared_store
    @given(st.data())
    async def test_all_kinds_agree_with_the_core(self, store: Store, clock: FakeClock, data: st.DataObject) -> None:
        """Requests over all kinds, and their settlements: receipts are those of the core, number for number."""
        reference, principal = ReferenceStore(), fresh()
        # So long that nothing lapses by a server's own clock before it does by ours.
        quotas = data.draw(st.lists(kinds((600_000, 3_600_000), (600_000, 3_600_000)), min_size=1, max_size=4))
        rules = [rule_with(q, f"rule-{n}", shadow=data.draw(st.integers(0, 3)) == 0) for n, q in enumerate(quotas)]
        charged: list[Settlement] = []
        clock.now_ms = NOON_MS
        for lease in range(1, data.draw(st.integers(1, 10)) + 1):
            clock.advance(data.draw(st.sampled_from([0, 1, 1000, 60_000])))
            if charged and data.draw(st.integers(0, 2)) == 0:
                one = charged.pop(data.draw(st.integers(0, len(charged) - 1)))
                expected = reference.settle_at([one], clock.now_ms)[0]
                await store.settle([one])
                looked = await store.charge([Hit(one.key, one.quota, 0, one.rule)])
                assert expected == plain(looked).tallies[0]
                continue
            hits = [
                hit._replace(key=hit.key.replace(b"{p}", b"{%b}" % principal.encode()))
                for hit in data.draw(mixed_requests(rules, lease))
            ]
            expected_receipt = reference.charge_at(hits, clock.now_ms)
            assert plain(expected_receipt) == plain(await store.charge(hits))
            if expected_receipt.admitted:
                seen = zip(hits, expected_receipt.tallies, strict=True)
                fitted = [hit for hit, tally in seen if hit.cost and not tally.retry_after_ms]
                charged += data.draw(settlements(fitted, clock.now_ms))

    async def test_a_crowd_never_exceeds_slots_and_balance(self, store: Store) -> None:
        """Of 60 concurrent requests 7 get a slot, of 60 others 30 find the balance covers them; what is given back and
        settled for less is there for the next ones.
        """
        slots, credits_ = rule_with(Slots(7), "slots"), rule_with(Balance(300), "credits")
        keys = [f"{{{fresh()}}}:{rule.name}".encode() for rule in (slots, credits_)]
        seats = [Hit(keys[0], slots.quota, 1, slots, lease) for lease in range(1, 61)]
        receipts = await asyncio.gather(*(store.charge([hit]) for hit in seats))
        taken = [hit for hit, receipt in zip(seats, receipts, strict=True) if receipt.admitted]
        assert 7 == len(taken)
        await asyncio.gather(*(store.settle([settlement_of(hit, 0, START_MS)]) for hit in taken[:3]))
        again = await asyncio.gather(*(store.charge([hit._replace(lease=99 + hit.lease)]) for hit in seats))
        assert 3 == sum(receipt.admitted for receipt in again)

        calls = [Hit(keys[1], credits_.quota, 10, credits_, lease) for lease in range(1, 61)]
        receipts = await asyncio.gather(*(store.charge([hit]) for hit in calls))
        paid = [hit for hit, receipt in zip(calls, receipts, strict=True) if receipt.admitted]
        assert 30 == len(paid)
        await store.settle([settlement_of(paid[0], 4, receipts[0].now_ms)])
        await asyncio.gather(*(store.settle([settlement_of(hit, 25, receipts[0].now_ms)]) for hit in paid[1:]))
        looked = await store.charge([calls[0]._replace(cost=0)])
        assert 300 == looked.tallies[0].used

    async def test_a_top_up_is_credited_exactly(self, store: Store) -> None:
        """Spent, refused without a wait, topped up above the limit, and spent again to the last credit."""
        rule = rule_with(Balance(100), "credits")
        hit = Hit(f"{{{fresh()}}}:credits".encode(), rule.quota, 60, rule)
        assert [True, False] == [(await store.charge([hit])).admitted for _ in range(2)]
        credited = await store.charge([topup(hit.key, rule.quota, 500, rule)])
        assert (True, Tally(-440, 0, 0)) == (credited.admitted, plain(credited).tallies[0])
        assert [True] * 9 + [False] == [(await store.charge([hit])).admitted for _ in range(10)]

    async def test_failures_only(self, store: Store) -> None:
        """Charged before and given back after a success, failures alone count, up to the limit."""
        rule = rule_with(Quota(3, 3_600_000), count=frozenset({"401"}))
        hit = Hit(f"{{{fresh()}}}:r:0".encode(), rule.quota, 1, rule)
        for failed in (False, True, False, False, True, False, True):
            receipt = await store.charge([hit])
            assert receipt.admitted
            await store.settle([settlement_of(hit, int(failed), receipt.now_ms)])
        refused = await store.charge([hit])
        assert (False, 3) == (refused.admitted, refused.tallies[0].used)

    async def test_works_again_after_close(self, store: Store) -> None:
        """A closed store may be used again."""
        await store.close()

        assert (await store.charge(hits_of(rule_of(1, 1000), principal=fresh()))).admitted


def plain(receipt: Receipt) -> Receipt:
    """*receipt* in one type of sequence, so that equal means equal numbers."""
    return receipt._replace(tallies=[Tally(*tally) for tally in receipt.tallies])


async def admissions(store: Store, hits: Sequence[Hit], times: int) -> int:
    """How many of *times* equal requests *store* admits."""
    return sum([(await store.charge(hits)).admitted for _ in range(times)])
