"""What a store is told of requests after they were admitted. The store notes it; time is that of `turning_loop`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.core.decision import Decision, Outcome, malformed, refused_for
from ratelimiter.core.quota import Balance, Period, Quota, Slots
from ratelimiter.core.receipt import FAIL_OPEN, LOCAL, REMEMBERED, STORE
from ratelimiter.core.requirement import Unmet
from ratelimiter.core.rule import RESPONSE_HEADER, CostFrom, Hit, Mode, Rule
from ratelimiter.core.settlement import RENEW
from ratelimiter.engine.observer import Observer
from ratelimiter.engine.settlements import TOGETHER_MAX, UNDER_WAY_MAX, Settlements
from ratelimiter.errors import StoreTimeout
from ratelimiter.stores.base import Store
from tests.turning_loop import turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.settlement import Settlement

NOW_MS = 1_800_000_000_000
TOLD = CostFrom(RESPONSE_HEADER, "x-cost")
FAILURES = Rule("failures", Quota(5, 60_000), count=frozenset({"401", "404"}))
PRICED = Rule("priced", Quota(100, 60_000), cost=50, cost_from=TOLD)
SLOTS = Rule("slots", Slots(10, lease_ttl_ms=3000))
CREDITS = Rule("credits", Balance(1000, lease_ttl_ms=30_000), cost=50, cost_from=TOLD)
MONTHLY = Rule("monthly", Period(1000, "month"), count=frozenset({"2xx"}))
PLAIN = Rule("plain", Quota(5, 60_000))


class Notebook(Store):
    """A store that notes what it is told, when, and fails if it is asked to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, list[Settlement], float]] = []
        self.error = error
        self.held: asyncio.Event | None = None

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        raise NotImplementedError

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        self.calls.append((source, list(settlements), asyncio.get_running_loop().time() - 1000))
        if self.held is not None:
            await self.held.wait()
        if self.error is not None:
            raise self.error

    async def close(self) -> None: ...

    @property
    def told(self) -> list[tuple[str, int]]:
        """Names of rules and what was due."""
        return [(each.rule.name, each.due) for _, settlements, _ in self.calls for each in settlements]


class Failures(Observer):
    """An observer that keeps what failed."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def called(self, requests: int, seconds: float) -> None: ...

    def failed(self, kind: str) -> None:
        self.kinds.append(kind)

    def degraded(self, *, degraded: bool) -> None: ...


def hits_of(*rules: Rule, lease: int = 7) -> list[Hit]:
    return [
        Hit(f"key-{rule.name}".encode(), quota, rule.cost, rule, lease if rule.leased else 0)
        for rule in rules
        for quota in rule.quotas
    ]


def admitted(hits: Sequence[Hit], source: str = STORE) -> Decision:
    outcomes = [Outcome(hit.rule, 1, 0, 0) for hit in hits]
    return Decision(True, "within_limit", NOW_MS, outcomes, outcomes[0], source)


async def settled_of(*rules: Rule, does: Any, source: str = STORE) -> Notebook:
    """What the store is told of a request with which *does* is done."""
    store = Notebook()
    settlements = Settlements(store)
    hits = hits_of(*rules)
    pending = settlements.pending(admitted(hits, source), hits)
    assert pending is not None
    does(pending)
    await settlements.settled(1)
    return store


def answered(status: int, cost: bytes | None = None) -> Any:
    def does(pending: Any) -> None:
        pending.responded(status, [] if cost is None else [(b"X-Cost", cost)])
        pending.ended()

    return does


@pytest.mark.parametrize(
    ("rules", "does", "told"),
    [
        ([FAILURES], answered(200), [("failures", 0)]),
        ([FAILURES], answered(401), []),  # it counts: what was charged stands
        ([PRICED], answered(200, b"12"), [("priced", 12)]),
        ([PRICED], answered(200, b"50"), []),
        ([PRICED], answered(200, b"80"), [("priced", 80)]),
        ([PRICED], answered(200), []),
        ([PRICED], answered(200, b"a lot"), []),
        ([CREDITS], answered(200, b"12"), [("credits", 12)]),
        ([CREDITS], answered(200), [("credits", 50)]),  # a reservation is not left to lapse
        ([MONTHLY], answered(200), [("monthly", 1)]),
        ([MONTHLY], answered(500), [("monthly", 0)]),
        ([SLOTS], answered(200), [("slots", 0)]),
        ([PLAIN, SLOTS, FAILURES], answered(200), [("failures", 0), ("slots", 0)]),
        ([SLOTS], lambda pending: pending.ended(), [("slots", 0)]),
        ([FAILURES], lambda pending: pending.ended(), []),  # nobody knows what it would have been
        ([PRICED], lambda pending: pending.ended(), []),
        ([CREDITS], lambda pending: pending.ended(), [("credits", 0)]),
        ([MONTHLY], lambda pending: pending.ended(), [("monthly", 1)]),
        ([FAILURES, CREDITS, PRICED, SLOTS], lambda f: f.refused(401), [("credits", 0), ("priced", 0), ("slots", 0)]),
        ([FAILURES], lambda pending: pending.refused(403), [("failures", 0)]),
    ],
)
def test_what_is_settled(rules: list[Rule], does: Any, told: list[tuple[str, int]]) -> None:
    """By its response or its end, each charge comes to what is due, and is spoken of only if that is news."""
    assert told == turn(settled_of(*rules, does=does)).told


def test_each_is_settled_once() -> None:
    """Whatever is told again changes nothing."""

    def does(pending: Any) -> None:
        for _ in range(2):
            pending.responded(200, iter([(b"x-cost", b"12")]))
            pending.responded(500, [])
        for _ in range(2):
            pending.ended()

    assert [("credits", 12), ("slots", 0)] == turn(settled_of(SLOTS, CREDITS, does=does)).told


def test_a_settlement_says_what_was_charged() -> None:
    """The store finds the charge by its key, its moment and its lease."""
    store = turn(settled_of(CREDITS, does=answered(200, b"12"), source=LOCAL))
    ((source, (settlement,), _),) = store.calls

    assert (LOCAL, b"key-credits", 50, 12, 7, NOW_MS) == (
        source,
        settlement.key,
        settlement.charged,
        settlement.due,
        settlement.lease,
        settlement.charged_at_ms,
    )


def test_a_burst_has_two_charges() -> None:
    """Both of a rule's windows get back what is due."""
    rule = Rule("bursty", Quota(5, 60_000), burst=2, count=frozenset({"401"}))

    assert [("bursty", 0)] * 2 == turn(settled_of(rule, does=answered(200))).told


