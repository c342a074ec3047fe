"""A store that always answers: behind it another one, and in its absence what each rule says should happen then."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from ratelimiter.core.quota import Bucket, Quota
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, LOCAL, STORE, Receipt, Tally
from ratelimiter.core.rule import Hit, OnStoreError
from ratelimiter.errors import StoreError, StoreFault, StoreOverloaded
from ratelimiter.stores.base import SILENT, Store, StoreObserver
from ratelimiter.stores.circuit_breaker import CircuitBreaker
from ratelimiter.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.rule import Rule
    from ratelimiter.core.settlement import Settlement
    from ratelimiter.stores.overrides import OverrideStore

WARM_EVERY = 64  # one healthy decision in so many is also made locally, so that the way in need is never cold code
COME_BACK_MS = 1000  # to a request that the local share can never fit: by then the store may be back
TOLD_MAX = 200  # characters of an error that a log line repeats

log = logging.getLogger("ratelimiter.stores")


class FallbackStore(Store):
    """Asks *store* while it answers; else each rule is judged as its `on_store_error` says. Never raises a StoreError.

    `deny` of one rule refuses the request. Else the rules that say `local` are charged, all or none, to windows in this
    process that hold *local_share* of the limit; those that say `allow` admit. While the store is out, N processes
    admit at most N times their local share.

    Args:
        store: the store that is guarded.
        local: where local windows are kept.
        local_share: how much of a limit this process admits by itself, above 0 to 1; rounded up to whole units.
        breaker: when not even to ask.
        observer: is told of every error, and when the store is no longer asked or is again.

    Attributes:
        faults: how often each kind of error has come from the store.
    """

    def __init__(
        self,
        store: Store,
        *,
        local: MemoryStore | None = None,
        local_share: float = 1.0,
        breaker: CircuitBreaker | None = None,
        observer: StoreObserver = SILENT,
    ) -> None:
        if not 0 < local_share <= 1:
            msg = f"local_share must be above 0 and at most 1, not {local_share}"
            raise ValueError(msg)
        self._store = store
        self._local = MemoryStore() if local is None else local  # an empty one is false
        self._local_share = local_share
        self._breaker = CircuitBreaker() if breaker is None else breaker
        self._observer = observer
        self._shares: dict[AnyQuota, AnyQuota] = {}
        self._until_warm = WARM_EVERY
        self.faults: Counter[str] = Counter()

    @property
    def degraded(self) -> bool:
        """Whether decisions are made without the store at present."""
        return self._breaker.open

    def override_store(self, name: str) -> OverrideStore | None:
        """Return the one of the store behind."""
        return self._store.override_store(name)

    def unwrap(self) -> Store:
        """Return the store that keeps the tallies."""
        return self._store.unwrap()

    def forget_refusals(self) -> None:
        """Drop the cached refusals of the store behind."""
        self._store.forget_refusals()

    def charge_without_store(self, hits: Sequence[Hit]) -> Receipt:
        """Return what each rule says should happen without the store."""
        return self._without_store(hits)

    def spend(self, hits: Sequence[Hit]) -> Receipt | None:
        """Decide from units that were taken in advance, also while the store is out; None if there are none."""
        return self._store.spend(hits)

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* or none, with the store or without; `Receipt.source` says how."""
        probing = self._breaker.open
        if not self._breaker.admits():
            return self._without_store(hits)
        try:
            receipt = await self._store.charge(hits)
        except asyncio.CancelledError:
            if probing:
                self._breaker.spared()
            raise
        except Exception as error:  # whatever it is, a decision is due
            self._note(error, probing=probing)
            return self._without_store(hits)
        if self._breaker.succeeded():
            log.warning("the store answers again: limits are shared again")
            self._tell_degraded()
        if receipt.admitted:
            self._until_warm -= 1
            if not self._until_warm:
                self._until_warm = WARM_EVERY
                self._warm_up(hits)
        return receipt

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        """Pass *settlements* on to who keeps the hits; while the store is not asked, its leases lapse by themselves."""
        if source == LOCAL:
            ours = [each for each in settlements if each.rule.on_store_error is OnStoreError.LOCAL]
            self._local.settle_now([each._replace(quota=self._share_of(each.quota)) for each in ours])
        elif source == STORE and not self._breaker.open:
            try:
                await self._store.settle(settlements)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # nobody is there who could do anything about it
                self._note(error, probing=False)

    async def close(self) -> None:
        """Close the guarded store."""
        await self._store.close()

    def _note(self, error: Exception, *, probing: bool) -> None:
        kind = error.kind if isinstance(error, StoreError) else type(error).__name__
        self.faults[kind] += 1
        self._observer.failed(kind)
        told = " ".join(str(error).split())[:TOLD_MAX]
        if isinstance(error, StoreError) and not isinstance(error, (StoreOverloaded, StoreFault)):
            if self._breaker.failed():
                log.warning(
                    "the store gives no answer (%s): %s; each rule does what its on_store_error says", kind, told
                )
                self._tell_degraded()
            return
        if probing:  # neither our own load nor a mistake says whether the store is back
            self._breaker.spared()
        if self.faults[kind] == 1 and not isinstance(error, StoreOverloaded):
            # A mistake of somebody's: it comes back with every request, so once is enough. Ours has a traceback.
            ours = None if isinstance(error, StoreError) else error
            log.error("the store's answer makes no sense (%s): %s", kind, told, exc_info=ours)

    def _tell_degraded(self) -> None:
        self._observer.degraded(degraded=self.degraded)

    def _warm_up(self, hits: Sequence[Hit]) -> None:
        """Decide what the store has decided; but for what will be settled, as that would stay here as charged."""
        lasting = [hit for hit in hits if not hit.rule.settles]
        if lasting:
            self._without_store(lasting)

    def _without_store(self, hits: Sequence[Hit]) -> Receipt:
        modes = {hit.rule.on_store_error for hit in hits if not hit.rule.shadow}
        now_ms = self._local.now_ms()
        if OnStoreError.DENY in modes or any(hit.cost < 0 for hit in hits):  # nobody else can keep a top-up
            return Receipt(now_ms, False, [Tally(0, 0, 0)] * len(hits), FAIL_CLOSED)
        ours = [self._local_hit(hit) for hit in hits if hit.rule.on_store_error is OnStoreError.LOCAL]
        if not ours:
            return Receipt(now_ms, True, [Tally(0, 0, 0)] * len(hits), FAIL_OPEN)
        receipt = self._local.charge_now(ours)
        tallies = iter(zip(ours, receipt.tallies, strict=True))
        seen = [
            self._as_of_the_whole(hit, *next(tallies))
            if hit.rule.on_store_error is OnStoreError.LOCAL
            else Tally(0, 0, 0)
            for hit in hits
        ]
        # Where one rule was let go, the request was, however strictly another one counted.
        source = FAIL_OPEN if receipt.admitted and OnStoreError.ALLOW in modes else LOCAL
        return Receipt(receipt.now_ms, receipt.admitted, seen, source)

    def _local_hit(self, hit: Hit) -> Hit:
        return hit._replace(quota=self._share_of(hit.quota))

    def _share_of(self, quota: AnyQuota) -> AnyQuota:
        share = self._shares.get(quota)
        if share is None:
            share = self._shares[quota] = local_quota(quota, self._local_share)
        return share

    def _as_of_the_whole(self, hit: Hit, ours: Hit, tally: Tally) -> Tally:
        """A tally of our share as one of the whole limit, with the same number remaining."""
        left = max(0, ours.quota.limit - tally.used)
        if (
            hit.rule.burst and hit.quota is hit.rule.quotas[0]
        ):  # headers leave a burst out: here, what it adds to our share
            left += hit.rule.burst - ours.quota.limit + local_limit(hit.rule.quota, self._local_share)
        never_fits = ours.quota.limit < hit.cost <= hit.quota.limit
        return Tally(hit.quota.limit - left, tally.reset_ms, COME_BACK_MS if never_fits else tally.retry_after_ms)


