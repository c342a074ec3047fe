"""The reference store, kept as a store keeps it that writes only what it charges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.reference_store import ReferenceStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Hit
    from ratelimiter.core.window import Receipt


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

    def stored(self) -> dict[bytes, tuple[list[int], list[int], int]]:
        return {key: state for key, state in self.state().items() if state[2]}
