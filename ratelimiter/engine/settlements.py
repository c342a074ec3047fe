"""Admitted requests until they end: the response settles the charge, and leases are renewed meanwhile.

No request waits for any of it. Settlements are sent in their order, before any later charge of the same process: a
client that has its answer and sends the next request finds the units that were given back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ratelimiter.core.cost import counts, due_of
from ratelimiter.core.quota import Slots
from ratelimiter.core.receipt import LOCAL, STORE
from ratelimiter.core.requirement import Unmet
from ratelimiter.core.rule import RESPONSE_HEADER
from ratelimiter.core.settlement import RENEW, Settlement, settlement_of
from ratelimiter.core.usage import Usage
from ratelimiter.engine.observer import NULL_OBSERVER
from ratelimiter.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.rule import Hit
    from ratelimiter.engine.observer import Observer
    from ratelimiter.engine.token_meters import BodyObserver, MeteredRequest, Reservation
    from ratelimiter.stores.base import Store
    from ratelimiter.tokens.figures import Cause

    Header = tuple[bytes, bytes]

RENEWALS = 3  # in the life of a lease, so that one may fail
SLACK = 12  # renewed along with those that are due: what is due within this part of its life
TOGETHER_MAX = 64  # settlements in one call of the store
UNDER_WAY_MAX = 65_536  # settlements, about 300 bytes each; those beyond are given up

log = logging.getLogger("ratelimiter.engine.settlements")


class PendingRequest:
    """One admitted request until it ends. Its methods neither wait nor raise.

    Args:
        settlements: sends what there is to settle.
        hits: those of the request that are settled later, as they were charged.
        charged_at_ms: the store's clock then.
        source: of the decision that charged them.
        metered: reads out of the answer what some of them come to; None if none of them wants it.
    """

    __slots__ = ("_charged_at_ms", "_metered", "_settlements", "_source", "_unanswered", "_unread", "_until_end")

    def __init__(
        self,
        settlements: Settlements,
        hits: Sequence[Hit],
        charged_at_ms: int,
        source: str,
        metered: MeteredRequest | None = None,
    ) -> None:
        self._metered = metered
        self._unread: list[Hit] = []  # what the body of the response will settle
        self._settlements = settlements
        self._charged_at_ms = charged_at_ms
        self._source = source
        self._unanswered = [hit for hit in hits if hit.quota.kind != Slots.kind]  # what the response will settle
        self._until_end = [hit for hit in hits if hit.quota.kind == Slots.kind]
        settlements.open(source, [settlement_of(hit, RENEW, charged_at_ms) for hit in hits if hit.lease])

    def responded(self, status: int, headers: Iterable[Header]) -> BodyObserver | None:
        """Note the head of the final response; a second one says nothing more.

        Args:
            status: 101 or 200 to 599.
            headers: of the response.

        Returns:
            A callable that is to get each piece of the response's body; None if nothing wants to see it.
        """
        if not self._unanswered:
            return None
        hits, self._unanswered = self._unanswered, []
        headers = list(headers)
        metered = self._metered
        if metered is not None:
            awaited = metered.reservations
            others: list[Hit] = []
            for hit in hits:
                waits = hit.rule.name in awaited and counts(hit.rule, status)
                (self._unread if waits else others).append(hit)
            hits = others
        self._settle([(hit, self._due(hit, status, headers)) for hit in hits])
        return metered.begin(status, headers) if metered is not None and self._unread else None

    @property
    def drains(self) -> bool:
        """True if the response is to be read to its end though the client has left."""
        return self._metered is not None and self._metered.drains and bool(self._unread or self._unanswered)

    def refused(self, status: int) -> None:
        """Settle a request that was charged and is refused all the same, with *status*, as it lacks what it must bring.

        A rule that counts responses counts this one; a cost that the response would tell is not charged.
        """
        hits, self._unanswered = self._unanswered, []
        self._settle([(hit, _due_of_refusal(hit, status)) for hit in hits])
        self.ended()

    def ended(self, complete: bool = True, disconnected: bool = False) -> None:
        """Note the end of the request, however it ended.

        If no response has begun, a reservation is given back, unless tokens are counted: the model may have run. A rule
        that counts some responses only keeps its charge: which response it would have been is not known, and a client
        that leaves before its answer must not try for nothing.

        Args:
            complete: the response came to its proper end.
            disconnected: it did not, because the client left.
        """
        hits, self._unanswered = self._unanswered, []
        unused = [(hit, hit.cost if hit.rule.count or hit.rule.metered or not hit.lease else 0) for hit in hits]
        slots, self._until_end = self._until_end, []
        read = self._read(complete=complete, disconnected=disconnected) if self._unread else ()
        self._settle([*unused, *read, *((hit, 0) for hit in slots)])

    def _read(self, *, complete: bool, disconnected: bool) -> Sequence[tuple[Hit, int]]:
        """Return what the body of the response says of the hits that waited for it."""
        hits, self._unread = self._unread, []
        metered: MeteredRequest = self._metered  # type: ignore[assignment]  # else nothing waits for the body
        metered.end(complete=complete, disconnected=disconnected)
        told: set[str] = set()  # rules, of which a burst has two hits
        dues = []
        for hit in hits:
            reservation = metered.reservations[hit.rule.name]
            found = metered.found(hit.rule.name)
            stands = 0 if metered.uncharged else hit.cost
            due = reservation.due(found) if isinstance(found, Usage) else stands
            dues.append((hit, due))
            if hit.rule.name not in told:
                told.add(hit.rule.name)
                self._settlements.metered(reservation, found, due, uncharged=metered.uncharged)
        return dues

    def forget(self) -> None:
        """Settle nothing any more: all of the charge is given back."""
        self._unanswered, self._until_end, self._unread = [], [], []

    def _due(self, hit: Hit, status: int, headers: Sequence[Header]) -> int:
        due = due_of(hit.rule, hit.cost, status, headers)
        if due is None:
            self._settlements.unsaid(hit)
            return hit.cost
        return due

    def _settle(self, dues: Iterable[tuple[Hit, int]]) -> None:
        settlements = [
            settlement_of(hit, due, self._charged_at_ms) for hit, due in dues if hit.lease or due != hit.cost
        ]
        if settlements:
            self._settlements.settle(self._source, settlements)


def _charged(decision: Decision, hits: Sequence[Hit]) -> Sequence[Hit]:
    """Return those of *hits* that *decision* charged where a settlement can reach them."""
    if not (decision.allowed or isinstance(decision.fault, Unmet)) or decision.source not in (STORE, LOCAL):
        return ()
    withheld = {outcome.rule.name for outcome in decision.outcomes if outcome.refuses}  # rules in shadow, not charged
    return [hit for hit in hits if hit.rule.name not in withheld] if withheld else hits


def _due_of_refusal(hit: Hit, status: int) -> int:
    rule = hit.rule
    later = rule.metered or (rule.cost_from is not None and rule.cost_from.where == RESPONSE_HEADER)
    return 0 if later or not counts(rule, status) else hit.cost


class Settlements:
    """All requests of one limiter that are followed, and their way to its store.

    Not thread-safe; when another event loop runs than before, what was open under that one is left to lapse.

    Args:
        store: keeps what was charged.
        observer: is told of settlements that failed.

    Attributes:
        unsent: settlements that the store has not been told of yet; wait for `sent` before what shall come after them.
    """

    def __init__(self, store: Store, observer: Observer = NULL_OBSERVER) -> None:
        self._store = store
        self._observer = observer
        self._unsaid: set[str] = set()  # rules whose responses have not said what they cost
        self._failed_kinds: set[str] = set()
        self._begin(None)

    def _begin(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self.unsent = 0
        self._pending: list[tuple[str, Settlement]] = []  # source and what is to be sent with the next call
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()
        # Open leases by how long they hold, in the order in which they are due: key and lease, then when, and what.
        self._leases: dict[int, dict[tuple[bytes, int], tuple[float, str, Settlement]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of open leases."""
        return sum(map(len, self._leases.values()))

    def release(self, hits: Sequence[Hit], now_ms: int) -> None:
        """Let go of the leases of *hits*, whose charge has no known outcome: they may be held or not."""
        self._send(STORE, [settlement_of(hit, 0, now_ms) for hit in hits if hit.lease])

    def pending(
        self, decision: Decision, hits: Sequence[Hit], metered: MeteredRequest | None = None
    ) -> PendingRequest | None:
        """Return the request that *decision* was about, to follow its response; None if nothing is settled.

        Args:
            decision: on the request.
            hits: that it was about, as they were charged.
            metered: reads out of the answer what some of them come to.
        """
        ours = [hit for hit in _charged(decision, hits) if hit.rule.settles]
        return PendingRequest(self, ours, decision.now_ms, decision.source, metered) if ours else None

    def give_back(self, decision: Decision, hits: Sequence[Hit]) -> None:
        """Settle every charge of *hits* at nothing: another limiter of the stack has refused the request."""
        charged = [hit for hit in _charged(decision, hits) if hit.cost]
        self.settle(decision.source, [settlement_of(hit, 0, decision.now_ms) for hit in charged])

    def unsaid(self, hit: Hit) -> None:
        """Warn, once a rule, that a response did not say what it cost."""
        rule = hit.rule
        if rule.name not in self._unsaid and rule.cost_from is not None:
            self._unsaid.add(rule.name)
            log.warning(
                "rule %s: a response has no whole number in its header %s, so what was charged before stands",
                rule.name,
                rule.cost_from.name,
            )

    def metered(self, reservation: Reservation, found: Usage | Cause, due: int, *, uncharged: bool) -> None:
        """Tell the observer what an answer said of tokens, and let estimates learn from it.

        Args:
            reservation: of one rule.
            found: in the answer.
            due: units that it comes to.
            uncharged: it is an error before which nothing was used, so no usage is missed.
        """
        meter, model = reservation.meter, reservation.meter.label(reservation.wanted.model)
        if isinstance(found, Usage):
            meter.learn(reservation, found)
            self._observer.used(meter.name, model, found, reservation.units, due)
        elif not uncharged:
            self._observer.unreadable(meter.name, found)

    # --- Settlements

    def settle(self, source: str, settlements: Sequence[Settlement]) -> None:
        """Send *settlements* soon, and renew their leases no more."""
        for settlement in settlements:
            if settlement.lease:
                self._leases.get(settlement.quota.lease_ttl_ms, {}).pop((settlement.key, settlement.lease), None)
        self._send(source, settlements)

    def _send(self, source: str, settlements: Sequence[Settlement]) -> None:
        if not settlements:
            return
        loop = self._enter()
        if loop is None or self._under_way + len(settlements) > UNDER_WAY_MAX:
            self._fail("overloaded", f"{self._under_way} settlements are under way already")
            return
        if not self._pending:
            loop.call_soon(self._flush)
        self._under_way += len(settlements)
        self.unsent += len(settlements)
        self._pending += [(source, settlement) for settlement in settlements]

    def _flush(self) -> None:
        """Send what has gathered, in as few calls as can be."""
        pending, self._pending = self._pending, []
        if self._loop is not None:
            for source, settlements in _calls(pending):
                task = self._loop.create_task(self._call(source, settlements))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _call(self, source: str, settlements: Sequence[Settlement]) -> None:
        self.unsent -= len(settlements)
        try:
            await self._store.settle(settlements, source)
        except StoreError as error:
            self._fail(error.kind, str(error))
        except Exception as error:  # there is no caller to raise it to
            self._fail(type(error).__name__, str(error), error)
        finally:
            self._under_way -= len(settlements)

    def _fail(self, kind: str, told: str, error: Exception | None = None) -> None:
        """Count a failure; each kind is logged once, as with a store that is out it is one for every request."""
        self._observer.failed(kind)
        if kind not in self._failed_kinds:
            self._failed_kinds.add(kind)
            log.warning("a settlement failed (%s): %s; leases lapse by themselves", kind, told, exc_info=error)

    async def sent(self) -> None:
        """Flush queued settlements, so that they reach the store before any later charge."""
        self._flush()
        while self.unsent:  # noqa: ASYNC110 - they leave with the next turns of the loop, so that is the event
            await asyncio.sleep(0)

    async def settled(self, timeout_s: float) -> None:
        """Send what is to be sent, and wait until the store has it; *timeout_s* at most."""
        if self._loop is asyncio.get_running_loop():
            self._flush()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=timeout_s)

    # --- Leases

    def open(self, source: str, renewals: Iterable[Settlement]) -> None:
        """Renew from now on, until they are settled, the leases that *renewals* speak of."""
        loop = self._enter()
        if loop is not None:
            for renewal in renewals:
                self._wait(loop, source, renewal)

    def _wait(self, loop: asyncio.AbstractEventLoop, source: str, renewal: Settlement) -> None:
        ttl_ms = renewal.quota.lease_ttl_ms
        due_s = loop.time() + ttl_ms / 1000 / RENEWALS
        self._leases.setdefault(ttl_ms, {})[renewal.key, renewal.lease] = (due_s, source, renewal)
        if self._timer is None or due_s < self._timer.when():
            self._rest(loop, due_s)

    def _rest(self, loop: asyncio.AbstractEventLoop, until_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(until_s, self._renew, loop)

    def _renew(self, loop: asyncio.AbstractEventLoop) -> None:
        """Renew what is due or nearly so, and rest until the next is."""
        self._timer = None
        now_s = loop.time()
        for ttl_ms, leases in list(self._leases.items()):
            soon_s = now_s + ttl_ms / 1000 / SLACK
            due = []
            for due_s, source, renewal in leases.values():
                if due_s > soon_s:
                    break
                due.append((source, renewal))
            for source, renewal in due:
                del leases[renewal.key, renewal.lease]
                self._send(source, [renewal])
                self._wait(loop, source, renewal)
            if not leases:
                del self._leases[ttl_ms]
            elif not due:
                self._rest_until_first(loop, leases)

    def _rest_until_first(
        self, loop: asyncio.AbstractEventLoop, leases: dict[tuple[bytes, int], tuple[float, str, Settlement]]
    ) -> None:
        first_s = next(iter(leases.values()))[0]
        if self._timer is None or first_s < self._timer.when():
            self._rest(loop, first_s)

    def _enter(self) -> asyncio.AbstractEventLoop | None:
        """Return the event loop that runs; None outside of any, as when an application is torn down."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        if loop is not self._loop:
            self._begin(loop)
        return loop


def _calls(pending: Iterable[tuple[str, Settlement]]) -> Iterator[tuple[str, list[Settlement]]]:
    """Yield *pending* as calls of a store: one source each, no key twice, in order for each key."""
    rounds: dict[tuple[str, int], list[Settlement]] = {}
    seen: dict[tuple[str, bytes], int] = {}
    for source, settlement in pending:
        number = seen.get((source, settlement.key), 0)
        seen[source, settlement.key] = number + 1
        rounds.setdefault((source, number), []).append(settlement)
    for (source, _), settlements in rounds.items():
        for start in range(0, len(settlements), TOGETHER_MAX):
            yield source, settlements[start : start + TOGETHER_MAX]
