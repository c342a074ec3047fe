"""Goal: units taken in advance never let a window hold one too many. Method: a state machine over processes whose
clocks differ, with questions and answers on their way, crashes and pauses, held against a log that forgets nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ratelimiter.core.cell_lease import SHARE
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.errors import StoreTimeout
from ratelimiter.stores.base import Store
from ratelimiter.stores.leases import LeasingStore
from ratelimiter.stores.memory import MemoryStore
from tests.exact_log import ExactLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.settlement import Settlement

START_US = 1_800_000_000_000_000
WINDOW_MS = 6400  # cells of 50 ms
LIMIT = 160


def hit(limit: int = LIMIT, window_ms: int = WINDOW_MS, key: bytes = b"key", **more: object) -> Hit:
    """Return a hit of one unit."""
    quota = Quota(limit, window_ms)
    return Hit(key, quota, 1, Rule("rule", quota, **more))  # type: ignore[arg-type]


class Time:
    """The true time, in microseconds, of which each clock shows whole milliseconds."""

    def __init__(self) -> None:
        self.us = START_US

    def __call__(self) -> int:
        return self.us // 1000


class Wire(Store):
    """A store at the end of a network: what is asked arrives, and is answered, when the test says so."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.asked: list[tuple[str, object, asyncio.Future[Receipt | None]]] = []
        self.answered: list[tuple[asyncio.Future[Receipt | None], Receipt | None]] = []
        self.cut = False

    async def _ask(self, what: str, given: object) -> Receipt | None:
        future: asyncio.Future[Receipt | None] = asyncio.get_running_loop().create_future()
        self.asked.append((what, given, future))
        return await future

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        receipt = await self._ask("charge", list(hits))
        assert receipt is not None
        return receipt

    async def settle(self, settlements: Sequence[Settlement], source: str = "store") -> None:
        await self._ask("settle", list(settlements))

    def arrive(self, number: int) -> None:
        """Let one question reach the store."""
        what, given, future = self.asked.pop(number % len(self.asked))
        receipt = None
        if what == "charge":
            receipt = self._store.charge_now(given)  # type: ignore[arg-type]
        else:
            self._store.settle_now(given)  # type: ignore[arg-type]
        self.answered.append((future, receipt))

    def answer(self, number: int) -> None:
        """Let one answer reach its process."""
        future, receipt = self.answered.pop(number % len(self.answered))
        if not future.done():
            future.set_result(receipt)

    def lose(self, number: int) -> None:
        """Let one answer be lost: the process does not know whether it was charged."""
        future, _ = self.answered.pop(number % len(self.answered))
        if not future.done():
            future.set_exception(StoreTimeout("no answer"))


PROCESSES = 3


