"""What the engine tells of each decision, and what it settles afterwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.client_address import Trust
from ratelimiter.core.decision import MALFORMED
from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import Slots
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, LOCAL, REMEMBERED, STORE, Receipt, Tally
from ratelimiter.core.rule import REQUEST_HEADER, CostFrom
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.observer import Observer
from ratelimiter.errors import ConfigError, StoreTimeout
from ratelimiter.stores.base import Store
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import per_minute, request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.settlement import Settlement


class Listener(Observer):
    def __init__(self) -> None:
        self.told: list[tuple[Decision, Sequence[Hit], float]] = []

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        self.told.append((decision, hits, seconds))


async def test_observer_is_told_the_decision_its_hits_and_how_long_it_took() -> None:
    """What metrics and the list of the heaviest principals live on comes with one call, and no principal's name."""
    moments = iter([10.0, 10.25, 11.0, 11.5])
    listener = Listener()
    limiter = Limiter(Policy((per_minute(),)), MemoryStore(), observer=listener, stopwatch=lambda: next(moments))
    first = await limiter.judge(request())
    second = await limiter.judge(request())

    assert [(*first[:2], 0.25), (*second[:2], 0.5)] == listener.told
    assert b"203.0.113.7" not in listener.told[0][1][0].key


async def test_nobody_listening_costs_no_look_at_the_clock() -> None:
    """Without an observer the stopwatch is never asked."""

    def broken() -> float:
        raise AssertionError

    limiter = Limiter(Policy((per_minute(),)), MemoryStore(), stopwatch=broken)

    assert (await limiter.judge(request())).decision.allowed


async def test_a_swapped_policy_keeps_what_is_counted() -> None:
    """From the next request on the new policy judges, over the same counters; who listens for policies is told."""

    class Librarian(Listener):
        def loaded(self, policy: Policy) -> None:
            shown.append(policy)

    shown: list[Policy] = []
    first, second = Policy((per_minute(2),)), Policy((per_minute(3),))
    limiter = Limiter(first, MemoryStore(), observer=Librarian())
    before = [(await limiter.judge(request())).decision.allowed for _ in range(3)]
    limiter.swap(second)
    after = [(await limiter.judge(request())).decision.allowed for _ in range(2)]

    assert [True, True, False] == before
    assert [True, False] == after
    assert [first, second] == shown
    assert second is limiter.policy


def test_a_swap_does_not_pretend_to_change_the_store() -> None:
    """What a store was opened with cannot change under way: it is refused by name, and the old policy stays whole."""
    first = Policy((per_minute(2),))
    limiter = Limiter(first, MemoryStore())

    with pytest.raises(ConfigError, match="store, local_share: changed while running"):
        limiter.swap(Policy((per_minute(3),), store="redis://localhost", local_share=0.5))
    assert first is limiter.policy


# --- What is settled later -------------------------------------------------------------------------------------------

SLOTS = per_minute(quota=Slots(3), name="slots")
ASKED = per_minute(9, name="asked", cost_from=CostFrom(REQUEST_HEADER, "x-cost"))


class Ledger(Store):
    """A store that notes what it is asked, and answers as it is told to."""

    def __init__(self, source: str = STORE, error: BaseException | None = None) -> None:
        self.charged: list[list[Hit]] = []
        self.settled: list[tuple[str, int, int]] = []  # source, lease and what was due
        self.order: list[str] = []
        self.source = source
        self.error = error

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        self.charged.append(list(hits))
        self.order.append("charge")
        if self.error is not None:
            raise self.error
        return Receipt(1000, True, [Tally(1, 500, 0)] * len(hits), self.source)

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        self.order.append("settle")
        self.settled += [(source, each.lease, each.due) for each in settlements]

    async def close(self) -> None:
        self.order.append("close")


async def test_each_request_has_a_lease_of_its_own() -> None:
    """Hits are remembered by principal, so what tells two requests of one apart is made for each."""
    store = Ledger()
    limiter = Limiter(Policy((SLOTS, per_minute())), store)
    for _ in range(100):
        await limiter.judge(request())
    leases = [hits[0].lease for hits in store.charged]

    assert 100 == len(set(leases))
    assert all(0 < lease < 2**48 for lease in leases)
    assert [0] * 100 == [hits[1].lease for hits in store.charged]
    assert [0, 0] == [hit.lease for hit in limiter.hits(request())]


async def test_what_another_limiter_holds_is_not_charged_again() -> None:
    """Under whatever lease it holds it."""
    store = Ledger()
    limiter = Limiter(Policy((SLOTS,)), store)
    held = (await limiter.judge(request())).hits
    decision, hits, *_ = await limiter.judge(request(), charged=held)

    assert ("unmatched", 0, 1) == (decision.reason, len(hits), len(store.charged))


@pytest.mark.parametrize("error", [asyncio.CancelledError(), StoreTimeout("no answer")])
async def test_a_charge_of_unknown_outcome_leaves_no_lease(error: BaseException) -> None:
    """Whoever was to give it back will not, so it is let go of at once, whether it was made or not."""
    store = Ledger(error=error)
    limiter = Limiter(Policy((SLOTS,)), store)
    with pytest.raises(type(error)):
        await limiter.judge(request())
    await limiter.settled()

    assert [(STORE, store.charged[0][0].lease, 0)] == store.settled


@pytest.mark.parametrize(
    ("source", "told"), [(LOCAL, 1), (FAIL_OPEN, 1), (FAIL_CLOSED, 1), (REMEMBERED, 0), (STORE, 0)]
)
async def test_who_stands_in_for_the_store_has_a_lease_of_its_own(source: str, told: int) -> None:
    """The store may have been asked and may have made one, too, which is let go of there."""
    store = Ledger(source)
    limiter = Limiter(Policy((SLOTS,)), store)
    await limiter.judge(request())
    await limiter.settled()

    assert [(STORE, 0)] * told == [(where, due) for where, _, due in store.settled]


async def test_a_charge_comes_behind_what_was_given_back() -> None:
    """In the order in which it came about, even within one turn of the loop."""
    store = Ledger()
    limiter = Limiter(Policy((SLOTS,)), store)
    pending = (await limiter.judge(request())).pending
    assert pending is not None
    pending.ended()
    await limiter.judge(request())
    await limiter.close()

    assert ["charge", "settle", "charge", "close"] == store.order


async def test_a_policy_that_settles_nothing_may_follow_one_that_does() -> None:
    """What was let in under one policy is given back under the next."""
    store = Ledger()
    limiter = Limiter(Policy((SLOTS,)), store)
    pending = (await limiter.judge(request())).pending
    limiter.swap(Policy((per_minute(),)))
    assert pending is not None
    pending.ended()
    await limiter.settled()

    assert 1 == len(store.settled)


async def test_a_plain_policy_settles_nothing() -> None:
    """Nothing of its requests is pending."""
    limiter = Limiter(Policy((per_minute(),)), Ledger())

    assert (await limiter.judge(request())).pending is None


async def test_a_request_says_what_it_costs() -> None:
    """To a rule that asks, from a peer that is trusted; in two ways it is malformed, and nobody is charged."""
    store = Ledger()
    limiter = Limiter(Policy((ASKED,), trust=Trust(hops=1)), store)
    await limiter.judge(request(headers=[("x-cost", "7")]))
    decision = (await limiter.judge(request(headers=[("x-cost", "7"), ("x-cost", "8")]))).decision

    assert [[7]] == [[hit.cost for hit in hits] for hits in store.charged]
    assert (MALFORMED, ("x-cost", "is there more than once")) == (decision.reason, decision.fault)
