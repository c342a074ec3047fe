"""Refusals are remembered, and nobody can tell: the same verdicts and numbers, only the store is asked less."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimiter.core.decision import decide
from ratelimiter.core.quota import AnyQuota, Balance, Bucket, Period, Slots
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, LOCAL, REMEMBERED, STORE, Receipt, Tally
from ratelimiter.core.rule import Hit
from ratelimiter.core.settlement import Settlement, settlement_of
from ratelimiter.errors import StoreTimeout
from ratelimiter.stores.base import Store
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.stores.refusal_cache import HOLD_MS_MAX, RefusalCache
from ratelimiter.testing import FakeClock
from tests.reference_store import START_MS, hits_of, rule_of, rule_with

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ratelimiter.core.decision import Decision

MINUTE_MS = 60_000


class Shared(Store):
    """A store behind a network: counts what it is asked, and time passes on the way there and back."""

    def __init__(self, clock: FakeClock, *, there_ms: int = 0, back_ms: int = 0) -> None:
        self.behind = MemoryStore(clock=clock)
        self.asked: list[int] = []  # when
        self.closed = 0
        self.settled = 0
        self._clock = clock
        self._there_ms = there_ms
        self._back_ms = back_ms

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        self.asked.append(self._clock())
        self._clock.advance(self._there_ms)
        receipt = self.behind.charge_now(hits)
        self._clock.advance(self._back_ms)
        return receipt

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        self.settled += 1
        self.behind.settle_now(settlements)

    async def close(self) -> None:
        self.closed += 1


class Scripted(Store):
    """A store that answers what the test says, in the order that the test says."""

    def __init__(self, *answers: Receipt | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[asyncio.Future[Receipt]] = []

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self.asked.append(future)
        return await future

    async def close(self) -> None: ...


def refusal(*tallies: Tally, source: str = STORE) -> Receipt:
    return Receipt(START_MS, False, list(tallies), source)


@pytest.fixture
def store(clock: FakeClock) -> Shared:
    return Shared(clock)


@pytest.fixture
def remembering(store: Shared, clock: FakeClock) -> RefusalCache:
    return RefusalCache(store, clock=clock)


# Nobody can tell

RULES = {
    "a": rule_of(1, 700, name="a"),
    "b": rule_of(3, 2500, name="b"),
    "c": rule_of(5, 5000, name="c", burst=2),
    "d": rule_of(200, 900, name="d"),  # coarse
    "e": rule_of(2, 1500, name="e", shadow=True),
}
UNTIL_RETRY = 10**6  # a pause that ends when the last refusal said
# Aimed: mostly one principal, two rule sets that share a key, and pauses within which refusals hold.
steps = st.tuples(
    st.sampled_from("ppppppq"),
    st.sampled_from(["b", "ab"] * 4 + ["bc", "be", "abcde", "cd", "d"]),
    st.sampled_from([1] * 6 + [2, 3, 3, 0, 6, 201]),
    # Little by little, to the cap and across it; or to the moment of retry, or one ms before.
    st.sampled_from([0, 0, 1, 1, 100, 100, 300, 300, 500, 500, 999, 1000, 1001, 2500, UNTIL_RETRY, UNTIL_RETRY - 1]),
)
sequences = st.lists(steps, min_size=15, max_size=50)
many = settings(max_examples=400)


async def replayed(sequence: list[tuple[str, str, int, int]], clock: FakeClock, store: Store) -> AsyncIterator[Asked]:
    """Ask *store* all of *sequence*, one after another."""
    retry_ms = 0
    for principal, names, cost, gap_ms in sequence:
        clock.advance(max(0, retry_ms + gap_ms - UNTIL_RETRY) if gap_ms >= UNTIL_RETRY - 1 else gap_ms)
        hits = hits_of(*(RULES[name] for name in names), cost=cost, principal=principal)
        asked = Asked(hits, clock.now_ms, await store.charge(hits))
        retry_ms = asked.decision.retry_after_ms or 0
        yield asked


class Asked(NamedTuple):
    hits: list[Hit]
    at_ms: int
    receipt: Receipt

    @property
    def decision(self) -> Decision:
        return decide(self.hits, self.receipt)


@pytest.mark.slow
@many
@given(sequences)
async def test_says_what_the_store_would_say(sequence: list[tuple[str, str, int, int]]) -> None:
    """With and without memory, one process gets the same decisions, number for number, for any sequence of principals,
    of rule sets that share keys, of costs, and of pauses around the cap and the moment of retry.
    """
    clock = FakeClock(START_MS)
    reference = MemoryStore(clock=clock)
    async for asked in replayed(sequence, clock, RefusalCache(Shared(clock), clock=clock)):
        expected = decide(asked.hits, reference.charge_now(asked.hits))

        assert expected == asked.decision._replace(source=STORE)


@pytest.mark.slow
@many
@given(sequences, st.integers(0, 40), st.integers(0, 40))
async def test_is_never_harsher_than_a_store_far_away(
    sequence: list[tuple[str, str, int, int]], there_ms: int, back_ms: int
) -> None:
    """Whatever time a round trip takes: what memory refuses the store would refuse at that moment, and at the moment
    that memory announces the store admits.
    """
    clock = FakeClock(START_MS)
    store = Shared(clock, there_ms=there_ms, back_ms=back_ms)
    async for asked in replayed(sequence, clock, RefusalCache(store, clock=clock)):
        if asked.receipt.source != REMEMBERED:
            continue
        truth = decide(asked.hits, store.behind.charge_now(asked.hits))
        assert not truth.allowed
        true_ms, told_ms = truth.retry_after_ms, asked.decision.retry_after_ms
        assert (true_ms is None) == (told_ms is None)
        assert true_ms is None or told_ms is None or true_ms <= told_ms <= true_ms + back_ms


async def test_ends_when_an_entry_leaves(remembering: RefusalCache, clock: FakeClock) -> None:
    """A refusal that waits for several entries is asked for afresh when the first of them leaves: the verdict stands,
    but more is remaining.
    """
    rule = rule_of(3, 2000)
    await remembering.charge(hits_of(rule))
    clock.advance(300)
    await remembering.charge(hits_of(rule, cost=2))
    clock.advance(1200)
    refused = [await remembering.charge(hits_of(rule, cost=3)) for _ in range(2)]
    clock.advance(500)

    assert [Tally(3, 500, 800)] * 2 == [receipt.tallies[0] for receipt in refused]
    assert Tally(2, 300, 300) == (await remembering.charge(hits_of(rule, cost=3))).tallies[0]


# What is asked


async def test_a_flood_of_one_principal_reaches_the_store_once_a_second(
    remembering: RefusalCache, store: Shared, clock: FakeClock
) -> None:
    """Of 100,000 requests in ten seconds from a principal that is refused, ten cost the store anything."""
    hits = tuple(hits_of(rule_of(3, MINUTE_MS)))
    for _ in range(3):
        assert (await remembering.charge(hits)).admitted
    asked = len(store.asked)
    for _ in range(10_000):
        for _ in range(10):
            assert not (await remembering.charge(hits)).admitted
        clock.advance(1)

    assert 10 == len(store.asked) - asked
    assert {HOLD_MS_MAX} == {b - a for a, b in zip(store.asked[asked:], store.asked[asked + 1 :], strict=False)}


async def test_a_flood_that_alternates_is_remembered_too(
    remembering: RefusalCache, store: Shared, clock: FakeClock
) -> None:
    """One principal that is refused everywhere and alternates between paths, so between rule sets that share the key
    that refuses, costs the store one request per rule set and second.
    """
    everywhere, here, there = rule_of(1, MINUTE_MS), rule_of(9, 500, name="here"), rule_of(9, 500, name="there")
    paths = [tuple(hits_of(everywhere, *more)) for more in ((), (here,), (there,), (here, there))]
    assert (await remembering.charge(paths[0])).admitted
    asked = len(store.asked)
    for _ in range(1000):
        for hits in paths:
            assert not (await remembering.charge(hits)).admitted
        clock.advance(1)

    assert len(paths) == len(store.asked) - asked


async def test_admissions_cost_one_question_each(remembering: RefusalCache, store: Shared) -> None:
    """Memory never admits: each admission is the store's."""
    hits = hits_of(rule_of(100, MINUTE_MS))
    receipts = [await remembering.charge(hits) for _ in range(100)]

    assert {(True, STORE)} == {(receipt.admitted, receipt.source) for receipt in receipts}
    assert 100 == len(store.asked)