async def test_nothing_is_followed_that_was_not_charged() -> None:
    """Refusals, admissions without a store, plain rules, and rules in shadow that would have refused."""
    settlements = Settlements(Notebook())
    hits = hits_of(FAILURES)
    shadow = Rule("shadow", Slots(1), mode=Mode.SHADOW)
    decision = admitted(hits)
    withheld = decision._replace(outcomes=[Outcome(shadow, 0, 0, 500)])

    assert settlements.pending(malformed(NOW_MS, "path", "is odd"), hits) is None
    assert settlements.pending(decision._replace(allowed=False, source=REMEMBERED), hits) is None
    assert settlements.pending(decision._replace(source=FAIL_OPEN), hits) is None
    assert settlements.pending(admitted(hits_of(PLAIN)), hits_of(PLAIN)) is None
    assert settlements.pending(withheld, hits_of(shadow)) is None
    assert 0 == len(settlements)
    lacking = refused_for(decision, Unmet("credentials_missing", "", "", ""))
    assert settlements.pending(lacking, hits) is not None  # it was charged before it was refused


def test_leases_are_renewed_until_they_are_settled() -> None:
    """Every third of their life, together where they are due together; and a settled one never again."""

    async def main() -> tuple[Notebook, int, int]:
        store = Notebook()
        settlements = Settlements(store)
        requests = []
        for lease in range(1, 6):
            hits = hits_of(SLOTS, lease=lease)
            requests.append(settlements.pending(admitted(hits), hits))
        await asyncio.sleep(0.1)  # nearly due at the same time as those before
        hits = hits_of(CREDITS, lease=9)
        of_credits = settlements.pending(admitted(hits), hits)
        await asyncio.sleep(2.5)
        for pending in requests[:4]:
            assert pending is not None
            pending.ended()
        await asyncio.sleep(1)
        requests[4].ended()  # type: ignore[union-attr]
        left = len(settlements)
        await asyncio.sleep(10)
        of_credits.responded(200, [(b"x-cost", b"1")])  # type: ignore[union-attr]
        await asyncio.sleep(1000)
        return store, left, len(settlements)

    store, left, after = turn(main())
    renewals = [(each.rule.name, each.lease, s) for _, them, s in store.calls for each in them if each.due == RENEW]
    of_slots = [(lease, round(s, 3)) for name, lease, s in renewals if name == "slots"]

    assert [(lease, s) for s in (1.0, 2.0) for lease in range(1, 6)] + [(5, 3.0)] == of_slots
    assert [("credits", 9)] == [(name, lease) for name, lease, _ in renewals if name == "credits"]
    assert (1, 0) == (left, after)


def test_one_timer_serves_all() -> None:
    """However many requests are open, the loop holds one moment for them."""

    async def main() -> int:
        settlements = Settlements(Notebook())
        for lease in range(1, 1000):
            for rule in (SLOTS, CREDITS):
                hits = hits_of(rule, lease=lease)
                settlements.pending(admitted(hits), hits)
        await asyncio.sleep(1.5)
        loop: Any = asyncio.get_running_loop()
        return len([handle for handle in loop._scheduled if not handle.cancelled()])

    assert 1 == turn(main())


