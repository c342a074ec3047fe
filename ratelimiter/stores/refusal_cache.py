"""The cache of refusals, so that a flood of one refused principal hardly reaches the store behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ratelimiter.clock import Clock, monotonic_ms
from ratelimiter.core.quota import Balance, Slots
from ratelimiter.core.receipt import NEVER, REMEMBERED, STORE, Receipt, Tally
from ratelimiter.stores.base import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.rule import Hit
    from ratelimiter.core.settlement import Settlement
    from ratelimiter.stores.overrides import OverrideStore

REMEMBERED_MAX = 8192  # refusals, about 1 kB each
HOLD_MS_MAX = 1000  # so that what an operator resets or overrides works everywhere within a second, unannounced

_Keys: TypeAlias = tuple[bytes, ...]  # of one request


# Kinds of which more may be there at any moment: others return slots, and an operator tops up.
_ANY_MOMENT = frozenset({Slots.kind, Balance.kind})


class _Refusal(NamedTuple):
    hits: tuple[Hit, ...]
    answered_ms: int  # monotonic
    until_ms: int  # monotonic
    receipt: Receipt


class RefusalCache(Store):
    """Answers from memory what *store* has just refused, as long as nothing about it can have changed.

    Only a store's own refusal is remembered, for these very hits: the same keys, quotas and costs, so that a changed
    rule has nothing to do with it. It is forgotten

    * before the first counted entry of any of its keys leaves, hence before it would be admitted: until then the store
      could say nothing new of itself;
    * after a second, in which an operator or another process may have changed something;
    * when this process is admitted elsewhere and charges one of its keys, which leaves less of that one. The refusal
      would stand, but not its numbers;
    * when this process settles one of its keys.

    All of that only makes it end early. So it refuses nothing that the store would have admitted, but for what others
    did in the last second to make room: a reset, or what a store takes back itself.

    Args:
        store: the store that is asked otherwise.
        remembered_max: refusals held at most; the oldest goes first.
        clock: milliseconds, monotonic.
    """

    def __init__(self, store: Store, *, remembered_max: int = REMEMBERED_MAX, clock: Clock = monotonic_ms) -> None:
        self._store = store
        self._remembered_max = remembered_max
        self._clock = clock
        self._refusals: dict[_Keys, _Refusal] = {}  # oldest first
        self._concerned: dict[bytes, set[_Keys]] = {}  # by key, the refusals that speak of it

    def __len__(self) -> int:
        """Refusals held now, those that have ended but were not asked for since included."""
        return len(self._refusals)

    @property
    def state(self) -> str:
        """Return the state of the store behind."""
        return self._store.state

    async def ask(self) -> None:
        """Ask the store behind, if it was never asked."""
        await self._store.ask()

    def override_store(self, name: str) -> OverrideStore | None:
        """Return the one of the store behind."""
        return self._store.override_store(name)

    def unwrap(self) -> Store:
        """Return the store that keeps the tallies."""
        return self._store.unwrap()

    def charge_without_store(self, hits: Sequence[Hit]) -> Receipt | None:
        """Return what stands in for the store behind."""
        return self._store.charge_without_store(hits)

    def spend(self, hits: Sequence[Hit]) -> Receipt | None:
        """Decide from units that were taken in advance; None if there are none."""
        return self._store.spend(hits)

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* or none; a refusal from memory has `source` "remembered".

        Raises:
            StoreError: of the store behind.
        """
        if self._refusals:
            keys = tuple([hit.key for hit in hits])
            refusal = self._refusals.get(keys)
            if refusal is not None:
                now_ms = self._clock()
                if now_ms >= refusal.until_ms:
                    self._forget(keys)
                elif refusal.hits == tuple(hits):
                    return _aged(refusal.receipt, now_ms - refusal.answered_ms)
        asked_ms = self._clock()
        receipt = await self._store.charge(hits)
        if receipt.admitted:
            if self._concerned:
                self._forget_charged(hits)
        elif receipt.source == STORE:
            self._remember(tuple(hits), asked_ms, receipt)
        return receipt

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        """Pass *settlements* on, and forget the refusals of their keys: there may be room now.

        Raises:
            StoreError: of the store behind.
        """
        for settlement in settlements:
            self._forget_concerned(settlement.key)
        await self._store.settle(settlements, source)

    def forget_refusals(self) -> None:
        """Drop every cached refusal, and those of the store behind."""
        self._refusals.clear()
        self._concerned.clear()
        self._store.forget_refusals()

    async def close(self) -> None:
        """Forget everything and close the store behind."""
        self.forget_refusals()
        await self._store.close()

    def _remember(self, hits: tuple[Hit, ...], asked_ms: int, receipt: Receipt) -> None:
        if not any(tally.retry_after_ms > 0 for tally in receipt.tallies):
            return  # a hit that can never fit is refused at any time, and only the store knows if it still cannot
        if any(hit.lease or hit.quota.kind in _ANY_MOMENT for hit in hits):
            return
        first_ms = min(ms for _, *waits in receipt.tallies for ms in waits if ms > 0)
        # From before the question, so that it is never too long; less one, as both clocks show whole milliseconds and
        # the store's may be ahead of ours by a part of one.
        until_ms = asked_ms + min(first_ms - 1, HOLD_MS_MAX)
        keys = tuple([hit.key for hit in hits])
        self._forget(keys)
        if len(self._refusals) >= self._remembered_max:
            self._forget(next(iter(self._refusals)))
        # Its numbers count from when the answer arrived, as they do for the first caller: a client that comes back
        # after its Retry-After is then not too early.
        self._refusals[keys] = _Refusal(hits, self._clock(), until_ms, receipt)
        for key in keys:
            self._concerned.setdefault(key, set()).add(keys)

    def _forget_charged(self, hits: Sequence[Hit]) -> None:
        for hit in hits:
            if hit.cost:
                self._forget_concerned(hit.key)

    def _forget_concerned(self, key: bytes) -> None:
        for keys in list(self._concerned.get(key, ())):
            self._forget(keys)

    def _forget(self, keys: _Keys) -> None:
        if self._refusals.pop(keys, None) is None:
            return
        for key in keys:
            concerned = self._concerned[key]
            concerned.remove(keys)
            if not concerned:
                del self._concerned[key]


def _aged(receipt: Receipt, age_ms: int) -> Receipt:
    """Return what the store would say of the same hits *age_ms* later, absent other traffic."""
    tallies = [
        Tally(tally.used, max(0, tally.reset_ms - age_ms), _aged_wait(tally.retry_after_ms, age_ms))
        for tally in receipt.tallies
    ]
    return Receipt(receipt.now_ms + age_ms, False, tallies, REMEMBERED)


def _aged_wait(wait_ms: int, age_ms: int) -> int:
    return NEVER if wait_ms == NEVER else max(0, wait_ms - age_ms)