# When it ends


async def test_ends_at_the_moment_of_retry(remembering: RefusalCache, store: Shared, clock: FakeClock) -> None:
    """One millisecond before the announced moment a retry is refused, at it admitted by the store."""
    hits = hits_of(rule_of(1, 500))
    await remembering.charge(hits)
    clock.advance(100)
    assert 400 == (await remembering.charge(hits)).tallies[0].retry_after_ms
    clock.advance(399)
    assert not (await remembering.charge(hits)).admitted
    clock.advance(1)

    assert Receipt(START_MS + 500, True, [Tally(1, 500, 0)]) == await charged(remembering, hits)


@pytest.mark.parametrize("ahead_us", range(0, 1000, 100))
async def test_holds_no_part_of_a_millisecond_too_long(ahead_us: int) -> None:
    """The store's clock and ours tick at different moments: once the store lets go, nobody is refused."""
    now_us = START_MS * 1000
    store = MemoryStore(clock=lambda: (now_us + ahead_us) // 1000)
    remembering = RefusalCache(store, clock=lambda: now_us // 1000)
    hits = hits_of(rule_of(1, 5))
    await remembering.charge(hits)
    for now_us in range(START_MS * 1000, START_MS * 1000 + 10_000, 100):  # noqa: B007 - the clocks read it
        if (await remembering.charge(hits)).admitted:
            break

    assert START_MS * 1000 + 5000 - ahead_us == now_us


async def test_counts_down(remembering: RefusalCache, clock: FakeClock) -> None:
    """Reset, retry and the store's clock move on with the time that has passed."""
    hits = hits_of(rule_of(1, MINUTE_MS))
    await remembering.charge(hits)
    await remembering.charge(hits)
    clock.advance(999)

    assert Receipt(START_MS + 999, False, [Tally(1, 59_001, 59_001)], REMEMBERED) == await charged(remembering, hits)


async def test_ends_after_a_second(remembering: RefusalCache, store: Shared, clock: FakeClock) -> None:
    """What an operator resets in the store is in force here after a second, without a word."""
    hits = hits_of(rule_of(1, MINUTE_MS))
    await remembering.charge(hits)
    await remembering.charge(hits)
    store.behind = MemoryStore(clock=clock)  # all is forgiven
    clock.advance(999)
    assert REMEMBERED == (await remembering.charge(hits)).source
    clock.advance(1)

    assert (await remembering.charge(hits)).admitted


async def test_a_changed_rule_is_asked_afresh(remembering: RefusalCache, store: Shared) -> None:
    """A refusal is about these very hits: another quota, cost or rule, one hit more or less, is another question."""
    rule = rule_of(2, MINUTE_MS)
    hits = hits_of(rule, cost=2)
    await remembering.charge(hits)
    assert not (await remembering.charge(hits)).admitted
    asked = len(store.asked)
    others = [
        hits_of(rule_of(2, MINUTE_MS + 1), cost=2),
        hits_of(rule_of(1, MINUTE_MS), cost=1),
        hits_of(rule, cost=1),
        hits_of(rule_of(2, MINUTE_MS, shadow=True), cost=2),
        [*hits, *hits_of(rule_of(9, MINUTE_MS, name="more"), cost=2)],
    ]
    for other in others:
        assert REMEMBERED != (await remembering.charge(other)).source

    assert len(others) == len(store.asked) - asked
    assert (await remembering.charge(hits_of(rule_of(9, MINUTE_MS), cost=2))).admitted  # a raised limit is in force


async def test_what_is_never_going_to_fit_is_not_remembered(remembering: RefusalCache, store: Shared) -> None:
    """A cost above the limit has no moment of retry, so there is nothing to remember."""
    hits = hits_of(rule_of(3, MINUTE_MS), cost=4)

    assert [STORE] * 3 == [(await remembering.charge(hits)).source for _ in range(3)]


@pytest.mark.parametrize("source", [LOCAL, FAIL_CLOSED, FAIL_OPEN, REMEMBERED])
async def test_only_the_store_itself_is_remembered(clock: FakeClock, source: str) -> None:
    """What a guard refused without the store says nothing about the store."""
    answers = [refusal(Tally(1, 5000, 5000), source=source)] * 3
    remembering = RefusalCache(Scripted(*answers), clock=clock)
    hits = hits_of(rule_of(1, MINUTE_MS))

    assert answers == [await remembering.charge(hits) for _ in range(3)]


async def test_an_error_is_no_refusal(clock: FakeClock) -> None:
    """An error passes through, and the next request asks again."""
    remembering = RefusalCache(Scripted(StoreTimeout("late"), refusal(Tally(1, 5000, 5000))), clock=clock)
    hits = hits_of(rule_of(1, MINUTE_MS))
    with pytest.raises(StoreTimeout):
        await remembering.charge(hits)

    assert [STORE, REMEMBERED] == [(await remembering.charge(hits)).source for _ in range(2)]


# How much


async def test_never_more_than_its_bound(store: Shared, clock: FakeClock) -> None:
    """However many principals are refused, the latest *remembered_max* refusals are held, and nothing else."""
    remembering = RefusalCache(store, remembered_max=10, clock=clock)
    rules = [rule_of(1, MINUTE_MS), rule_of(9, MINUTE_MS, name="other")]
    requests = [hits_of(*rules, principal=f"p{index}") for index in range(100)]
    for hits in requests:
        await remembering.charge(hits)
        await remembering.charge(hits)
        assert len(remembering) <= 10
    asked = len(store.asked)
    sources = [(await remembering.charge(hits)).source for hits in requests[-10:]]

    assert [REMEMBERED] * 10 == sources
    assert asked == len(store.asked)
    assert 20 == len(remembering._concerned)


async def test_keeps_nothing_of_what_has_ended(remembering: RefusalCache, clock: FakeClock) -> None:
    """A refusal that has ended is forgotten when its request comes again, with all that belonged to it."""
    hits = hits_of(rule_of(1, 500), rule_of(9, 500, name="other"))
    await remembering.charge(hits)
    await remembering.charge(hits)
    assert (1, 2) == (len(remembering), len(remembering._concerned))
    clock.advance(500)
    await remembering.charge(hits)

    assert (0, 0) == (len(remembering), len(remembering._concerned))


async def test_close_forgets(remembering: RefusalCache, store: Shared) -> None:
    """A closed store remembers nothing and closes the one behind it."""
    hits = hits_of(rule_of(1, MINUTE_MS))
    await remembering.charge(hits)
    await remembering.charge(hits)
    await remembering.close()

    assert (0, 0, 1) == (len(remembering), len(remembering._concerned), store.closed)
    assert STORE == (await remembering.charge(hits)).source


# Interleavings


async def test_an_admission_elsewhere_ends_it(remembering: RefusalCache) -> None:
    """A request that is admitted and shares a key with a remembered refusal changes what that has left, so it is asked
    for afresh; the verdict stands.
    """
    tight, shared = rule_of(1, MINUTE_MS, name="tight"), rule_of(5, MINUTE_MS, name="shared")
    both = hits_of(tight, shared)
    await remembering.charge(both)
    assert [1, 1] == [tally.used for tally in (await remembering.charge(both)).tallies]
    await remembering.charge(hits_of(shared))
    receipt = await remembering.charge(both)

    assert (False, STORE) == (receipt.admitted, receipt.source)
    assert [1, 2] == [tally.used for tally in receipt.tallies]


async def test_a_peek_ends_nothing(remembering: RefusalCache) -> None:
    """A request of cost 0 charges nothing, so that a client cannot wipe the memory by peeking."""
    rule = rule_of(1, MINUTE_MS)
    await remembering.charge(hits_of(rule))
    await remembering.charge(hits_of(rule))
    assert (await remembering.charge(hits_of(rule, cost=0))).admitted

    assert REMEMBERED == (await remembering.charge(hits_of(rule))).source


@pytest.mark.parametrize("refusal_first", [True, False])
async def test_an_admission_in_flight(clock: FakeClock, refusal_first: bool) -> None:
    """Of two concurrent requests one is admitted and one refused, and the replies come in either order: the refusal is
    as true as before, so at worst it is asked for once more.
    """
    scripted = Scripted()
    remembering = RefusalCache(scripted, clock=clock)
    hits = hits_of(rule_of(1, MINUTE_MS))
    admitted, refused = (asyncio.ensure_future(remembering.charge(hits)) for _ in range(2))
    await asyncio.sleep(0)
    answers = [Receipt(START_MS, True, [Tally(1, MINUTE_MS, 0)]), refusal(Tally(1, MINUTE_MS, MINUTE_MS))]
    for index in (1, 0) if refusal_first else (0, 1):
        scripted.asked[index].set_result(answers[index])
        await (admitted, refused)[index]
    scripted.answers = [answers[1]]

    assert not (await remembering.charge(hits)).admitted


async def test_a_slow_reply_does_not_outlive_the_refusal(clock: FakeClock) -> None:
    """Two refusals cross: the one that was asked for first comes last. Neither is held beyond what the store said,
    counted from before the question.
    """
    scripted = Scripted()
    remembering = RefusalCache(scripted, clock=clock)
    hits = hits_of(rule_of(1, MINUTE_MS))
    early = asyncio.ensure_future(remembering.charge(hits))
    await asyncio.sleep(0)
    clock.advance(40)
    late = asyncio.ensure_future(remembering.charge(hits))
    await asyncio.sleep(0)
    scripted.asked[1].set_result(refusal(Tally(1, 60, 60)))
    await late
    clock.advance(10)
    scripted.asked[0].set_result(refusal(Tally(1, 100, 100)))
    await early
    clock.advance(50)  # 100 after the first question: the store lets go
    scripted.answers = [Receipt(START_MS, True, [Tally(1, MINUTE_MS, 0)])]

    assert (await remembering.charge(hits)).admitted


async def test_a_caller_that_leaves_changes_nothing(clock: FakeClock) -> None:
    """A cancelled request is neither an admission nor a refusal."""
    scripted = Scripted()
    remembering = RefusalCache(scripted, clock=clock)
    hits = hits_of(rule_of(1, MINUTE_MS))
    leaving = asyncio.ensure_future(remembering.charge(hits))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving

    assert 0 == len(remembering)


async def charged(store: RefusalCache, hits: Sequence[Hit]) -> Receipt:
    """One charge, with its tallies as a list, whatever sequence the store uses."""
    receipt = await store.charge(hits)
    return receipt._replace(tallies=[Tally(*tally) for tally in receipt.tallies])


# Other kinds than windows, and settlements


@pytest.mark.parametrize(
    ("quota", "lease"), [(Slots(1), 7), (Balance(1), 0), (Period(1, "month", credits=True), 7)], ids=["slots", "b", "p"]
)
async def test_what_may_be_there_at_any_moment_is_asked_for(
    remembering: RefusalCache, store: Shared, quota: AnyQuota, lease: int
) -> None:
    """A slot may return and a balance be topped up through another process: such refusals are not remembered."""
    hit = Hit(b"k", quota, 1, rule_with(quota), lease)
    for _ in range(4):
        await remembering.charge([hit])

    assert 4 == len(store.asked)
    assert 0 == len(remembering)


@pytest.mark.parametrize("quota", [Bucket(1, 1, 60_000), Period(1, "month")], ids=lambda quota: quota.kind)
async def test_refusals_of_other_kinds_are_remembered(
    remembering: RefusalCache, store: Shared, quota: AnyQuota
) -> None:
    """What only time gives back is as certain as with windows."""
    hit = Hit(b"k", quota, 1, rule_with(quota))
    receipts = [await remembering.charge([hit]) for _ in range(4)]

    assert [STORE, STORE, REMEMBERED, REMEMBERED] == [receipt.source for receipt in receipts]
    assert 2 == len(store.asked)


async def test_a_settlement_ends_what_is_remembered_of_its_key(
    remembering: RefusalCache, store: Shared, clock: FakeClock
) -> None:
    """Who is given back finds room at once; refusals of other keys stand."""
    mine, other = hits_of(RULES["a"]), hits_of(RULES["a"], principal="q")
    for hits in (mine, other, mine, other):
        await remembering.charge(hits)
    await remembering.settle([settlement_of(mine[0], 0, clock())])

    assert STORE == (await remembering.charge(mine)).source
    assert REMEMBERED == (await remembering.charge(other)).source
    assert 1 == store.settled
