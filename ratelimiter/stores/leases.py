"""Cell leases: a store that takes units in advance, and decides from them without asking again.

A process under load asks the store once for the rest of a cell, instead of once for each request. `core.cell_lease`
says why no window ever holds one unit too many, and how large a lease is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ratelimiter.clock import Clock, boottime_ms
from ratelimiter.core.cell_lease import (
    LIFE_MS_MAX,
    REQUESTS_MIN,
    leasable,
    requests_fitting,
    requests_wanted,
    spendable_ms,
)
from ratelimiter.core.receipt import STORE, Receipt, Tally, new
from ratelimiter.core.settlement import Settlement
from ratelimiter.errors import StoreError
from ratelimiter.stores.base import SILENT, Store, StoreObserver

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Hit
    from ratelimiter.stores.overrides import OverrideStore

    Keys = bytes | tuple[bytes, ...]  # of one request: the key of its hit, or those of all of them

LEASES_MAX = 8192  # requests with different keys that are watched, about 600 bytes each; the oldest goes first
SWEEP_S = 0.1  # what has ended is given back within this time
TOGETHER_MAX = 64  # settlements in one call of the store


class _Lease:
    """The units that one process has taken in advance for requests with the same hits, or may take next time."""

    __slots__ = (
        "answered_ms",
        "asked_ms",
        "asked_store_ms",
        "asking",
        "cell_ms",
        "hits",
        "left",
        "receipt",
        "size",
        "spent",
        "until_ms",
    )

    def __init__(self, hits: tuple[Hit, ...], asked_ms: int, answered_ms: int, receipt: Receipt, size: int) -> None:
        self.hits = hits
        self.asked_ms = asked_ms  # by our clock, before the store was asked
        self.answered_ms = answered_ms  # by our clock, when its answer was here
        self.asked_store_ms = receipt.now_ms  # by the store's clock
        self.cell_ms = min([hit.quota.resolution_ms for hit in hits])  # type: ignore[union-attr]  # windows, all of them
        self.asking = False  # True while the store is asked for the next one
        self.size = size  # requests taken in advance
        self.left = size  # of these
        self.spent = 1  # requests decided since the store was asked, that one included
        # By our clock; early, as we asked before the store answered.
        self.until_ms = asked_ms + (spendable_ms(hits, receipt.now_ms) if size else 0)
        self.receipt = receipt  # the store's latest word: units that count with every request of the lease spent


class LeasingStore(Store):
    """Asks *store* for what a process will need until the cell ends, and spends that without asking.

    Not safe for use by several threads at once; belongs to the event loop that charges.

    Args:
        store: keeps the tallies; it must settle windows.
        observer: is told of units taken in advance and given back.
        clock: milliseconds since some moment, that go on while the machine sleeps.
    """

    def __init__(self, store: Store, *, observer: StoreObserver = SILENT, clock: Clock = boottime_ms) -> None:
        self._store = store
        self._observer = observer
        self._clock = clock
        self._leases: dict[Keys, _Lease] = {}  # oldest first
        self._returns: list[Settlement] = []  # to be sent
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return the number of units of all rules that are taken in advance and unspent."""
        return sum(lease.left * hit.cost for lease in self._leases.values() for hit in lease.hits)

    def spend(self, hits: Sequence[Hit]) -> Receipt | None:
        """Decide about *hits* from units taken in advance; return None if the store has to be asked."""
        lease = self._leases.get(hits[0].key if len(hits) == 1 else tuple([hit.key for hit in hits]))
        if lease is None or not lease.left:
            return None
        now_ms = self._clock()
        if now_ms > lease.until_ms or lease.hits != tuple(hits):
            return None
        lease.left -= 1
        lease.spent += 1
        left = lease.left
        store_ms = lease.asked_store_ms + now_ms - lease.answered_ms
        said_ms, _, said, _ = lease.receipt
        if len(hits) == 1:  # most requests
            used, reset_ms, _ = said[0]
            reset_ms += said_ms - store_ms
            tally = new(Tally, (used - left * hits[0].cost, reset_ms if reset_ms > 0 else 0, 0))  # noqa: FURB136
            return new(Receipt, (store_ms, True, (tally,), STORE))
        tallies = [
            new(Tally, (used - left * hit.cost, max(0, reset_ms + said_ms - store_ms), 0))
            for hit, (used, reset_ms, _) in zip(hits, said, strict=True)
        ]
        return new(Receipt, (store_ms, True, tallies, STORE))

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* or none, perhaps for more requests to come.

        Raises:
            StoreError: of the store behind.
        """
        hits = tuple(hits)
        keys: Keys = hits[0].key if len(hits) == 1 else tuple([hit.key for hit in hits])
        lease = self._leases.get(keys)
        if lease is None or lease.hits != hits:
            if not leasable(hits):
                return await self._store.charge(hits)
        elif lease.left:
            receipt = self.spend(hits)
            if receipt is not None:
                return receipt
        asked_ms = self._clock()
        more = 0
        if lease is not None and not lease.asking:
            if lease.left:  # it has ended, or is about other hits
                self._give_back([lease])
                self._send()
                await asyncio.sleep(0)  # what is given back reaches the store before what is asked now
            # Most keys are asked for too seldom, and pay for this estimate alone.
            elapsed_ms = asked_ms - lease.asked_ms
            ahead_ms = lease.cell_ms - (lease.asked_store_ms + elapsed_ms) % lease.cell_ms
            worth = lease.spent * ahead_ms >= REQUESTS_MIN * elapsed_ms and lease.spent > 1
            if worth and not lease.asking:  # another request may have begun to ask meanwhile
                more = self._wanted(lease, hits, asked_ms)
        if lease is not None and more:
            lease.asking = True
            try:
                receipt = await self._store.charge([hit._replace(cost=hit.cost * (1 + more)) for hit in hits])
            finally:
                lease.asking = False
            if receipt.admitted:
                return self._begin(keys, _Lease(hits, asked_ms, self._clock(), receipt, more), receipt)
            asked_ms = self._clock()  # so much is not there any more: ask for the one request
        receipt = await self._store.charge(hits)
        if receipt.admitted:
            self._watch(keys, hits, asked_ms, receipt)
        return receipt

    def _wanted(self, lease: _Lease, hits: tuple[Hit, ...], asked_ms: int) -> int:
        """Return how many requests to take in advance, after *lease*, which is spent or has ended."""
        if lease.hits != hits:
            return 0
        elapsed_ms = asked_ms - lease.asked_ms
        ahead_ms = spendable_ms(hits, lease.asked_store_ms + elapsed_ms)
        wanted = requests_wanted(lease.spent, elapsed_ms, ahead_ms, lease.size)
        return max(0, min(wanted, requests_fitting(hits, [tally.used for tally in lease.receipt.tallies])))

    def _begin(self, keys: Keys, lease: _Lease, receipt: Receipt) -> Receipt:
        """Spend *lease* from now on; return the answer to the one request that asked for it."""
        self._observer.leased(lease.size)
        other = self._leases.pop(keys, None)  # so that the order is that of the questions
        if other is not None:
            self._give_back([other])
        self._leases[keys] = lease
        self._sweep_soon()
        tallies = [
            tally._replace(used=tally.used - lease.size * hit.cost)
            for hit, tally in zip(lease.hits, receipt.tallies, strict=True)
        ]
        return receipt._replace(tallies=tallies)

    def _watch(self, keys: Keys, hits: tuple[Hit, ...], asked_ms: int, receipt: Receipt) -> None:
        """Note that the store has admitted one request of *hits*, which says how much is wanted the next time."""
        lease = self._leases.get(keys)
        if lease is not None and lease.hits != hits:
            self._give_back([lease])
        elif lease is not None and (lease.asking or lease.left or asked_ms - lease.asked_ms < LIFE_MS_MAX):
            lease.spent += 1
            lease.receipt = receipt
            return
        if lease is None and len(self._leases) >= LEASES_MAX:
            self._give_back([self._leases.pop(next(iter(self._leases)))])
        self._leases[keys] = _Lease(hits, asked_ms, self._clock(), receipt, 0)

    # --- Giving back

    def _give_back(self, leases: Iterable[_Lease]) -> None:
        """Queue what is unspent of *leases* for the store; it is sent with the next sweep or call of `flush`."""
        for lease in leases:
            left, lease.left = lease.left, 0
            if left:
                self._observer.returned(left)
                for hit in lease.hits:
                    charged = hit.cost * (1 + lease.size)
                    due = charged - hit.cost * left
                    self._returns.append(
                        Settlement(hit.key, hit.quota, charged, due, hit.rule, 0, lease.asked_store_ms)
                    )
        if self._returns:
            self._sweep_soon()

    def _sweep_soon(self) -> None:
        loop = self._enter()
        if loop is not None and self._timer is None:
            self._timer = loop.call_later(SWEEP_S, self._sweep)

    def _enter(self) -> asyncio.AbstractEventLoop | None:
        """Return the event loop that runs; None outside of any, as when an application is torn down."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        if loop is not self._loop:  # another one than before, so the timer of the last one never comes
            self._loop, self._timer, self._tasks = loop, None, set()
        return loop

    def _sweep(self) -> None:
        """Give back what is unspent of the leases that have ended, and look again as long as there are others."""
        self._timer = None
        now_ms = self._clock()
        self._give_back([lease for lease in self._leases.values() if lease.left and now_ms > lease.until_ms])
        self._send()
        if any(lease.left for lease in self._leases.values()):
            self._sweep_soon()

    def _send(self) -> None:
        loop = self._enter()
        returns, self._returns = self._returns, []
        if returns and loop is not None:
            task = loop.create_task(self._settle(returns))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _settle(self, returns: list[Settlement]) -> None:
        """Tell the store. What does not reach it counts until its cell has left the window."""
        try:
            for batch in _batches(returns):
                await self._store.settle(batch)
        except StoreError as error:
            self._observer.failed(error.kind)

    async def flush(self) -> None:
        """Give everything back, and wait until the store has it."""
        self._give_back(list(self._leases.values()))
        self._leases.clear()
        returns, self._returns = self._returns, []
        await self._settle(returns)
        if self._tasks and self._loop is asyncio.get_running_loop():
            await asyncio.wait(set(self._tasks))

    # --- What the store behind does

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        """Pass *settlements* on.

        Raises:
            StoreError: of the store behind.
        """
        await self._store.settle(settlements, source)

    async def close(self) -> None:
        """Give everything back and close the store behind."""
        await self.flush()
        await self._store.close()

    def forget_refusals(self) -> None:
        """Give every lease back, as an operator may have changed the tallies, and pass the call on."""
        self._give_back(list(self._leases.values()))
        self._leases.clear()
        self._store.forget_refusals()

    def override_store(self, name: str) -> OverrideStore | None:
        """Return the one of the store behind."""
        return self._store.override_store(name)

    def unwrap(self) -> Store:
        """Return the store that keeps the tallies."""
        return self._store.unwrap()

    def check(self, policy: Policy) -> None:
        """Pass the check on."""
        self._store.check(policy)


def _batches(returns: Iterable[Settlement]) -> Iterable[list[Settlement]]:
    """Yield *returns* as calls of a store: no key twice, `TOGETHER_MAX` at most, in order for each key."""
    batch: dict[bytes, Settlement] = {}
    for settlement in returns:
        if settlement.key in batch or len(batch) >= TOGETHER_MAX:
            yield list(batch.values())
            batch = {}
        batch[settlement.key] = settlement
    if batch:
        yield list(batch.values())
