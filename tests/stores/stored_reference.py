"""The reference store, kept as a store keeps it that writes only what it charges."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from ratelimiter.core.algorithms.calendar import around
from ratelimiter.core.algorithms.sliding_window import Window, last_instant
from ratelimiter.core.algorithms.token_bucket import BucketState
from ratelimiter.core.quota import Period
from tests.reference_store import ReferenceStore, facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Receipt, Tally
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.settlement import Settlement


class StoredReference(ReferenceStore):
    """The arithmetic of the core, but a refusal and a look write nothing, so they do not even drop what has left.

    The difference shows when a clock steps back or a window is made longer: what had left counts again, as it should.
    Only a state from the future is written back by whatever meets it: a wait runs from the first time that it is told.
    """

    def charge_at(self, hits: Sequence[Hit], now_ms: int) -> Receipt:
        for hit in hits:
            self.put_to_now(hit.key, hit.quota, now_ms)
        twin = self.copy()
        receipt = ReferenceStore.charge_at(twin, hits, now_ms)
        withheld = {
            hit.rule.name
            for hit, tally in zip(hits, receipt.tallies, strict=True)
            if hit.rule.shadow and tally.retry_after_ms
        }
        for hit in hits:
            if receipt.admitted and hit.cost and hit.rule.name not in withheld:
                self.states[hit.key] = twin.states[hit.key]
        return receipt

    def settle_at(self, settlements: Sequence[Settlement], now_ms: int) -> list[Tally]:
        """Likewise, a settlement that changes nothing writes nothing."""
        tallies = []
        for settlement in settlements:
            self.put_to_now(settlement.key, settlement.quota, now_ms)
            before, after = self.copy(), self.copy()
            before.state_of(settlement).forget(settlement.quota, now_ms)
            tallies += ReferenceStore.settle_at(after, [settlement], now_ms)
            if after.state() != before.state():
                self.states[settlement.key] = after.states[settlement.key]
        return tallies

    def put_to_now(self, key: bytes, quota: Any, now_ms: int) -> None:
        """Forget as the core does, where the state is ahead of the clock."""
        if key in self.states and ahead(self.states[key], quota, now_ms):
            self.states[key] = deepcopy(self.states[key])
            self.states[key].forget(quota, now_ms)

    def stored(self) -> dict[bytes, tuple[Any, ...]]:
        return {key: facts(state) for key, state in self.states.items() if counts(state)}


def counts(state: Any) -> bool:
    """Whether a state is of any use."""
    if isinstance(state, Window):
        return bool(state.used)
    if isinstance(state, BucketState):
        return bool(state.debt)
    return bool(state.spent or state.leases)


def ahead(state: Any, quota: Any, now_ms: int) -> bool:
    """Return True if something of *state* lies in the future, and not so far that it is dropped."""
    if isinstance(state, Window):
        last_ms = last_instant(quota, now_ms) + quota.window_ms
        return bool(state.instants) and now_ms + quota.resolution_ms <= state.instants[-1] <= last_ms
    if isinstance(state, BucketState):
        full_ms = -(-quota.limit * quota.weight // quota.drain)
        return bool(state.debt) and 0 < state.since_ms - now_ms <= full_ms
    next_start_ms, next_end_ms = around(quota, now_ms)[2:4] if isinstance(quota, Period) else (0, 0)
    ttl_ms = quota.lease_ttl_ms
    return next_start_ms <= state.start_ms < next_end_ms or any(
        now_ms + ttl_ms < lease.until_ms <= now_ms + 2 * ttl_ms for lease in state.leases
    )