def local_quota(quota: AnyQuota, local_share: float) -> AnyQuota:
    """What one process counts by without the store: its share of *quota*, in whole units, rounded up."""
    limit = local_limit(quota, local_share)
    match quota:
        case Quota():
            return Quota(limit, quota.window_ms)
        case Bucket():
            refill = _shared(quota.refill, local_share)
            try:
                return Bucket(limit, refill, quota.window_ms)
            except ValueError:  # numbers with nothing in common are too large: then all of what comes back
                return replace(quota, limit=limit)
        case _:
            return replace(quota, limit=limit)


def local_limit(quota: AnyQuota, local_share: float) -> int:
    """What one process admits of *quota* without the store: its share, rounded up to whole units."""
    return _shared(quota.limit, local_share)


def outage_limit(rule: Rule, local_share: float, processes: int) -> int | None:
    """What *processes* together admit of *rule* to one principal in one window without the store; None when nothing
    bounds it.
    """
    if rule.shadow or rule.on_store_error is OnStoreError.ALLOW:
        return None
    if rule.on_store_error is OnStoreError.DENY:
        return 0
    return processes * local_limit(rule.quotas[0], local_share)


def _shared(units: int, share: float) -> int:
    # In decimals, as it was written: in binary a tenth of 70 is a little more than 7, which would be rounded up to 8.
    return ceil(units * Fraction(str(share)))
