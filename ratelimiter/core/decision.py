"""The decision that the store's reply means: the verdict, and every number that the answer will hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.quota import Slots
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, NEVER, STORE, new

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.receipt import Receipt, Tally
    from ratelimiter.core.requirement import Unmet
    from ratelimiter.core.rule import Hit, Rule

# Reasons of a decision. A closed set: it becomes a metric label.
WITHIN_LIMIT = "within_limit"
OVER_LIMIT = "over_limit"  # come back after retry_after_ms
OVER_CAPACITY = "over_capacity"  # the cost exceeds the limit: no wait helps
CREDIT_EXHAUSTED = "credit_exhausted"  # credits are missing: 402
UNMATCHED = "unmatched"  # no rule matched, so nothing was charged
MALFORMED = "malformed"  # two readers could take the request for different ones: 400
STORE_ERROR = "store_error"  # the store did not answer: `on_store_error` decided
BLOCKED = "blocked"  # an operator has blocked the principal, so nothing was charged
SUSPENDED = "suspended"  # would have been refused, so nothing was charged; an operator has all rules in shadow

# What a principal that is blocked until further notice is told to wait: its end is unknown, and asking costs little.
BLOCKED_WAIT_MS = 3_600_000

# A slot returns when a response ends, which cannot be foreseen: mostly long before its lease would lapse, so that is
# not what a client is told to wait for.
SLOT_WAIT_MS_MAX = 1000


class Outcome(NamedTuple):
    """The result of one rule. A named tuple because one is built per rule and request."""

    rule: Rule
    remaining: int  # admissions left now, this one already counted; never negative; a burst is not shown
    reset_ms: int  # until the oldest counted entry leaves: the next moment that remaining can grow; 0 when none counts
    retry_after_ms: int | None  # 0: it fits. Else at exactly this distance a lone retry is admitted. None: never

    @property
    def refuses(self) -> bool:
        """True if this rule has no room for the request; that of a shadow rule is only reported."""
        return self.retry_after_ms != 0


class Decision(NamedTuple):
    """The verdict on one request."""

    allowed: bool
    reason: str  # one of the constants of this module, or of `requirement.REASONS`
    now_ms: int  # the store's clock, Unix time
    outcomes: Sequence[Outcome]  # one per rule that matched, in the order of the policy
    binding: Outcome | None  # the enforced rule that clients are told of; None when there is none
    source: str = STORE  # of the answer
    # Of a malformed request the field and what is wrong with it; of one that lacks something what that is.
    fault: tuple[str, str] | Unmet | None = None
    missing: tuple[int, int] | None = None  # of exhausted credits: units requested, and how many there were not

    @property
    def retry_after_ms(self) -> int | None:
        """The wait before a retry: 0 when admitted, None when no wait is known to help."""
        if self.allowed:
            return 0
        return None if self.binding is None else self.binding.retry_after_ms


def decide(hits: Sequence[Hit], receipt: Receipt) -> Decision:
    """Return the decision that *receipt*, the store's reply to *hits*, means.

    The binding rule is the one that a client must heed: of a refusal the one with the longest wait (at its end all the
    others have let go, too), of an admission the one with the least remaining of those in `told_of`, the earlier in the
    policy at a tie. A refusal for want of credits binds before all others, as no wait for these helps against it; what
    it tells to wait is long enough for all.
    """
    if len(hits) == 1:  # most requests: a third of the cost of the general way (tests/benchmarks/decisions.py)
        return _decide_one(hits[0], receipt)
    if receipt.source == FAIL_CLOSED:
        return _failed_closed(receipt)
    outcomes: list[Outcome] = []
    for hit, tally in zip(hits, receipt.tallies, strict=True):
        outcome = _outcome(hit, tally)
        if outcomes and outcomes[-1].rule is hit.rule:
            outcomes[-1] = _tighter(outcomes[-1], outcome)
        else:
            outcomes.append(outcome)
    enforced = outcomes if not any(o.rule.shadow for o in outcomes) else [o for o in outcomes if not o.rule.shadow]
    if receipt.admitted:
        return Decision(True, WITHIN_LIMIT, receipt.now_ms, outcomes, _binding(outcomes), receipt.source)
    refusing = [outcome for outcome in enforced if outcome.refuses]
    binding = max(refusing, key=_wait)
    of_credits = _short_of_credits(hits, receipt, refusing)
    if of_credits:
        bound, missing = max(of_credits, key=lambda pair: _wait(pair[0]))
        bound = bound._replace(retry_after_ms=binding.retry_after_ms)
        return Decision(False, CREDIT_EXHAUSTED, receipt.now_ms, outcomes, bound, receipt.source, missing=missing)
    reason = OVER_CAPACITY if binding.retry_after_ms is None else OVER_LIMIT
    return Decision(False, reason, receipt.now_ms, outcomes, binding, receipt.source)


def _decide_one(hit: Hit, receipt: Receipt) -> Decision:
    now_ms, admitted, tallies, source = receipt
    used, reset_ms, wait_ms = tallies[0]
    _, quota, cost, rule, _ = hit
    left = quota.limit - used
    retry_after_ms = wait_ms and _told_wait(quota, wait_ms)
    remaining = left if left > 0 else 0  # noqa: FURB136  # a call would be a tenth of all this
    outcome = new(Outcome, (rule, remaining, reset_ms, retry_after_ms))
    if admitted:
        binding = None if rule.quiet else outcome
        return new(Decision, (True, WITHIN_LIMIT, now_ms, (outcome,), binding, source, None, None))
    if source == FAIL_CLOSED:
        return _failed_closed(receipt)
    reason, missing = OVER_CAPACITY if retry_after_ms is None else OVER_LIMIT, None
    if quota.credits and cost > left:
        reason, missing = CREDIT_EXHAUSTED, (cost, cost - left)
    binding = None if rule.shadow else outcome
    return new(Decision, (False, reason, now_ms, (outcome,), binding, source, None, missing))


def _failed_closed(receipt: Receipt) -> Decision:
    return Decision(False, STORE_ERROR, receipt.now_ms, (), None, FAIL_CLOSED)


def merge(decisions: Sequence[Decision]) -> Decision:
    """Merge the decisions of several limiters in one stack: the first refusal, else an admission that counts all rules.

    Args:
        decisions: at least one.
    """
    for decision in decisions:
        if not decision.allowed:
            return decision
    outcomes = [outcome for decision in decisions for outcome in decision.outcomes]
    reason = WITHIN_LIMIT if outcomes else UNMATCHED
    return Decision(True, reason, decisions[-1].now_ms, outcomes, _binding(outcomes), decisions[-1].source)


def refused_for(decision: Decision, lacking: Unmet) -> Decision:
    """Return *decision*, an admission, as a refusal: there was room, and it was charged, but something is *lacking*."""
    return decision._replace(allowed=False, reason=lacking.reason, fault=lacking)


def unmatched(now_ms: int) -> Decision:
    """Return the decision on a request that no rule matched: it is admitted, and counted as such."""
    return Decision(True, UNMATCHED, now_ms, (), None)


def malformed(now_ms: int, field: str, issue: str) -> Decision:
    """Refuse a request that has no one meaning, so that no rule can be chosen. Nothing is charged."""
    return Decision(False, MALFORMED, now_ms, (), None, fault=(field, issue))


def blocked(now_ms: int, until_ms: int, rule: Rule) -> Decision:
    """Refuse the request of a blocked principal. Nothing is charged.

    Args:
        now_ms: Unix time.
        until_ms: when the block ends; 0 when it is unknown: `BLOCKED_WAIT_MS` is told then.
        rule: whose words the answer has.
    """
    left_ms = max(1, until_ms - now_ms) if until_ms else BLOCKED_WAIT_MS
    return Decision(False, BLOCKED, now_ms, (), Outcome(rule, 0, left_ms, left_ms))


def suspended(hits: Sequence[Hit], receipt: Receipt, shadowed: Callable[[Rule], Rule]) -> Decision:
    """Decide like `decide`, but refuse nothing: an operator has put every rule in shadow.

    The store is not told, so that what it counts is what it would count otherwise.

    Args:
        hits: of the request.
        receipt: the store's reply.
        shadowed: a rule's likeness in shadow.
    """
    decision = decide(hits, receipt)
    outcomes = [outcome._replace(rule=shadowed(outcome.rule)) for outcome in decision.outcomes]
    if decision.allowed:
        return decision._replace(outcomes=outcomes, binding=_binding(outcomes))
    source = FAIL_OPEN if decision.source == FAIL_CLOSED else decision.source
    return Decision(True, SUSPENDED, decision.now_ms, outcomes, _binding(outcomes), source)


def told_of(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """Return the outcomes that an admitted client is told of: of enforced rules, and of those that announce themselves.

    Where all rules are in shadow mode, by the policy or by the kill switch, the client is told of all: it sees the same
    figures before and after they are enforced. Of quiet rules it is never told.
    """
    if not any(outcome.rule.silent for outcome in outcomes):
        return outcomes
    told = [outcome for outcome in outcomes if not outcome.rule.silent]
    if told or not all(outcome.rule.shadow for outcome in outcomes):
        return told
    return [outcome for outcome in outcomes if not outcome.rule.quiet]


def _binding(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome with the least remaining of those that an admitted client is told of."""
    told = told_of(outcomes)
    return min(told, key=_remaining) if len(told) > 1 else (told[0] if told else None)


