"""Rendered refusals: a flood is refused in the same words for a second, so they are rendered once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.headers import seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.reply import Reply
    from ratelimiter.dialects.dialect import Dialect

    Header = tuple[bytes, bytes]

KEPT_MAX = 1024  # rendered refusals, about 1 kB each


class Refusals:
    """A cache of refusals without a request id, by every number that they speak of.

    Args:
        dialect: renders their bodies.
        render: renders their rate limit headers.
        kept_max: rendered refusals kept; with one more, all are dropped.
    """

    def __init__(
        self, dialect: Dialect, render: Callable[[Decision], list[Header]], *, kept_max: int = KEPT_MAX
    ) -> None:
        self._dialect = dialect
        self._render = render
        self._kept_max = kept_max
        self._kept: dict[tuple[object, ...], tuple[Reply, list[Header]]] = {}

    def __len__(self) -> int:
        """Return how many rendered refusals are kept."""
        return len(self._kept)

    def get(self, decision: Decision) -> tuple[Reply, list[Header]]:
        """Return the reply to a request that *decision* refuses, and its rate limit headers; not to be changed."""
        if len(decision.outcomes) != 1 or decision.fault is not None or self._dialect.exact:
            return self._dialect.refusal(decision), self._render(decision)
        outcome = decision.outcomes[0]
        key = (
            decision.reason,
            decision.missing,
            outcome.rule.name,
            outcome.rule.quota,  # which plans and overrides change
            outcome.remaining,
            outcome.retry_after_ms is None,
            seconds_of(decision, outcome),
        )
        refusal = self._kept.get(key)
        if refusal is None:
            if len(self._kept) >= self._kept_max:
                self._kept.clear()
            refusal = self._kept[key] = (self._dialect.refusal(decision), self._render(decision))
        return refusal
