"""The metrics of a limiter: its decisions and the health of its store, under labels from closed sets.

No name, path or address of a client is a label, so the number of series depends on the policy alone (invariant 8).
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import product
from math import inf
from typing import TYPE_CHECKING

from ratelimiter.clock import Clock, Stopwatch, stopwatch_s, unix_ms
from ratelimiter.config.redact import fingerprint
from ratelimiter.config.reload import FAILED, RESULTS
from ratelimiter.core.decision import (
    BLOCKED,
    CREDIT_EXHAUSTED,
    MALFORMED,
    OVER_CAPACITY,
    OVER_LIMIT,
    STORE_ERROR,
    SUSPENDED,
    UNMATCHED,
    WITHIN_LIMIT,
)
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, LOCAL, REMEMBERED, STORE
from ratelimiter.core.requirement import REASONS
from ratelimiter.core.rule import OnStoreError
from ratelimiter.engine.batched_observer import Decisions
from ratelimiter.errors import Kind
from ratelimiter.metrics.prometheus import Instruments, Noted, Observed
from ratelimiter.metrics.token_metrics import TokenMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.overrides import RuntimeOverrides
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Hit, Rule
    from ratelimiter.core.usage import Usage
    from ratelimiter.engine.batched_observer import Told
    from ratelimiter.metrics.prometheus import CollectorRegistry
    from ratelimiter.tokens.figures import Cause

# The values of the labels; all of them, and none else.
UNASKED = "none"  # source of a decision that needed no store
SOURCES = (STORE, REMEMBERED, LOCAL, FAIL_OPEN, FAIL_CLOSED, UNASKED)
ADMITTED, REFUSED, SHADOW_REFUSED, SPARED = "admitted", "refused", "shadow_refused", "spared"
# Of requests.
OUTCOMES = (ADMITTED, REFUSED, CREDIT_EXHAUSTED, SHADOW_REFUSED, BLOCKED, UNMATCHED, MALFORMED, STORE_ERROR, *REASONS)
RULE_OUTCOMES = (ADMITTED, REFUSED, SHADOW_REFUSED, SPARED, STORE_ERROR)  # spared: has room, another rule refused
ORDERS = ("override", "block", "shadow")  # kinds of orders
INTERNAL = "internal"  # kind of a store error that is a mistake of ours
KINDS = (*(kind.value for kind in Kind), INTERNAL)

_OF_REASONS = {
    WITHIN_LIMIT: ADMITTED,
    OVER_LIMIT: REFUSED,
    OVER_CAPACITY: REFUSED,
    CREDIT_EXHAUSTED: CREDIT_EXHAUSTED,  # a 402, which no waiting helps against; the rule itself has refused
    SUSPENDED: SHADOW_REFUSED,
    BLOCKED: BLOCKED,
    UNMATCHED: UNMATCHED,
    MALFORMED: MALFORMED,
    STORE_ERROR: STORE_ERROR,
}
_UNASKED = frozenset({UNMATCHED, MALFORMED, BLOCKED})

# On the embedded store a decision takes 10 microseconds, through Redis a millisecond, at the deadline 50.
DECISION_S = (
    *(0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5),
    # The deadline is 50 ms by default: what ends just after it is told apart from what is late.
    *(0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.06, 0.1, 0.25, 1.0),
)
CALL_S = DECISION_S[3:]
BATCH = (1, 2, 4, 8, 16, 32, 64, 128)
# Of a limit that admits fewer requests than this there is no nearness to tell from the last admission, which is what
# such limits are for: no caller is ever near, unless warn_at says it otherwise.
NEAR = 5


class Metrics(Instruments, Decisions):
    """All metrics of one limiter; the observer of its decisions, of its store and of its policy file.

    Args:
        registry: where the metrics are found; that of the process by default.
        policy: the one in force; `loaded` says when it changes.
        clock: Unix time in milliseconds, for when a policy was loaded.
        stopwatch: seconds, for how long the store is out.

    Raises:
        ValueError: the registry has them already.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        policy: Policy | None = None,
        *,
        clock: Clock = unix_ms,
        stopwatch: Stopwatch = stopwatch_s,
    ) -> None:
        self._clock = clock
        self._stopwatch = stopwatch
        # Most requests meet one rule, are admitted by the store and leave room: of those the rule says all.
        self._plain = Noted()  # rule
        # Of the others that meet one rule, all that is to be said is counted under one key.
        self._alone = Noted()  # rule, reason, source, it had room, it is in shadow, near its limit
        self._requests = Noted()  # outcome, source
        self._rules = Noted()  # rule, outcome, source
        self._near = Noted()  # rule
        self._seconds = {source: Observed(DECISION_S) for source in SOURCES}
        self._tallies = {source: observed.tallies for source, observed in self._seconds.items()}
        self._calls = Observed(CALL_S)
        self._batches = Observed(BATCH)
        self._out_since_s: float | None = None
        self._shown_rules: frozenset[str] = frozenset()
        self._shown_hash = ""
        Decisions.__init__(self)
        Instruments.__init__(self, registry)
        if policy is not None:
            self.loaded(policy)

    def _make(self) -> None:
        self._of_requests = self._counter("requests", "Judged requests, each once.", "outcome", "source")
        self._of_rules = self._counter("rule_requests", "Requests that a rule matched.", "rule", "outcome", "source")
        self._of_near = self._counter(
            "rule_near_limit",
            "Admissions at or above warn_at of a limit, for limits of five requests or more.",
            "rule",
        )
        self._limit = self._gauge("rule_limit", "Units that a rule admits in its window.", "rule")
        self._of_plans = self._gauge("rule_plan_limit", "Units that a rule admits on a plan.", "rule", "plan")
        self._of_plan_windows = self._gauge(
            "rule_plan_window_seconds", "Length of the window of a rule on a plan; 0 if it has none.", "rule", "plan"
        )
        self._window = self._gauge("rule_window_seconds", "Length of the window of a rule; 0 if it has none.", "rule")
        self._decisions = self._histogram(
            "decision_seconds", "Seconds from a request to its decision.", DECISION_S, "source"
        )
        self._store_calls = self._histogram("store_call_seconds", "Seconds of a round trip to the store.", CALL_S)
        self._store_batches = self._histogram("store_batch_requests", "Requests in a round trip to the store.", BATCH)
        self._leased = self._counter("leased_requests", "Requests whose units were taken in advance from the store.")
        self._returned = self._counter(
            "lease_returned_requests", "Requests whose units taken in advance were given back."
        )
        self._store_errors = self._counter(
            "store_errors", "Requests and settlements that the store failed to answer.", "kind"
        )
        self._open = self._gauge("store_breaker_open", "Processes whose circuit breaker is open.", of_several="livesum")
        self._degraded = self._counter("degraded_seconds", "Seconds in which the circuit breaker was open.")
        self._reloads = self._counter("policy_reloads", "Attempts to load a changed policy file.", "result")
        self._reload_ok = self._gauge(
            "policy_last_reload_successful", "1 if the policy file could be loaded, else 0.", of_several="livemin"
        )
        self._checked = self._gauge(
            "policy_checked_timestamp_seconds", "Unix time of the last look at the policy file.", of_several="livemin"
        )
        self._orders = self._gauge(
            "orders", "Overrides and blocks in force, and the kill switch (1 if it is on).", "kind"
        )
        self._hash = self._gauge("policy_info", "1 for the policy in force.", "hash")
        self._loaded = self._gauge(
            "policy_loaded_timestamp_seconds", "Unix time at which the policy in force was loaded."
        )
        self._tokens = TokenMetrics(self._counter)
        # A series that appears with its first event hides that event from rate(). Those of rules come with the policy;
        # the histograms' first observation moves no quantile, and a source has 19 series of them, so they wait for it.
        for labels in (
            *product((ADMITTED, REFUSED), (STORE, LOCAL)),
            (REFUSED, REMEMBERED),
            (ADMITTED, FAIL_OPEN),
            (STORE_ERROR, FAIL_CLOSED),
            *((outcome, UNASKED) for outcome in sorted(_UNASKED)),
            # What an operator's switch makes of refusals, whatever the policy says.
            *product((SHADOW_REFUSED,), (STORE, REMEMBERED, LOCAL, FAIL_OPEN)),
        ):
            self._of_requests.labels(*labels)
        for kind in KINDS:
            self._store_errors.labels(kind)
        for result in RESULTS:
            self._reloads.labels(result)
        for kind in ORDERS:
            self._orders.labels(kind)

    @property
    def store_out(self) -> bool:
        """True while the circuit breaker of this process is open, as the readiness page shows it."""
        return self._out_since_s is not None

    # --- Noting

    def begin(self) -> None:
        """Schedule the flush by which other processes see these counts; see `engine.batched_observer.Batches`."""
        if not self._timed:
            self._flush_soon()

    def _count(self, batch: Sequence[Told]) -> None:
        plain, alone, tallies_of = self._plain, self._alone, self._tallies
        for decision, hits, seconds in batch:
            outcomes, source = decision.outcomes, decision.source
            if len(outcomes) == 1 and decision.fault is None:
                rule, remaining, _, retry_after_ms = outcomes[0]
                if retry_after_ms == 0 and remaining > rule.near and source == STORE:
                    plain[rule.name] += 1  # had it not been admitted, it would not have fitted
                else:
                    near = remaining <= rule.near and _can_be_near(rule)
                    alone[rule.name, decision.reason, source, retry_after_ms == 0, rule.shadow, near] += 1
            else:
                source = self._note_several(decision, hits)
            tallies = tallies_of[source]
            tallies[0] += seconds
            tallies[bisect_left(DECISION_S, seconds) + 1] += 1

    def _note_several(self, decision: Decision, hits: Sequence[Hit]) -> str:
        """Count a decision about no rule or several; return its source."""
        reason, source = decision.reason, decision.source
        if reason in _UNASKED or (reason in REASONS and not decision.outcomes):
            source = UNASKED
        said = set()
        for outcome in decision.outcomes:
            rule = outcome.rule
            word = _of_rule(reason, fits=not outcome.refuses, shadow=rule.shadow)
            said.add(word)
            self._rules[rule.name, word, source] += 1
            if word == ADMITTED and outcome.remaining <= rule.near and _can_be_near(rule):
                self._near[rule.name,] += 1
        if reason == STORE_ERROR:  # there is no outcome then, but rules matched
            for name in {hit.rule.name for hit in hits}:
                self._rules[name, STORE_ERROR, source] += 1
        self._requests[_of_request(reason, shadow_refused=SHADOW_REFUSED in said), source] += 1
        return source

    def called(self, requests: int, seconds: float) -> None:
        """Count a round trip to the store; see `ratelimiter.stores.base.StoreObserver`."""
        calls, batches = self._calls.tallies, self._batches.tallies
        calls[0] += seconds
        calls[bisect_left(CALL_S, seconds) + 1] += 1
        batches[0] += requests
        batches[bisect_left(BATCH, requests) + 1] += 1

    def used(self, rule: str, model: str, usage: Usage, reserved: int, due: int) -> None:
        """Count what an answer of a language model used."""
        self._tokens.used(rule, model, usage, reserved, due)
        self.begin()

    def unreadable(self, rule: str, cause: Cause) -> None:
        """Count an answer whose usage is not known."""
        self._tokens.unreadable(rule, cause)
        self.begin()

    def leased(self, requests: int) -> None:
        """Count units taken in advance, in requests."""
        self._leased.inc(requests)

    def returned(self, requests: int) -> None:
        """Count units given back, in requests."""
        self._returned.inc(requests)

    def failed(self, kind: str) -> None:
        """Count a request without an answer of the store, by `ratelimiter.errors.Kind` or as internal."""
        self._store_errors.labels(kind if kind in KINDS else INTERNAL).inc()

    def degraded(self, *, degraded: bool) -> None:
        """Note that the circuit breaker opened or closed."""
        with self._flushing:
            self._note_degraded()
            self._out_since_s = self._stopwatch() if degraded else None
        self._open.set(int(degraded))

    def reloaded(self, result: str) -> None:
        """Count an attempt to load the policy file: one of `ratelimiter.config.reload.RESULTS`."""
        self._reloads.labels(result).inc()
        self._reload_ok.set(result != FAILED)

    def checked(self) -> None:
        """Note that the policy file was read."""
        self._checked.set(self._clock() / 1000)

    def loaded(self, policy: Policy) -> None:
        """Show *policy* as the one in force."""
        rules = frozenset(rule.name for rule in policy.rules)
        hash_ = fingerprint(policy)
        if not self.shared:
            for name in self._shown_rules - rules:
                self._limit.remove(name)
                self._window.remove(name)
            self._hash.clear()
            self._of_plans.clear()
            self._of_plan_windows.clear()
        elif self._shown_hash:  # nothing can be taken out of the files that are shared
            self._hash.labels(self._shown_hash).set(0)
        lacking = sorted({reason for requirement in policy.requirements for reason in requirement.reasons})
        for reason in lacking:
            self._of_requests.labels(reason, UNASKED)
        for rule in policy.rules:
            self._limit.labels(rule.name).set(rule.quota.limit)
            self._window.labels(rule.name).set(rule.quota.window_ms / 1000)
            for plan, quota in rule.plans:
                self._of_plans.labels(rule.name, plan).set(inf if quota is None else quota.limit)
                self._of_plan_windows.labels(rule.name, plan).set(0 if quota is None else quota.window_ms / 1000)
            if _can_be_near(rule):
                self._of_near.labels(rule.name)
            for outcome, source in _expected(rule, policy):
                self._of_rules.labels(rule.name, outcome, source)
                if outcome == REFUSED and rule.quota.credits:
                    self._of_requests.labels(CREDIT_EXHAUSTED, source)
                elif outcome == ADMITTED:  # what has room may lack something else
                    for reason in lacking:
                        self._of_requests.labels(reason, source)
        self._tokens.loaded(policy)
        self._hash.labels(hash_).set(1)
        self._loaded.set(self._clock() / 1000)
        self._reload_ok.set(1)
        self._shown_rules, self._shown_hash = rules, hash_

    def overridden(self, overrides: RuntimeOverrides) -> None:
        """Show how many runtime *overrides* are in force; see `ratelimiter.engine.observer.Observer`."""
        for kind, number in zip(
            ORDERS, (len(overrides.overrides), len(overrides.blocks), int(overrides.shadow)), strict=True
        ):
            self._orders.labels(kind).set(number)

    # --- Exposition

    def _pass_on(self) -> None:
        self.catch_up()
        for rule, number in self._plain.news():
            self._of_rules.labels(rule, ADMITTED, STORE).inc(number)
            self._of_requests.labels(ADMITTED, STORE).inc(number)
        for (rule, reason, source, fits, shadow, near), number in self._alone.news():
            word = _of_rule(reason, fits=fits, shadow=shadow)
            self._of_rules.labels(rule, word, source).inc(number)
            outcome = _of_request(reason, shadow_refused=word == SHADOW_REFUSED)
            self._of_requests.labels(outcome, source).inc(number)
            if near and word == ADMITTED:
                self._of_near.labels(rule).inc(number)
        for labels, number in self._requests.news():
            self._of_requests.labels(*labels).inc(number)
        for labels, number in self._rules.news():
            self._of_rules.labels(*labels).inc(number)
        for labels, number in self._near.news():
            self._of_near.labels(*labels).inc(number)
        for source, observed in self._seconds.items():
            if any(observed.tallies):
                observed.pass_on(self._decisions.labels(source))
        self._tokens.pass_on()
        self._calls.pass_on(self._store_calls)
        self._batches.pass_on(self._store_batches)
        self._note_degraded()

    def _note_degraded(self) -> None:
        if self._out_since_s is not None:
            now_s = self._stopwatch()
            self._degraded.inc(now_s - self._out_since_s)
            self._out_since_s = now_s

    def _restless(self) -> bool:
        return self.store_out


