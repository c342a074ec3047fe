"""The reference store, kept as a store keeps it that writes only what it charges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.algorithms.sliding_window import Window
from ratelimiter.core.algorithms.token_bucket import BucketState
from tests.reference_store import ReferenceStore, facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.algorithms.sliding_window import Receipt, Tally
    from ratelimiter.core.policy import Hit
    from ratelimiter.core.settlement import Settlement


class StoredReference(ReferenceStore):
    """The arithmetic of the core, but a refusal and a look do not even forget: they write nothing.

    The difference shows when a clock steps back or a window is made longer: what had left counts again, as it should.
    """

    def charge_at(self, hits: Sequence[Hit], now_ms: int) -> Receipt:
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
            before, after = self.copy(), self.copy()
            before.state_of(settlement).forget(settlement.quota, now_ms)
            tallies += ReferenceStore.settle_at(after, [settlement], now_ms)
            if after.state() != before.state():
                self.states[settlement.key] = after.states[settlement.key]
        return tallies

    def stored(self) -> dict[bytes, tuple[Any, ...]]:
        return {key: facts(state) for key, state in self.states.items() if counts(state)}


def counts(state: Any) -> bool:
    """Whether a state is of any use."""
    if isinstance(state, Window):
        return bool(state.used)
    if isinstance(state, BucketState):
        return bool(state.debt)
    return bool(state.spent or state.leases)
