"""One policy against records in order: the core's planner and arithmetic, on the log's clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from ratelimiter.core.algorithms import STATES, settle
from ratelimiter.core.algorithms.sliding_window import charge
from ratelimiter.core.cost import due_of, priced
from ratelimiter.core.decision import decide
from ratelimiter.core.policy import REQUEST_HEADER, RESPONSE_HEADER, Hit, Planner
from ratelimiter.core.quota import Quota, Slots
from ratelimiter.core.request import MalformedRequest
from ratelimiter.core.settlement import RENEW, settlement_of
from ratelimiter.replay.comparison import ALGORITHMS, Comparison
from ratelimiter.replay.requests import request_maker
from ratelimiter.replay.tracked import Tracked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.algorithms.sliding_window import Receipt
    from ratelimiter.core.policy import Policy, Rule
    from ratelimiter.core.request import Request
    from ratelimiter.core.settlement import Settlement
    from ratelimiter.replay.record import Record

ENTRIES_MAX = 32_768  # distinct (request line, caller) whose states are at hand
SWEEP = 200_000  # requests between two looks at which states still matter
SECOND_MS = 1000
WAIT_DIGITS = 3  # waits are told to so many digits, which bounds their number


class Caller:
    """One caller over all rules."""

    __slots__ = ("name", "other_refused", "refused", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.refused = 0
        self.other_refused = 0  # by the policy that is compared
        self.name: str | None = None


class _Entry:
    """What is at hand for requests with the same hits."""

    __slots__ = ("caller", "compared", "hits", "states", "tracked", "variants")

    def __init__(self, hits: Sequence[Hit], caller: Caller, tracked: list[Tracked]) -> None:
        self.hits = hits
        self.caller = caller
        self.tracked = tracked
        self.states = [each.state for each in tracked]
        self.variants: list[tuple[list[Hit], list[Any]]] = []
        self.compared: list[list[Any]] = []


class Judge:
    """A policy that judges one record after the other, in the order of their times.

    Args:
        policy: as far as the log can judge it; see `needs.judgeable`.
        named: the records name their callers.
        names: keep the names of callers, else their digests only.
        bounds_ms: how much shorter and longer windows may be, as the log's times are of whole seconds; empty for exact
            times.
        compare: names of `comparison.ALGORITHMS`.

    Attributes:
        requests, refused, malformed, unmatched, unattributed: counts of requests. Unattributed are those of which the
            line has no address, while rules ask for it.
        waits: how often a refused request was told to wait so many ms; None for "no wait helps".
        callers: by digest.
        tracked: by rule and quota index, then by digest.
        bounds_refused: refused with the windows of *bounds_ms*.
        comparisons: the other algorithms.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        named: bool = False,
        names: bool = False,
        bounds_ms: Sequence[int] = (),
        compare: Sequence[str] = (),
    ) -> None:
        self.policy = policy
        self.requests = self.refused = self.malformed = self.unmatched = self.unattributed = 0
        self.waits: Counter[int | None] = Counter()
        self.rule_waits: dict[str, Counter[int | None]] = {rule.name: Counter() for rule in policy.rules}
        self.rule_refused: Counter[str] = Counter()
        self.rule_requests: Counter[str] = Counter()
        self.callers: dict[bytes, Caller] = {}
        self.tracked: dict[tuple[str, int], dict[bytes, Tracked]] = {}
        self.first_refusal: tuple[int, str, Caller] | None = None
        self._settles = any(rule.settles for rule in policy.rules)
        # What is settled later is judged once: the other windows have no settlements.
        self._bounds_ms = () if self._settles else tuple(bounds_ms)
        self.bounds_refused = [0 for _ in self._bounds_ms]
        self.comparisons = [] if self._settles else [Comparison(name) for name in compare]
        self._names = names
        self._planner = Planner(policy)
        self._make = request_maker(policy, self._wanted(), named=named)
        self._entries: dict[int, _Entry] = {}
        self._now_ms = 0
        self._leases = 0
        self._pending: list[tuple[int, int, Settlement, Any]] = []  # when, number, what is due, of which state
        self._prices = any(rule.cost_from and rule.cost_from.where == REQUEST_HEADER for rule in policy.rules)
        self._by_client = any(str(source) == "client" for rule in policy.rules for source in rule.principal)
        self._nobody = self._planner.reader.principal("client", b"local").digest.encode()
        self._variants: dict[tuple[Any, int], Any] = {}

    def _wanted(self) -> set[str]:
        """Return the headers that the policy reads."""
        wanted = {name.decode() for name in self._planner.reader.watched}
        for rule in self.policy.rules:
            if rule.cost_from is not None:
                wanted.add(rule.cost_from.name)
            match: Any = rule.match
            for stated in (getattr(match, "header", None), getattr(match, "headers", None)):
                pairs = stated.items() if isinstance(stated, dict) else stated or ()
                wanted |= {
                    str(pair[0] if isinstance(pair, tuple) else getattr(pair, "name", pair)).lower() for pair in pairs
                }
            if getattr(match, "host", None):
                wanted.add("host")
        return wanted

    def judge(self, record: Record) -> tuple[bool, Caller | None]:  # noqa: PLR0912  # the hot loop: calls cost as much
        """Return True if *record* is admitted, and its caller; None if no rule is charged for it."""
        now_ms = self._now_ms = max(self._now_ms, record[0])
        self.requests += 1
        request = self._make(record)
        try:
            hits = self._planner.hits(request)
            if self._prices:
                hits = tuple(priced(hits, request, self.policy.trust))
        except MalformedRequest:
            self.malformed += 1  # answered with 400, which is no refusal for want of room
            return True, None
        if record[4] is None and self._by_client:
            kept = tuple(hit for hit in hits if self._nobody not in hit.key)
            self.unattributed += len(kept) < len(hits)
            hits = kept
        if not hits:
            self.unmatched += 1
            return True, None
        if self._pending:
            self._settle_until(now_ms)
        entry = self._entries.get(id(hits))
        if entry is None:
            entry = self._entry(hits, request)
        caller = entry.caller
        caller.requests += 1
        if self._settles:
            return self._judge_settled(record, request, entry, now_ms), caller
        receipt = charge(hits, entry.states, now_ms)
        tallies = receipt[2]
        clean = receipt[1]
        for each, tally in zip(entry.tracked, tallies):  # noqa: B905  # of equal length, and for every request
            each.requests += 1
            if tally[2]:
                clean = False
        if clean:
            for each, tally, hit in zip(entry.tracked, tallies, hits):  # noqa: B905
                if each.peak is not None:
                    each.count_clean(tally[0], hit[2], now_ms, now_ms)
                elif tally[0] > each.most:
                    each.most = tally[0]
        else:
            self._count_unclean(entry, hits, receipt, request, now_ms)
        if entry.variants or entry.compared:
            self._judge_otherwise(entry, now_ms)
        if not self.requests % SWEEP:
            self._sweep(now_ms)
        return receipt[1], caller

    def _entry(self, hits: Sequence[Hit], request: Request) -> _Entry:
        """Return what is at hand for *hits*, and remember it."""
        digest = _digest(hits[0].key)
        caller = self.callers.get(digest)
        if caller is None:
            caller = self.callers[digest] = Caller()
            if self._names:
                caller.name = self._planner.names(hits[:1], request).get(hits[0].key)
        tracked = []
        last, index = None, 0
        for hit in hits:
            index = index + 1 if hit.rule.name == last else 0
            last = hit.rule.name
            among = self.tracked.setdefault((hit.rule.name, index), {})
            digest = _digest(hit.key)
            each = among.get(digest)
            if each is None:
                each = among[digest] = Tracked(hit.quota, settles=hit.rule.settles)
            elif each.state is None:
                each.state = STATES[hit.quota.kind]()
            each.quota = hit.quota
            tracked.append(each)
        entry = _Entry(hits, caller, tracked)
        for number in range(len(self._bounds_ms)):
            others = [self._other(hit, number) for hit in hits]
            entry.variants.append((others, [_variant(each, number) for each in tracked]))
        for number in range(len(self.comparisons)):
            states = []
            for each in tracked:
                if each.compared is None:
                    made = isinstance(each.quota, Quota)
                    each.compared = [ALGORITHMS[one.name]() if made else None for one in self.comparisons]
                states.append(each.compared[number])
            entry.compared.append(states)
        if isinstance(hits, tuple) and not self._prices:
            if len(self._entries) >= ENTRIES_MAX:
                self._entries.clear()
            self._entries[id(hits)] = entry  # `entry` holds *hits*, so no other object gets that id
        return entry

    def _other(self, hit: Hit, number: int) -> Hit:
        """Return *hit* on a window that is as much shorter or longer as the times are uncertain."""
        if not isinstance(hit.quota, Quota):
            return hit
        key = (hit.quota, number)
        quota = self._variants.get(key)
        if quota is None:
            longer_ms = self._bounds_ms[number]
            rounding_ms = hit.quota.resolution_ms - 1
            window_ms = hit.quota.window_ms + longer_ms + (rounding_ms if longer_ms > 0 else -rounding_ms)
            quota = self._variants[key] = replace(hit.quota, window_ms=max(1, window_ms))
        return hit._replace(quota=quota)

    def _judge_otherwise(self, entry: _Entry, now_ms: int) -> None:
        """Judge the same request with other windows and by other algorithms."""
        for number, (hits, states) in enumerate(entry.variants):
            receipt = charge(hits, states, now_ms)
            if not receipt.admitted:
                self.bounds_refused[number] += 1
            for each, tally in zip(entry.tracked, receipt.tallies, strict=True):
                if tally.retry_after_ms:
                    if each.bounds is None:
                        each.bounds = [0] * len(entry.variants)
                    each.bounds[number] += 1
        for comparison, states in zip(self.comparisons, entry.compared, strict=True):
            comparison.judge(entry.hits, states, now_ms)

    def _count_unclean(  # noqa: PLR0917  # of one request
        self,
        entry: _Entry,
        hits: Sequence[Hit],
        receipt: Receipt,
        request: Request,
        end_ms: int,
        dues: Sequence[int] = (),
    ) -> None:
        """Count a request that some rule refused, or would have in shadow."""
        now_ms = receipt.now_ms
        decision = decide(hits, receipt)
        refusing = {outcome.rule.name: outcome for outcome in decision.outcomes if outcome.refuses}
        last = None
        costs = dues or [hit.cost for hit in hits]
        for hit, each, tally, cost in zip(hits, entry.tracked, receipt.tallies, costs, strict=True):
            name = hit.rule.name
            if receipt.admitted and name not in refusing:
                each.count_clean(tally.used, cost, now_ms, end_ms)
                last = name
                continue
            each.count_uncharged(cost, now_ms, end_ms)
            if name in refusing and name != last:
                each.count_refused(now_ms)
                self.rule_refused[name] += 1
                self.rule_waits[name][_rounded(refusing[name].retry_after_ms)] += 1
                if self._names and each.name is None:
                    each.name = self._planner.names([hit], request).get(hit.key, "")
            last = name
        if not receipt.admitted:
            self.refused += 1
            self.waits[_rounded(decision.retry_after_ms)] += 1
            entry.caller.refused += 1
            if self.first_refusal is None:
                self.first_refusal = (now_ms, next(iter(refusing)), entry.caller)

    # --- Rules that are settled by the response

    def _judge_settled(self, record: Record, request: Request, entry: _Entry, now_ms: int) -> bool:
        """Judge a request with rules whose charge ends, or changes, with the response."""
        end_ms = now_ms + max(0, round(record.duration_ms or 0))
        hits: Sequence[Hit] = entry.hits
        if any(hit.rule.leased for hit in hits):
            self._leases += 1
            hits = tuple(hit._replace(lease=self._leases) if hit.rule.leased else hit for hit in hits)
        receipt = charge(hits, entry.states, now_ms)
        clean = receipt.admitted and not any(tally.retry_after_ms for tally in receipt.tallies)
        headers = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in record.responded]
        dues = [_due(hit, record.status, headers) for hit in hits]
        for each in entry.tracked:
            each.requests += 1
        if clean:
            for hit, each, tally, due in zip(hits, entry.tracked, receipt.tallies, dues, strict=True):
                each.most = max(each.most, tally.used)
                if each.peak is not None:
                    each.peak.add(hit.cost if isinstance(hit.quota, Slots) else due, now_ms, end_ms)
        else:
            self._count_unclean(entry, hits, receipt, request, end_ms, dues)
        if receipt.admitted:
            for hit, each, tally, due in zip(hits, entry.tracked, receipt.tallies, dues, strict=True):
                if hit.rule.settles and not tally.retry_after_ms:
                    self._follow(hit, each.state, due, now_ms, end_ms)
        return bool(receipt.admitted)

    def _follow(self, hit: Hit, state: Any, due: int, now_ms: int, end_ms: int) -> None:
        """Settle *hit* at its end, and keep its lease until then as live requests do."""
        if hit.lease:
            renewed_ms = now_ms + hit.quota.lease_ttl_ms // 3
            while renewed_ms < end_ms:
                self._push(renewed_ms, settlement_of(hit, RENEW, now_ms), state)
                renewed_ms += hit.quota.lease_ttl_ms // 3
            self._push(end_ms, settlement_of(hit, 0 if isinstance(hit.quota, Slots) else due, now_ms), state)
        elif due != hit.cost:
            self._push(end_ms, settlement_of(hit, due, now_ms), state)

    def _push(self, at_ms: int, settlement: Settlement, state: Any) -> None:
        self._leases += 1
        heappush(self._pending, (at_ms, self._leases, settlement, state))

    def _settle_until(self, now_ms: int) -> None:
        pending = self._pending
        while pending and pending[0][0] <= now_ms:
            at_ms, _, settlement, state = heappop(pending)
            settle(settlement, state, at_ms)

    def _sweep(self, now_ms: int) -> None:
        """Let go of states in which nothing counts."""
        if self._pending:
            return
        self._entries.clear()
        for among in self.tracked.values():
            for each in among.values():
                state = each.state
                if state is not None:
                    state.forget(each.quota, now_ms)
                    if not state.used and state.reset_ms(each.quota, now_ms) == 0:
                        each.state = None
                if each.variants and all(not variant.used for variant in each.variants if variant is not None):
                    each.variants = []


def _due(hit: Hit, status: int, headers: Sequence[tuple[bytes, bytes]]) -> int:
    rule: Rule = hit.rule
    if not rule.settles or isinstance(hit.quota, Slots):
        return hit.cost
    due = due_of(rule, hit.cost, status or 499, headers)
    if due is None and rule.cost_from is not None and rule.cost_from.where == RESPONSE_HEADER:
        return hit.cost
    return hit.cost if due is None else due


def _variant(tracked: Tracked, number: int) -> Any:
    while len(tracked.variants) <= number:
        tracked.variants.append(STATES[tracked.quota.kind]())
    return tracked.variants[number]


def _digest(key: bytes) -> bytes:
    """Return the principal's digest in a key, in binary."""
    return bytes.fromhex(key[key.index(b"{") + 1 : key.index(b"}")].decode())


def _rounded(wait_ms: int | None) -> int | None:
    """Return *wait_ms* to a few digits, upward."""
    if wait_ms is None or wait_ms < 10**WAIT_DIGITS:
        return wait_ms
    unit: int = 10 ** (len(str(wait_ms)) - WAIT_DIGITS)
    return -(-wait_ms // unit) * unit