class Leases(RuleBasedStateMachine):
    """Three processes, one store, one key."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: asyncio.AbstractEventLoop | None = None  # until `begin`
        self.time = Time()
        self.store = MemoryStore(clock=self.time)
        self.log = ExactLog(LIMIT, WINDOW_MS)
        self.tasks: list[asyncio.Task[None]] = []

    @initialize(offsets=st.lists(st.integers(0, 10**7), min_size=PROCESSES, max_size=PROCESSES))
    def begin(self, offsets: list[int]) -> None:
        self.loop = asyncio.new_event_loop()
        self.offsets = offsets
        self.wires = [Wire(self.store) for _ in range(PROCESSES)]
        self.processes = [self._process(number) for number in range(PROCESSES)]

    def _process(self, number: int) -> LeasingStore:
        offset = self.offsets[number]
        return LeasingStore(self.wires[number], clock=lambda: (self.time.us + offset) // 1000)

    def _turn(self) -> None:
        async def turn() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        assert self.loop is not None
        self.loop.run_until_complete(turn())

    async def _request(self, process: LeasingStore) -> None:
        try:
            receipt = process.spend([HIT]) or await process.charge([HIT])
        except StoreTimeout:
            return
        if receipt.admitted:
            # Charged by the store at the latest now, and at the earliest when it was asked: a caller that waits for
            # the answer is served now. Without a lease the store's moment counts, which is in the log already.
            self.log.note(1, receipt.now_ms)

    @rule(number=st.integers(0, PROCESSES - 1), count=st.integers(1, 12))
    def ask(self, number: int, count: int) -> None:
        for _ in range(count):
            process = self.processes[number]
            receipt = process.spend([HIT])
            if receipt is not None:
                self.log.note(1, self.time())  # spent at this very moment of the true time
            else:
                assert self.loop is not None
                self.tasks.append(self.loop.create_task(self._request(process)))
        self._turn()

    @rule(number=st.integers(0, PROCESSES - 1), which=st.integers(0, 50), count=st.integers(1, 8))
    def carry(self, number: int, which: int, count: int) -> None:
        wire = self.wires[number]
        for _ in range(count):
            if wire.asked:
                wire.arrive(which)
            if wire.answered:
                wire.answer(which)
        self._turn()

    @precondition(lambda self: any(wire.asked for wire in self.wires))
    @rule(which=st.integers(0, 50))
    def arrive(self, which: int) -> None:
        wire = next(wire for wire in self.wires if wire.asked)
        wire.arrive(which)

    @precondition(lambda self: any(wire.answered for wire in self.wires))
    @rule(which=st.integers(0, 50), lost=st.booleans())
    def answer(self, which: int, lost: bool) -> None:
        wire = next(wire for wire in self.wires if wire.answered)
        (wire.lose if lost else wire.answer)(which)
        self._turn()

    @rule(us=st.sampled_from([1, 300, 999, 1000, 7_777, 20_000, 49_000, 50_000, 51_001, 400_000, 6_400_000]))
    def pass_time(self, us: int) -> None:
        self.time.us += us

    @rule(number=st.integers(0, PROCESSES - 1))
    def sweep(self, number: int) -> None:
        async def sweep() -> None:
            self.processes[number]._sweep()

        assert self.loop is not None
        self.loop.run_until_complete(sweep())
        self._turn()

    @rule(number=st.integers(0, PROCESSES - 1))
    def crash(self, number: int) -> None:
        self.wires[number] = Wire(self.store)
        self.processes[number] = self._process(number)

    @invariant()
    def no_window_holds_more_than_the_limit(self) -> None:
        """Invariant 2, for each window that ends with an admission."""
        for instant in {instant for instant, _ in self.log.entries[-100:]}:
            assert self.log.used(instant) <= LIMIT

    def teardown(self) -> None:
        if self.loop is None:
            return
        for process in getattr(self, "processes", ()):
            if process._timer is not None:
                process._timer.cancel()

        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.loop.run_until_complete(end())
        self.loop.close()


HIT = hit()
TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


class Far(Store):
    """The embedded store at the end of a wire on which time passes, by the true clock, in both directions."""

    def __init__(self, store: MemoryStore, time: Time) -> None:
        self._store = store
        self._time = time
        self.there_us = self.back_us = 0

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        self._time.us += self.there_us
        receipt = self._store.charge_now(hits)
        self._time.us += self.back_us
        return receipt

    async def settle(self, settlements: Sequence[Settlement], source: str = "store") -> None:
        self._store.settle_now(settlements)


SHORT_MS = 2560  # the shortest window whose cells are leased
PHASES = st.tuples(
    st.integers(0, 12_000),  # microseconds from one request to the next
    st.integers(20, 250),  # requests
    st.sampled_from([0, 400, 999, 1000, 2500, 9_000]),  # microseconds to the store
    st.sampled_from([0, 400, 999, 1000, 2500, 9_000]),  # and back
    st.integers(1, PROCESSES),  # processes that take turns
)


@given(
    phases=st.lists(PHASES, min_size=2, max_size=12), offsets=st.lists(st.integers(0, 10**6), min_size=3, max_size=3)
)
def test_no_window_of_a_long_run_holds_more_than_the_limit(
    phases: list[tuple[int, int, int, int, int]], offsets: list[int]
) -> None:
    """Invariant 2 under load that fills the window again and again, over wires of any delay, on clocks that differ."""

    async def run() -> list[int]:
        time = Time()
        far = Far(MemoryStore(clock=time), time)
        one = hit(LIMIT, SHORT_MS)
        processes = [LeasingStore(far, clock=lambda us=us: (time.us + us) // 1000) for us in offsets]  # type: ignore[misc]
        admitted = []
        for gap_us, requests, far.there_us, far.back_us, among in phases:
            for number in range(requests):
                time.us += gap_us
                process = processes[number % among]
                receipt = process.spend([one])
                if receipt is not None:
                    admitted.append(time())
                    continue
                receipt = await process.charge([one])
                if receipt.admitted:
                    admitted.append(receipt.now_ms)
                if number % 16 == 0:
                    process._sweep()
                    await asyncio.sleep(0)
        for process in processes:
            await process.close()
        return sorted(admitted)

    admitted = asyncio.run(run())
    assert all(later - first >= SHORT_MS for first, later in zip(admitted, admitted[LIMIT:], strict=False))


class Counting(Store):
    """The embedded store as a shared one, which counts how often it is asked."""

    def __init__(self, clock: Time) -> None:
        self.inner = MemoryStore(clock=clock)
        self.calls = 0

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        self.calls += 1
        return self.inner.charge_now(hits)

    async def settle(self, settlements: Sequence[Settlement], source: str = "store") -> None:
        self.calls += 1
        self.inner.settle_now(settlements)


async def spent(process: LeasingStore, hits: Sequence[Hit]) -> Receipt:
    return process.spend(hits) or await process.charge(hits)


async def test_a_busy_process_asks_seldom() -> None:
    """At 1,000 requests a second of 60,000 a minute a process asks the store a few times a cell, not a thousand."""
    time = Time()
    store = Counting(time)
    process = LeasingStore(store, clock=time)
    one = hit(60_000, 60_000)
    for _ in range(5000):
        time.us += 1000
        assert (await spent(process, [one])).admitted
    await process.close()

    assert store.calls < 100
    assert 5000 == store.inner.charge_now([one._replace(cost=0)]).tallies[0].used


async def test_figures_are_those_of_a_store_that_is_asked_each_time() -> None:
    """A lone process tells its clients the same remaining and reset, leased or not."""
    time = Time()
    process = LeasingStore(Counting(time), clock=time)
    exact = MemoryStore(clock=time)
    one = hit(2000, 60_000)
    for number in range(1500):
        time.us += (number * 7919) % 5000
        ours, theirs = await spent(process, [one]), exact.charge_now([one])
        assert theirs.admitted == ours.admitted
        assert theirs.tallies[0].used == ours.tallies[0].used
        assert theirs.now_ms + theirs.tallies[0].reset_ms == ours.now_ms + ours.tallies[0].reset_ms
    await process.close()


async def test_several_rules_are_leased_together_or_not_at_all() -> None:
    """What is spent of one rule is spent of the other, whichever is nearer to its limit."""
    time = Time()
    store = Counting(time)
    process = LeasingStore(store, clock=time)
    both = [hit(3000, 60_000, b"minute"), hit(500, 60_000, b"other")]
    admitted = 0
    for _ in range(1000):
        time.us += 1000
        admitted += (await spent(process, both)).admitted
    await process.close()

    assert 500 == admitted
    used = [store.inner.charge_now([each._replace(cost=0)]).tallies[0].used for each in both]
    assert [500, 500] == used


async def test_near_the_limit_each_request_is_decided_by_the_store() -> None:
    """The last requests are exact: with fewer than `SHARE` units left nothing is taken in advance."""
    time = Time()
    store = Counting(time)
    process = LeasingStore(store, clock=time)
    one = hit(1000, 60_000)
    admitted = 0
    for _ in range(1500):
        time.us += 100
        admitted += (await spent(process, [one])).admitted
        left = len(process)
        used = store.inner.charge_now([one._replace(cost=0)]).tallies[0].used
        assert left <= max(0, 1000 - used + left) // SHARE + 1

    assert 1000 == admitted
    await process.close()


async def test_what_an_operator_changes_ends_all_leases() -> None:
    """After `forget_refusals` the store is asked again, and has back what was unspent."""
    time = Time()
    store = Counting(time)
    process = LeasingStore(store, clock=time)
    one = hit(60_000, 60_000)
    for _ in range(200):
        time.us += 1000
        await spent(process, [one])
    assert len(process)
    process.forget_refusals()

    assert not len(process)
    assert process.spend([one]) is None
    await process.flush()
    assert 200 == store.inner.charge_now([one._replace(cost=0)]).tallies[0].used


class Yielding(Counting):
    """A store that is asked by several at the same time."""

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        await asyncio.sleep(0)
        return await super().charge(hits)


async def test_requests_at_the_same_time_strand_no_units() -> None:
    """When a lease has ended, those that come together take one new lease, and what is unspent of any comes back."""
    time = Time()
    store = Yielding(time)
    process = LeasingStore(store, clock=time)
    one = hit(60_000, 60_000)
    admitted = 0
    for _ in range(30):
        for _ in range(40):
            time.us += 1000
            admitted += (await spent(process, [one])).admitted
        time.us += 500_000  # the cell ends, with units unspent
        receipts = await asyncio.gather(*(spent(process, [one]) for _ in range(8)))
        admitted += sum(receipt.admitted for receipt in receipts)
    await process.close()

    assert admitted == store.inner.charge_now([one._replace(cost=0)]).tallies[0].used
