"""A store that always answers: while the store behind it is out, each rule's `on_store_error` decides."""

from __future__ import annotations

import asyncio
import logging
import secrets
import weakref
from collections import Counter
from typing import TYPE_CHECKING

from ratelimiter.core.quota import Quota
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, LOCAL, STORE, Receipt, Tally
from ratelimiter.core.rule import Hit, OnStoreError, Rule
from ratelimiter.errors import StoreError, StoreFault, StoreOverloaded
from ratelimiter.stores.base import DEGRADED, OK, SILENT, UNKNOWN, Store, StoreObserver
from ratelimiter.stores.circuit_breaker import CircuitBreaker
from ratelimiter.stores.last_seen import LastSeen
from ratelimiter.stores.local_share import local_limit, local_quota, shared
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.stores.outage_log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.settlement import Settlement
    from ratelimiter.stores.overrides import OverrideStore

WARM_EVERY = 64  # one healthy decision in so many is also made locally, so that the code of an outage stays warm
COME_BACK_MS = 1000  # to a request that the local share can never fit: by then the store may be back
TOLD_MAX = 200  # characters of an error that a log line repeats

PROBE = Rule("probe", Quota(10**6, 1000))  # what a probe is charged to; no policy's

log = logging.getLogger("ratelimiter.stores")


