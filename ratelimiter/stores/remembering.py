"""A store that remembers refusals, so that a flood of one refused principal costs the store behind it next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.clock import Clock, monotonic_ms
from ratelimiter.core.window import REMEMBERED, STORE, Receipt, Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Hit
    from ratelimiter.stores.base import Store

REMEMBERED_MAX = 8192
HOLD_MS_MAX = 1000  # so that what an operator resets or overrides works everywhere within a second, unannounced


class _Refusal(NamedTuple):
    at_ms: int  # monotonic, just before the store was asked
    until_ms: int  # monotonic
    hits: tuple[Hit, ...]
    receipt: Receipt


class RememberingStore:
    """Answers from memory what *store* has just refused, until the moment when it would first let go.

    Only a store's own refusal is remembered, for these very hits: the same keys, quotas and costs, so a changed rule has
    nothing to do with it. The time that has passed is measured with a local monotonic clock from before the store was
    asked, so the memory ends no later than the refusal. An admission that charges one of the keys ends it, too, as it
    changes what the other rules of the request have left.

    Args:
        store: the store that is asked otherwise.
        remembered_max: refusals held at most; the oldest goes first.
        clock: milliseconds, monotonic.
    """

    def __init__(self, store: Store, *, remembered_max: int = REMEMBERED_MAX, clock: Clock = monotonic_ms) -> None:
        self._store = store
        self._remembered_max = remembered_max
        self._clock = clock
        self._refusals: dict[bytes, _Refusal] = {}  # by the key that refuses longest, oldest first

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* or none; a refusal from memory has `source` "remembered"."""
        refusals = self._refusals
        if refusals:
            for hit in hits:
                refusal = refusals.get(hit.key)
                if refusal is not None and refusal.hits == tuple(hits):
                    now_ms = self._clock()
                    if now_ms < refusal.until_ms:
                        return _aged(refusal.receipt, now_ms - refusal.at_ms)
                    del refusals[hit.key]
                    break
        asked_ms = self._clock()
        receipt = await self._store.charge(hits)
        if not receipt.admitted:
            if receipt.source == STORE:
                self._remember(asked_ms, tuple(hits), receipt)
        elif refusals:
            for hit in hits:
                refusals.pop(hit.key, None)
        return receipt

    async def close(self) -> None:
        """Forget everything and close the store behind."""
        self._refusals.clear()
        await self._store.close()

    def _remember(self, asked_ms: int, hits: tuple[Hit, ...], receipt: Receipt) -> None:
        enforced = [
            (tally.retry_after_ms, hit.key)
            for hit, tally in zip(hits, receipt.tallies, strict=True)
            if not hit.rule.shadow
        ]
        wait_ms, key = max(enforced)
        if not wait_ms:
            return  # what can never fit is refused for free by the next store in any case
        self._refusals.pop(key, None)
        if len(self._refusals) >= self._remembered_max:
            del self._refusals[next(iter(self._refusals))]
        self._refusals[key] = _Refusal(asked_ms, asked_ms + min(wait_ms, HOLD_MS_MAX), hits, receipt)


def _aged(receipt: Receipt, age_ms: int) -> Receipt:
    """What the store would say of the same hits *age_ms* later, had nothing else happened."""
    tallies = [
        Tally(tally.used, max(0, tally.reset_ms - age_ms), max(0, tally.retry_after_ms - age_ms))
        for tally in receipt.tallies
    ]
    return Receipt(receipt.now_ms + age_ms, False, tallies, REMEMBERED)