def _outcome(hit: Hit, tally: Tally) -> Outcome:
    quota, rule = hit.quota, hit.rule
    spare = quota.limit - tally.used
    if rule.burst and quota is rule.quotas[0]:
        spare -= rule.burst
    return Outcome(rule, max(0, spare), tally.reset_ms, _told_wait(quota, tally.retry_after_ms))


def _short_of_credits(
    hits: Sequence[Hit], receipt: Receipt, refusing: Sequence[Outcome]
) -> list[tuple[Outcome, tuple[int, int]]]:
    """Of *refusing* those that lack credits: units requested, and how many of these there were not. A rule of credits
    may also refuse because too many reservations are open.
    """
    found = []
    for outcome in refusing:
        if outcome.rule.quota.credits:
            index = next(index for index, hit in enumerate(hits) if hit.rule is outcome.rule)
            cost = hits[index].cost
            shortfall = cost - (hits[index].quota.limit - receipt.tallies[index].used)
            if shortfall > 0:
                found.append((outcome, (cost, shortfall)))
    return found


def _told_wait(quota: AnyQuota, wait_ms: int) -> int | None:
    """Return the wait that a client is told, when the store knows of *wait_ms*."""
    if wait_ms == NEVER:
        return None
    return min(wait_ms, SLOT_WAIT_MS_MAX) if quota.kind == Slots.kind else wait_ms


def _tighter(one: Outcome, other: Outcome) -> Outcome:
    """Return, of two quotas of one rule, the one that speaks for it; what remains is what both have room for."""
    if one.refuses or other.refuses:
        return max(one, other, key=_wait)._replace(remaining=min(one.remaining, other.remaining))
    return min(one, other, key=_remaining)


def _remaining(outcome: Outcome) -> int:
    return outcome.remaining


def _wait(outcome: Outcome) -> float:
    return float("inf") if outcome.retry_after_ms is None else outcome.retry_after_ms
