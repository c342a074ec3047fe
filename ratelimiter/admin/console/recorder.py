"""The facts that the console shows: what was decided in the last minutes, and the last refusals one by one."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.clock import Clock, unix_ms
from ratelimiter.config.changes import changes
from ratelimiter.config.redact import disclosed, fingerprint
from ratelimiter.engine.batched_observer import Decisions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.overrides import RuntimeOverrides
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Hit
    from ratelimiter.engine.batched_observer import Told

REFUSALS_MAX = 500  # kept one by one, about 1 kB each
STEP_MS = 5000
STEPS_MAX = 120  # ten minutes
SPAN_MS = 60_000
CHANGES_MAX = 50
HISTORY_MAX = 20  # policies


class Refusal(NamedTuple):
    """One refused request."""

    at_ms: int
    reason: str
    rule: str  # that clients are told of; empty if there is none
    limit: int | None
    remaining: int | None
    retry_after_ms: int | None
    principal: str  # digest; empty if no principal was charged
    name: str  # empty unless the policy permits names
    request_id: str
    method: str


class RuleRow:
    """The numbers of one rule in a span."""

    __slots__ = ("admitted", "least_remaining", "refused", "shadow_refused")

    def __init__(self, least_remaining: int) -> None:
        self.admitted = 0
        self.refused = 0
        self.shadow_refused = 0
        self.least_remaining = least_remaining


class ConsoleRecorder(Decisions):
    """The observer behind the console. Decisions are counted in batches; only refusals are looked at closely.

    Args:
        refusals_max: refusals kept.
        clock: Unix time in milliseconds.

    Attributes:
        outcomes: decisions by reason, since the start.
        policy: in force; None before one is.
        loaded_ms: when it was loaded.
        changes: what changed then, against the policy before.
        history: hash, time and changes of the last policies, the latest first.
        overrides: of operators, in force; None before any.
        degraded_since_ms: since when decisions are made without the store; 0 if they are not.
        failures: of the store, by kind.
        reload: result of the last look at a changed policy file, and when.
    """

    def __init__(self, *, refusals_max: int = REFUSALS_MAX, clock: Clock = unix_ms) -> None:
        super().__init__()
        self._clock = clock
        self.outcomes: Counter[str] = Counter()
        self._ring: deque[tuple[Decision, Sequence[Hit], str]] = deque(maxlen=refusals_max)
        # Request ids come after the decisions, which may have been counted by then.
        self._answered: deque[tuple[Decision, str, str]] = deque(maxlen=2 * refusals_max)
        self.policy: Policy | None = None
        self.loaded_ms = 0
        self.changes: list[str] = []
        self.history: deque[dict[str, object]] = deque(maxlen=HISTORY_MAX)
        self.overrides: RuntimeOverrides | None = None
        self.degraded_since_ms = 0
        self.failures: Counter[str] = Counter()
        self.reload: tuple[str, int] | None = None
        self._steps: deque[list[int]] = deque(maxlen=STEPS_MAX)  # number of the step, requests, refused
        self._rows: dict[str, RuleRow] = {}
        self._rows_before: dict[str, RuleRow] = {}
        self._begun_ms = clock()
        self._names: dict[bytes, str] = {}

    # --- What an observer is told

    def named(self, names: Mapping[bytes, str]) -> None:
        """Keep the names of the next decision's principals; the policy permits it."""
        self._names.update(names)

    def refused(self, decision: Decision, request_id: str, method: str) -> None:
        """Note under which request id a refusal was answered."""
        self._answered.append((decision, request_id, method))

    def loaded(self, policy: Policy) -> None:
        """Note the policy in force, and what is different in it."""
        before, self.policy = self.policy, policy
        self.loaded_ms = self._clock()
        self.changes = [] if before is None else changes_between(before, policy)
        told = [] if before is None else changes(before, policy)
        self.history.appendleft({"hash": fingerprint(policy), "loaded_ms": self.loaded_ms, "changes": told})
        if not policy.show_principals:
            self.catch_up()
            self._names.clear()
            self._ring = deque(((decision, hits, "") for decision, hits, _ in self._ring), self._ring.maxlen)

    def overridden(self, overrides: RuntimeOverrides) -> None:
        """Note the runtime overrides in force."""
        self.overrides = overrides

    def reloaded(self, result: str) -> None:
        """Note the result of a look at the policy file."""
        self.reload = (result, self._clock())

    def degraded(self, *, degraded: bool) -> None:
        """Note that decisions are made without the store, or with it again."""
        self.degraded_since_ms = self._clock() if degraded else 0

    def failed(self, kind: str) -> None:
        """Note a failure of the store."""
        self.failures[kind] += 1

    def _count(self, batch: Sequence[Told]) -> None:
        if not batch:
            return
        now_ms = batch[-1][0].now_ms
        if now_ms - self._begun_ms >= SPAN_MS:
            self._turn(now_ms)
        rows, refused = self._rows, 0
        reasons = self.outcomes
        for decision, hits, _ in batch:
            allowed, reason, _, outcomes, _, _, _, _ = decision
            reasons[reason] += 1
            if not allowed:
                refused += 1
                self._ring.append((decision, hits, self._name(decision, hits) if self._names else ""))
            for rule, remaining, _, retry_after_ms in outcomes:
                row = rows.get(rule.name)
                if row is None:
                    row = rows[rule.name] = RuleRow(rule.quota.limit)
                if remaining < row.least_remaining:  # noqa: PLR1730  # a call costs as much as all of this
                    row.least_remaining = remaining
                if retry_after_ms == 0:
                    row.admitted += allowed
                elif rule.shadow:
                    row.shadow_refused += 1
                else:
                    row.refused += 1
        number = now_ms // STEP_MS
        if not self._steps or self._steps[-1][0] < number:
            self._steps.append([number, 0, 0])
        self._steps[-1][1] += len(batch)
        self._steps[-1][2] += refused
        if self._names:
            self._names.clear()

    def _name(self, decision: Decision, hits: Sequence[Hit]) -> str:
        hit = _hit_of(decision, hits)
        return "" if hit is None else self._names.get(hit.key, "")

    def _turn(self, now_ms: int) -> None:
        self._rows_before = self._rows if now_ms - self._begun_ms < 2 * SPAN_MS else {}
        self._rows = {}
        self._begun_ms = now_ms

    # --- What the page asks

    def refusals(self) -> list[Refusal]:
        """Return the last refusals, the oldest first."""
        answered = {id(decision): (request_id, method) for decision, request_id, method in self._answered}
        found = []
        for decision, hits, name in self._ring:
            rule = None if decision.binding is None else decision.binding.rule
            hit = _hit_of(decision, hits)
            request_id, method = answered.get(id(decision), ("", ""))
            found.append(
                Refusal(
                    decision.now_ms,
                    decision.reason,
                    "" if rule is None else rule.name,
                    None if rule is None else rule.quota.limit,
                    None if decision.binding is None else decision.binding.remaining,
                    decision.retry_after_ms,
                    "" if hit is None else digest_of(hit.key),
                    name,
                    request_id,
                    method,
                )
            )
        return found

    def steps(self) -> list[tuple[int, int, int]]:
        """Return the last ten minutes: Unix ms, requests and refused of each step, quiet ones included."""
        last = max(self._clock() // STEP_MS, self._steps[-1][0] if self._steps else 0)
        counted = {number: (requests, refused) for number, requests, refused in self._steps}
        return [
            (number * STEP_MS, *counted.get(number, (0, 0))) for number in range(last - STEPS_MAX + 1, last + 1)
        ]  # fmt: skip

    def rows(self) -> dict[str, RuleRow]:
        """Return each rule's numbers of this minute and the one before."""
        found: dict[str, RuleRow] = {}
        for rows in (self._rows_before, self._rows):
            for name, row in rows.items():
                sums = found.setdefault(name, RuleRow(row.least_remaining))
                sums.admitted += row.admitted
                sums.refused += row.refused
                sums.shadow_refused += row.shadow_refused
                sums.least_remaining = min(sums.least_remaining, row.least_remaining)
        return found


def _hit_of(decision: Decision, hits: Sequence[Hit]) -> Hit | None:
    """Return the hit that *decision* is about: of the rule that clients are told of, else the first."""
    name = "" if decision.binding is None else decision.binding.rule.name
    return next((hit for hit in hits if hit.rule.name == name), hits[0] if hits else None)


def digest_of(key: bytes) -> str:
    """Return the principal's digest in a key."""
    return key.partition(b"{")[2].partition(b"}")[0].decode("ascii", "replace")


def changes_between(before: Policy, after: Policy) -> list[str]:
    """Return what differs between two policies, one line for each field, without secrets."""
    old, new = disclosed(before), disclosed(after)
    lines = []
    rules_before = {rule["name"]: rule for rule in old.pop("rules")}
    rules_after = {rule["name"]: rule for rule in new.pop("rules")}
    lines += [f"rule {name}: removed" for name in rules_before if name not in rules_after]
    lines += [f"rule {name}: added" for name in rules_after if name not in rules_before]
    for name, rule in rules_after.items():
        lines += _differences(f"rule {name}, ", rules_before.get(name, rule), rule)
    lines += _differences("", old, new)
    return lines[:CHANGES_MAX]


def _differences(place: str, before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{place}{name}: {_short(before.get(name))} became {_short(after.get(name))}" for name in names]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:119]}\N{HORIZONTAL ELLIPSIS}"