def test_calls_are_few_and_in_order() -> None:
    """What gathers in one turn of the loop travels together, as far as a store may be told it at once."""

    async def main() -> Notebook:
        store = Notebook()
        settlements = Settlements(store)
        for number in range(TOGETHER_MAX + 1):
            hit = Hit(b"%d" % number, FAILURES.quota, 1, FAILURES)
            settlements.pending(admitted([hit]), [hit]).responded(200, ())  # type: ignore[union-attr]
        for lease in range(1, 4):  # of one key, of which a call may speak once
            hits = hits_of(SLOTS, lease=lease)
            settlements.pending(admitted(hits), hits).ended()  # type: ignore[union-attr]
        await settlements.settled(1)
        return store

    store = turn(main())
    keys = [[each.key for each in settlements] for _, settlements, _ in store.calls]

    assert [TOGETHER_MAX, 2, 1, 1] == [len(call) for call in keys]
    assert all(len(call) == len(set(call)) for call in keys)
    assert [1, 2, 3] == [each.lease for _, them, _ in store.calls for each in them if each.lease]


def test_what_fails_is_counted_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Of whatever kind it is; each kind is logged once."""

    async def main(error: Exception) -> list[str]:
        failures = Failures()
        settlements = Settlements(Notebook(error), failures)
        for _ in range(3):
            hits = hits_of(SLOTS)
            settlements.pending(admitted(hits), hits).ended()  # type: ignore[union-attr]
            await settlements.settled(1)
        return failures.kinds

    assert ["timeout"] * 3 == turn(main(StoreTimeout("no answer")))
    assert ["RuntimeError"] * 3 == turn(main(RuntimeError("ours")))
    assert 2 == len([record for record in caplog.records if "a settlement failed" in record.message])


def test_a_store_that_hangs_fills_no_memory() -> None:
    """What cannot be sent any more is given up, and counted."""

    async def main() -> tuple[int, int]:
        store, failures = Notebook(), Failures()
        store.held = asyncio.Event()
        settlements = Settlements(store, failures)
        for number in range(UNDER_WAY_MAX + 10):
            hit = Hit(b"%d" % number, FAILURES.quota, 1, FAILURES)
            settlements.pending(admitted([hit]), [hit]).responded(200, ())  # type: ignore[union-attr]
        await settlements.settled(0.01)
        store.held.set()
        await settlements.settled(1)
        return len(store.told), len(failures.kinds)

    assert (UNDER_WAY_MAX, 10) == turn(main())


def test_what_is_sent_is_in_front(caplog: pytest.LogCaptureFixture) -> None:
    """Who waits for `sent` comes behind all that was settled before, without waiting for the store's answers."""

    async def main() -> list[tuple[str, int]]:
        store = Notebook()
        store.held = asyncio.Event()
        settlements = Settlements(store)
        hits = hits_of(SLOTS)
        settlements.pending(admitted(hits), hits).ended()  # type: ignore[union-attr]
        await settlements.sent()
        told = store.told
        store.held.set()
        return told

    assert [("slots", 0)] == turn(main())


def test_a_missing_price_is_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    """For each rule: an operator must hear of it, and not for every response."""

    async def main() -> None:
        settlements = Settlements(Notebook())
        for rule in (PRICED, CREDITS) * 3:
            hits = hits_of(rule)
            settlements.pending(admitted(hits), hits).responded(200, ())  # type: ignore[union-attr]

    turn(main())
    told = [record.getMessage() for record in caplog.records]

    assert [["rule priced", "x-cost"], ["rule credits", "x-cost"]] == [
        [text[: text.index(":")], text[text.index("header ") + 7 : text.index(",")]] for text in told
    ]


def test_another_loop_begins_anew() -> None:
    """An application that is started again under another event loop does not meet the timers of the one before."""
    store = Notebook()
    settlements = Settlements(store)

    async def main() -> int:
        hits = hits_of(SLOTS)
        pending = settlements.pending(admitted(hits), hits)
        await asyncio.sleep(1.5)
        open_now = len(settlements)
        pending.ended()  # type: ignore[union-attr]
        await settlements.settled(1)
        return open_now

    assert [1, 1] == [turn(main()), turn(main())]
    hits = hits_of(SLOTS)
    pending = turn(_pending(settlements, hits))
    pending.ended()  # without any loop: there is nobody left to send it

    assert [("slots", RENEW), ("slots", 0)] * 2 == store.told


async def _pending(settlements: Settlements, hits: list[Hit]) -> Any:
    return settlements.pending(admitted(hits), hits)
