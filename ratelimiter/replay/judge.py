"""One policy against records in order: the core's planner and arithmetic, on the log's clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from ratelimiter.core.algorithms import STATES, settle
from ratelimiter.core.charge import charge
from ratelimiter.core.cost import priced
from ratelimiter.core.decision import decide
from ratelimiter.core.planner import Planner
from ratelimiter.core.quota import Quota, Slots
from ratelimiter.core.request import MalformedRequest
from ratelimiter.core.rule import REQUEST_HEADER
from ratelimiter.core.settlement import RENEW, settlement_of
from ratelimiter.replay.comparison import ALGORITHMS, Comparison
from ratelimiter.replay.entry import Caller, Entry, charge_fitting, digest_of, ready_windows, variant_state
from ratelimiter.replay.limits import rounded_wait
from ratelimiter.replay.requests import request_maker
from ratelimiter.replay.settled_cost import due_units, reserving
from ratelimiter.replay.tracked import Tracked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.request import Request
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.settlement import Settlement
    from ratelimiter.replay.entry import Variant
    from ratelimiter.replay.record import Record

ENTRIES_MAX = 65_536  # pairs of rules and caller whose states are at hand, about 1 kB each
PLANS_MAX = 32_768  # request lines whose rules are remembered
_CARRIERS = {"host": "host", "cookie": "cookie"}  # headers that hold what a rule asks for by another name
STATES_MAX = 200_000  # states after whose making those in which nothing counts are let go of, about 0.6 kB each


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
        self._entries: dict[tuple[object, object], Entry] = {}
        self._now_ms = 0
        self._leases = 0
        self._made = 0  # states since the last look at which still matter
        self._pending: list[tuple[int, int, Settlement, Any]] = []  # when, number, what is due, of which state
        self._prices = any(rule.cost_from and rule.cost_from.where == REQUEST_HEADER for rule in policy.rules)
        self._by_client = any(str(source) == "client" for rule in policy.rules for source in rule.principal)
        self._nobody = self._planner.reader.principal("client", b"local").digest.encode()
        self._variants: dict[tuple[Quota, int], Quota] = {}
        # Principals in paths, parameters or cookies differ from request to request: nothing is remembered of these.
        self._memorable = not self._prices and not any(rule.keyed_by for rule in policy.rules)
        undecided = any(rule.match.undecided for rule in policy.rules)
        self._plain = (
            self._memorable and not undecided and not self._wanted() and not named and not policy.method_override
        )
        self._plans: dict[tuple[str, str], Any] = {}

    def _wanted(self) -> set[str]:
        """Return the headers that the policy reads."""
        wanted = {name.decode() for name in self._planner.reader.watched}
        for rule in self.policy.rules:
            if rule.cost_from is not None:
                wanted.add(rule.cost_from.name)
            for condition in rule.match.conditions:
                wanted |= {condition.name} if condition.kind == "header" else {_CARRIERS.get(condition.kind, "")}
            wanted |= {_CARRIERS.get(source.kind, "") for source in rule.keyed_by}
        return wanted - {""}

    def judge(self, record: Record) -> tuple[bool, Caller | None]:  # noqa: PLR0912  # a call costs as much
        """Return True if *record* is admitted, and its caller; None if no rule is charged for it."""
        now_ms = self._now_ms
        if record[0] > now_ms:
            now_ms = self._now_ms = record[0]
        self.requests += 1
        # Targets are the client's to choose: those that differ in the query share an entry.
        target = record[2]
        place = (record[1], target.partition("?")[0] if "?" in target else target)
        plan = self._plans.get(place) if self._plain else None
        entry = None if plan is None else self._entries.get((plan, record[4]))
        if entry is None:
            entry = self._found(record, place)
            if entry is None:
                self.malformed += 1  # answered with 400, which is no refusal for want of room
                return True, None
        if entry.caller is None or entry.unattributed:
            self.unattributed += entry.unattributed
            if entry.caller is None:
                self.unmatched += 1
                return True, None
        entry.requests += 1
        if entry.windows is not None and not self._settles:
            admitted = charge_fitting(entry.windows, now_ms)
            if admitted:
                for window, _, _, _, _, _, _, cost, each in entry.windows:
                    used = window.used
                    if each.peak is None:
                        each.most = max(each.most, used)
                    elif each.clean_tells:
                        each.count_clean(used, cost, now_ms, now_ms)
                    else:
                        each.most = max(each.most, used)
                        each.refused_since_ms = 0
                        each.peak.add(cost, now_ms, now_ms)
            else:
                admitted = self._judge_general(record, entry, now_ms)
        else:
            admitted = self._judge_general(record, entry, now_ms)
        for variant in entry.variants:
            if variant[2] is None or not charge_fitting(variant[2], now_ms):
                self._judge_variant(entry, variant, now_ms)
        for comparison, states in zip(self.comparisons, entry.compared):  # noqa: B905  # of equal length
            comparison.judge(entry.hits, states, now_ms)
        return admitted, entry.caller

    def _judge_general(self, record: Record, entry: Entry, now_ms: int) -> bool:
        """Judge a request that some rule may refuse, or that is not of windows only."""
        if self._settles:
            return self._judge_settled(record, entry, now_ms)
        hits = entry.hits
        receipt = charge(hits, entry.states, now_ms)
        tallies = receipt.tallies
        if not receipt.admitted or any(tally.retry_after_ms for tally in tallies):
            self._count_unclean(entry, hits, receipt, record, now_ms)
        else:
            for each, tally, hit in zip(entry.tracked, tallies, hits, strict=True):
                each.count_clean(tally.used, hit.cost, now_ms, now_ms)
        return receipt.admitted

    def _found(self, record: Record, place: tuple[str, str]) -> Entry | None:
        """Return the entry of *record*, made if need be; None if its path or a header can be read in two ways."""
        request = self._make(record)
        try:
            plan: object = None
            if self._memorable:
                rules = self._planner.rule_set(request)
                plan = rules if self._plain else (rules, request.headers)
                entry = self._entries.get((plan, request.peer))
                if self._plain:
                    if len(self._plans) >= PLANS_MAX:
                        self._plans.clear()
                    self._plans[place] = rules
                if entry is not None:
                    return entry
                hits: Sequence[Hit] = rules.hits(request)
            else:
                hits = priced(self._planner.hits(request), request, self.policy.trust)
        except MalformedRequest:
            return None
        unattributed = False
        if request.peer is None and self._by_client:
            kept = tuple(hit for hit in hits if self._nobody not in hit.key)
            unattributed, hits = len(kept) < len(hits), kept
        entry = self._entry(hits, request) if hits else Entry((), None, [])
        entry.unattributed = unattributed
        if self._made > STATES_MAX:
            self._made = 0
            self._sweep(self._now_ms)
            entry = self._entry(hits, request) if hits else Entry((), None, [])
            entry.unattributed = unattributed
        if len(self._entries) >= ENTRIES_MAX:
            self.flush()
        # An entry that is not found again is kept until its counts are passed on.
        self._entries[(plan, request.peer) if self._memorable else (entry, None)] = entry
        return entry

    def flush(self) -> None:
        """Pass on what entries have counted, and forget them."""
        for entry in self._entries.values():
            if entry.caller is not None:
                entry.caller.requests += entry.requests
                for each in entry.tracked:
                    each.requests += entry.requests
        self._entries.clear()

    def _entry(self, hits: Sequence[Hit], request: Request) -> Entry:
        """Return the entry of *hits*."""
        digest = digest_of(hits[0].key)
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
            digest = digest_of(hit.key)
            each = among.get(digest)
            if each is None:
                each = among[digest] = Tracked(hit.quota, settles=hit.rule.settles)
                self._made += 1
            elif each.state is None:
                each.state = STATES[hit.quota.kind]()
                self._made += 1
            each.quota = hit.quota
            tracked.append(each)
        entry = Entry(hits, caller, tracked)
        for number in range(len(self._bounds_ms)):
            others = [self._other(hit, number) for hit in hits]
            states = [variant_state(each, number) for each in tracked]
            entry.variants.append((others, states, ready_windows(others, states, tracked)))
        for number in range(len(self.comparisons)):
            compared = []
            for each in tracked:
                if each.compared is None:
                    made = isinstance(each.quota, Quota)
                    each.compared = [ALGORITHMS[one.name]() if made else None for one in self.comparisons]
                compared.append(each.compared[number])
            entry.compared.append(compared)
        return entry

    def _other(self, hit: Hit, number: int) -> Hit:
        """Return *hit* on a window that is as much shorter or longer as the times are uncertain."""
        return hit._replace(quota=self._longer(hit.quota, number)) if isinstance(hit.quota, Quota) else hit

    def _longer(self, quota: Quota, number: int) -> Quota:
        found = self._variants.get((quota, number))
        if found is None:
            longer_ms = self._bounds_ms[number]
            rounding_ms = quota.resolution_ms - 1
            window_ms = quota.window_ms + longer_ms + (rounding_ms if longer_ms > 0 else -rounding_ms)
            found = self._variants[quota, number] = replace(quota, window_ms=max(1, window_ms))
        return found

    def _judge_variant(self, entry: Entry, variant: Variant, now_ms: int) -> None:
        """Judge a request with other windows, where it does not fit them all."""
        hits, states, _ = variant
        number = entry.variants.index(variant)
        receipt = charge(hits, states, now_ms)
        if not receipt.admitted:
            self.bounds_refused[number] += 1
        for each, tally in zip(entry.tracked, receipt.tallies, strict=True):
            if tally.retry_after_ms:
                if each.bounds is None:
                    each.bounds = [0] * len(entry.variants)
                each.bounds[number] += 1

    def _count_unclean(  # noqa: PLR0917  # of one request
        self,
        entry: Entry,
        hits: Sequence[Hit],
        receipt: Receipt,
        record: Record,
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
                self.rule_waits[name][rounded_wait(refusing[name].retry_after_ms)] += 1
                if self._names and each.name is None:
                    each.name = self._planner.names([hit], self._make(record)).get(hit.key, "")
            last = name
        if not receipt.admitted:
            self.refused += 1
            self.waits[rounded_wait(decision.retry_after_ms)] += 1
            if entry.caller is not None:
                entry.caller.refused += 1
                if self.first_refusal is None:
                    enforced = next(name for name, each in refusing.items() if not each.rule.shadow)
                    self.first_refusal = (now_ms, enforced, entry.caller)

    # --- Rules that are settled by the response

    def _judge_settled(self, record: Record, entry: Entry, now_ms: int) -> bool:
        """Judge a request with rules whose charge ends, or changes, with the response."""
        self._settle_until(now_ms)
        end_ms = now_ms + max(0, round(record.duration_ms or 0))
        hits: Sequence[Hit] = entry.hits
        if any(hit.rule.tokens is not None for hit in hits):
            hits = [reserving(hit, record) for hit in hits]
        if any(hit.rule.leased for hit in hits):
            self._leases += 1
            hits = tuple(hit._replace(lease=self._leases) if hit.rule.leased else hit for hit in hits)
        receipt = charge(hits, entry.states, now_ms)
        clean = receipt.admitted and not any(tally.retry_after_ms for tally in receipt.tallies)
        headers = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in record.responded]
        dues = [due_units(hit, record, headers) for hit in hits]
        if clean:
            for hit, each, tally, due in zip(hits, entry.tracked, receipt.tallies, dues, strict=True):
                each.most = max(each.most, tally.used)
                if each.peak is not None:
                    each.peak.add(hit.cost if isinstance(hit.quota, Slots) else due, now_ms, end_ms)
        else:
            self._count_unclean(entry, hits, receipt, record, end_ms, dues)
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
        self.flush()
        for among in self.tracked.values():
            for each in among.values():
                state = each.state
                if state is not None:
                    state.forget(each.quota, now_ms)
                    if not state.used and state.reset_ms(each.quota, now_ms) == 0:
                        each.state = None
                    each.variants = [] if each.state is None and self._expired(each, now_ms) else each.variants

    def _expired(self, tracked: Tracked, now_ms: int) -> bool:
        """Return True if nothing counts under the longer windows either."""
        for number, state in enumerate(tracked.variants):
            if isinstance(tracked.quota, Quota):
                state.forget(self._longer(tracked.quota, number), now_ms)
        return not any(state.used for state in tracked.variants)