def _can_be_near(rule: Rule) -> bool:
    """Return True if several admissions of *rule* can be near its limit."""
    return rule.quota.limit >= NEAR * rule.cost or rule.near >= rule.cost


def _expected(rule: Rule, policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield the outcomes that *rule* is expected to have, each with its source; at most 6 pairs.

    More can happen: a rule also has outcomes of requests that another rule has refused, from the refusal cache or in
    an outage, and there the other rule's `on_store_error` counts.
    """
    refused = SHADOW_REFUSED if rule.shadow else REFUSED
    yield from ((ADMITTED, STORE), (refused, STORE))
    if len(policy.rules) > 1:
        yield SPARED, STORE
    if policy.store.partition("://")[0].lower() == "memory":  # which is never out, and needs no remembering
        return
    if not rule.shadow:
        yield REFUSED, REMEMBERED
    if rule.on_store_error is OnStoreError.LOCAL:
        yield from ((ADMITTED, LOCAL), (refused, LOCAL))
    elif rule.on_store_error is OnStoreError.DENY and not rule.shadow:
        yield STORE_ERROR, FAIL_CLOSED
    else:
        yield ADMITTED, FAIL_OPEN


def _of_rule(reason: str, *, fits: bool, shadow: bool) -> str:
    """Return the outcome of one rule for a request that was decided for *reason*."""
    if not fits:
        return SHADOW_REFUSED if shadow else REFUSED
    return ADMITTED if reason == WITHIN_LIMIT or reason in REASONS else SPARED  # what lacks something was charged


def _of_request(reason: str, *, shadow_refused: bool) -> str:
    """Return the outcome of a request; a refusal in shadow counts only if no rule refused it."""
    return SHADOW_REFUSED if reason == WITHIN_LIMIT and shadow_refused else _OF_REASONS.get(reason, reason)