class FallbackStore(Store):
    """Asks *store* while it answers; else each rule is judged as its `on_store_error` says. Never raises a StoreError.

    `deny` of one rule refuses the request. Else the rules that say `local` are charged, all or none, to windows in this
    process that hold *local_share* of the limit; those that say `allow` admit. While the store is out, N processes
    admit at most N times their local share.

    Args:
        store: the store that is guarded.
        local: where local windows are kept.
        local_share: share of a limit that this process admits by itself, above 0 to 1; rounded up to whole units.
        breaker: the circuit breaker; while it is open, only probes reach the store.
        observer: is notified of every error, and when the circuit breaker opens or closes.
        outages: the log of outages.

    Attributes:
        faults: the store's errors, counted by kind.
    """

    def __init__(
        self,
        store: Store,
        *,
        local: MemoryStore | None = None,
        local_share: float = 1.0,
        breaker: CircuitBreaker | None = None,
        observer: StoreObserver = SILENT,
        outages: OutageLog | None = None,
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
        # A probe has a key of its own, in a slot that no other process probes, and leaves nothing after a second.
        self._probing = (Hit(b"rl1:{probe:%s}" % secrets.token_hex(8).encode(), PROBE.quota, 1, PROBE),)
        self._until_warm = WARM_EVERY
        self._seen = LastSeen()
        self._ahead_ms = 0  # how much the store's clock is ahead of ours
        self._outages = OutageLog() if outages is None else outages
        self._known = False  # True once the store has answered, or failed
        self._recovery: asyncio.Task[None] | None = None  # probes while the breaker is open
        self.faults: Counter[str] = Counter()

    @property
    def degraded(self) -> bool:
        """True while decisions are made without the store."""
        return self._breaker.open

    @property
    def state(self) -> str:
        """Return `ok`, `degraded`, or `unknown` before the store was asked for the first time."""
        if self._breaker.open:
            return DEGRADED
        return OK if self._known else UNKNOWN

    async def ask(self) -> None:
        """Ask the store once, unless it has been asked; log its state if it is bad."""
        if not self._known:
            await self._probe()

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
        self._known = True
        if self._breaker.succeeded():
            self._note_recovery()
        self._seen.note(hits, receipt)
        if receipt.admitted:
            self._until_warm -= 1
            if not self._until_warm:
                self._until_warm = WARM_EVERY
                self._ahead_ms = receipt.now_ms - self._local.now_ms()
                self._seen.turn()
                self._warm_up(hits)
        return receipt

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        """Pass *settlements* on to the source of the charge; while the circuit is open, leases lapse."""
        if source == LOCAL:
            ours = [each for each in settlements if each.rule.on_store_error is OnStoreError.LOCAL]
            self._local.settle_now([each._replace(quota=self._share_of(each.quota)) for each in ours])
        elif source == STORE and not self._breaker.open:
            try:
                await self._store.settle(settlements)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # no caller is left to handle it
                self._note(error, probing=False)

    async def close(self) -> None:
        """Close the guarded store."""
        recovery, self._recovery = self._recovery, None
        if recovery is not None and recovery.get_loop() is asyncio.get_running_loop():
            recovery.cancel()
        await self._store.close()

    async def _probe(self) -> None:
        """Ask the store with a charge of its own: only a write shows that it can write."""
        try:
            receipt = await self._store.charge(self._probing)
        except asyncio.CancelledError:
            self._breaker.spared()
            raise
        except Exception as error:  # whatever it is
            self._note(error, probing=True, first=not self._known)
        else:
            self._ahead_ms = receipt.now_ms - self._local.now_ms()
            self._known = True
            if self._breaker.succeeded():
                self._note_recovery()

    def _note_recovery(self) -> None:
        self._outages.answered()
        self._tell_degraded()

    def _recover(self) -> None:
        """Have a task of the running event loop probe until the store answers, also if no request comes."""
        loop = asyncio.get_running_loop()
        if self._recovery is None or self._recovery.done() or self._recovery.get_loop() is not loop:
            self._recovery = loop.create_task(_recovered(weakref.ref(self)))

    async def _recovery_step(self) -> float | None:
        """Probe if that is due; return the seconds until the next step, None if none is needed."""
        if self._breaker.open and self._breaker.admits():
            await self._probe()
        if self._breaker.open:
            return max(self._breaker.wait_ms, 1) / 1000
        self._outages.flush()
        due_ms = self._outages.due_ms
        return None if due_ms is None else max(due_ms, 1) / 1000

    def _note(self, error: Exception, *, probing: bool, first: bool = False) -> None:
        self._known = True
        kind = error.kind if isinstance(error, StoreError) else type(error).__name__
        self.faults[kind] += 1
        self._observer.failed(kind)
        told = " ".join(str(error).split())[:TOLD_MAX]
        if isinstance(error, StoreError) and not isinstance(error, (StoreOverloaded, StoreFault)):
            opened = self._breaker.failed()
            if first and not self._breaker.open:
                self._breaker.trip()
                opened = True
            if opened:
                self._outages.failed(kind, told)
                self._tell_degraded()
                self._recover()
            elif self._breaker.open:
                self._recover()  # on this event loop, if it began on another one
            return
        if probing:  # our own overload and logic errors do not show that the store is back
            self._breaker.spared()
        if self.faults[kind] == 1 and not isinstance(error, StoreOverloaded):
            # A programming error comes back with every request, so one line is enough. Ours has a traceback.
            ours = None if isinstance(error, StoreError) else error
            log.error("the store's answer makes no sense (%s): %s", kind, told, exc_info=ours)

    def _tell_degraded(self) -> None:
        self._observer.degraded(degraded=self.degraded)

    def _warm_up(self, hits: Sequence[Hit]) -> None:
        """Replay an admitted decision in the local store to keep that code warm.

        Skip hits that are settled later: nothing would release them here.
        """
        lasting = [hit for hit in hits if not hit.rule.settles]
        if lasting:
            self._without_store(lasting, warming=True)

    def _without_store(self, hits: Sequence[Hit], *, warming: bool = False) -> Receipt:
        modes = {hit.rule.on_store_error for hit in hits if not hit.rule.shadow}
        now_ms = self._local.now_ms()
        if OnStoreError.DENY in modes or any(hit.cost < 0 for hit in hits):  # only the store can keep a top-up
            return Receipt(now_ms, False, [Tally(0, 0, 0)] * len(hits), FAIL_CLOSED)
        ours = [self._local_hit(hit) for hit in hits if hit.rule.on_store_error is OnStoreError.LOCAL]
        if not ours:
            return Receipt(now_ms, True, [Tally(0, 0, 0)] * len(hits), FAIL_OPEN)
        if not warming:
            self._outages.decisions += 1
            for hit in ours:
                self._recall(hit)
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

    def _recall(self, hit: Hit) -> None:
        """Go on from what the store last said of a key: count our share of the units that were used there."""
        used, seen_ms = self._seen.take(hit.key)
        if used > 0 and not hit.rule.leased:
            self._local.recall(hit, shared(used, self._local_share), seen_ms - self._ahead_ms)

    def _local_hit(self, hit: Hit) -> Hit:
        return hit._replace(quota=self._share_of(hit.quota))

    def _share_of(self, quota: AnyQuota) -> AnyQuota:
        share = self._shares.get(quota)
        if share is None:
            share = self._shares[quota] = local_quota(quota, self._local_share)
        return share

    def _as_of_the_whole(self, hit: Hit, ours: Hit, tally: Tally) -> Tally:
        """Return a tally of our share as one of the whole limit, with the same number remaining."""
        left = max(0, ours.quota.limit - tally.used)
        if (
            hit.rule.burst and hit.quota is hit.rule.quotas[0]
        ):  # headers leave a burst out: here, what it adds to our share
            left += hit.rule.burst - ours.quota.limit + local_limit(hit.rule.quota, self._local_share)
        never_fits = ours.quota.limit < hit.cost <= hit.quota.limit
        return Tally(hit.quota.limit - left, tally.reset_ms, COME_BACK_MS if never_fits else tally.retry_after_ms)


async def _recovered(store: weakref.ref[FallbackStore]) -> None:
    """Step until nothing is left to do. Weakly, so that a store that is let go of is not held by its own task."""
    while (guarded := store()) is not None:
        pause_s = await guarded._recovery_step()
        del guarded
        if pause_s is None:
            return
        await asyncio.sleep(pause_s)
