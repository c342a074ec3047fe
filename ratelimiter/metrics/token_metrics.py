"""Metrics of rules that count tokens: tokens by kind and model, estimates against the truth, unreadable answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.usage import KINDS
from ratelimiter.engine.token_meters import OTHER_MODELS
from ratelimiter.metrics.prometheus import Noted
from ratelimiter.tokens.figures import Cause

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.usage import Usage
    from ratelimiter.metrics.prometheus import Counter


class TokenMetrics:
    """Counts of token rules, kept until they are passed on.

    Labels come from closed sets: the policy's rules, five kinds, the models that the policy lists, and the causes.

    Args:
        counter: makes a counter from its name, text and labels.
    """

    def __init__(self, counter: Callable[..., Counter]) -> None:
        self._of_tokens = counter("tokens", "Tokens that answers of language models used.", "rule", "kind", "model")
        self._of_reserved = counter(
            "token_units_reserved", "Units reserved for calls whose answers told their usage.", "rule"
        )
        self._of_used = counter("token_units_used", "Units that these answers came to.", "rule")
        self._of_overdrafts = counter(
            "token_overdrafts", "Answers that came to more units than were reserved for them.", "rule"
        )
        self._of_overdrawn = counter("token_units_overdrawn", "Units beyond the reservations of such answers.", "rule")
        self._of_unreadable = counter(
            "token_answers_unreadable",
            "Answers without a usage that could be read; their reservations stand.",
            "rule",
            "cause",
        )
        self._tokens, self._unreadable = Noted(), Noted()
        self._reserved, self._used = Noted(), Noted()
        self._overdrafts, self._overdrawn = Noted(), Noted()

    def used(self, rule: str, model: str, usage: Usage, reserved: int, due: int) -> None:
        """Note what an answer used; see `ratelimiter.engine.observer.Observer`."""
        for kind, tokens in zip(KINDS, usage, strict=True):
            if tokens:
                self._tokens[rule, kind, model] += tokens
        self._reserved[rule] += reserved
        self._used[rule] += due
        if due > reserved:
            self._overdrafts[rule] += 1
            self._overdrawn[rule] += due - reserved

    def unreadable(self, rule: str, cause: Cause) -> None:
        """Note an answer whose usage is not known; see `ratelimiter.engine.observer.Observer`."""
        self._unreadable[rule, cause.value] += 1

    def loaded(self, policy: Policy) -> None:
        """Begin the series of the policy's rules, so that their first event is seen by rate()."""
        for rule in policy.rules:
            if not rule.metered:
                continue
            for counter in (self._of_reserved, self._of_used, self._of_overdrafts, self._of_overdrawn):
                counter.labels(rule.name)
            for kind in KINDS[:2]:
                self._of_tokens.labels(rule.name, kind, OTHER_MODELS)
            for cause in Cause:
                self._of_unreadable.labels(rule.name, cause.value)

    def pass_on(self) -> None:
        """Pass on what was noted since the last time."""
        for labels, number in self._tokens.news():
            self._of_tokens.labels(*labels).inc(number)
        for labels, number in self._unreadable.news():
            self._of_unreadable.labels(*labels).inc(number)
        for noted, counter in (
            (self._reserved, self._of_reserved),
            (self._used, self._of_used),
            (self._overdrafts, self._of_overdrafts),
            (self._overdrawn, self._of_overdrawn),
        ):
            for rule, number in noted.news():
                counter.labels(rule).inc(number)
