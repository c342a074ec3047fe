"""Several observers as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.engine.batched_observer import Decisions
from ratelimiter.engine.observer import observer_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.overrides import RuntimeOverrides
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.usage import Usage
    from ratelimiter.engine.batched_observer import Told
    from ratelimiter.engine.observer import DecisionObserver, Observer
    from ratelimiter.tokens.figures import Cause


class FanOut(Decisions):
    """Passes every event on to each of *observers*, in their order: decisions in batches to those that take batches,
    else one by one.
    """

    def __init__(self, *observers: Observer | DecisionObserver) -> None:
        super().__init__()
        self._all = tuple(observer_of(each) for each in observers)
        batched = [(each, each.in_batches_of(self)) for each in self._all]
        self._in_batches = tuple(taking for _, taking in batched if taking is not None)
        self._at_once = tuple(each for each, taking in batched if taking is None)

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        """Pass on a decision, at once or with its batch."""
        for observer in self._at_once:
            observer.decided(decision, hits, seconds)
        super().decided(decision, hits, seconds)

    def begin(self) -> None:
        """Pass on that a decision is kept; see `Batches`."""
        for observer in self._in_batches:
            observer.begin()

    def _count(self, batch: Sequence[Told]) -> None:
        for observer in self._in_batches:
            observer.take(batch)

    def refused(self, decision: Decision, request_id: str, method: str) -> None:
        """Pass on the request id of a refusal."""
        for observer in self._all:
            observer.refused(decision, request_id, method)

    def named(self, names: Mapping[bytes, str]) -> None:
        """Pass on the names of principals."""
        for observer in self._all:
            observer.named(names)

    def loaded(self, policy: Policy) -> None:
        """Pass on the policy in force."""
        for observer in self._all:
            observer.loaded(policy)

    def overridden(self, overrides: RuntimeOverrides) -> None:
        """Pass on the runtime overrides in force."""
        for observer in self._all:
            observer.overridden(overrides)

    def checked(self) -> None:
        """Pass on that the policy file was read."""
        for observer in self._all:
            observer.checked()

    def reloaded(self, result: str) -> None:
        """Pass on the result of a changed policy file."""
        for observer in self._all:
            observer.reloaded(result)

    def used(self, rule: str, model: str, usage: Usage, reserved: int, due: int) -> None:
        """Pass on what an answer of a language model used."""
        for observer in self._all:
            observer.used(rule, model, usage, reserved, due)

    def unreadable(self, rule: str, cause: Cause) -> None:
        """Pass on that the usage of an answer is not known."""
        for observer in self._all:
            observer.unreadable(rule, cause)

    def called(self, requests: int, seconds: float) -> None:
        """Pass on a round trip to the store."""
        for observer in self._all:
            observer.called(requests, seconds)

    def failed(self, kind: str) -> None:
        """Pass on a failure of the store."""
        for observer in self._all:
            observer.failed(kind)

    def degraded(self, *, degraded: bool) -> None:
        """Pass on the state of the circuit breaker."""
        for observer in self._all:
            observer.degraded(degraded=degraded)

    def leased(self, requests: int) -> None:
        """Pass on units that were taken in advance."""
        for observer in self._all:
            observer.leased(requests)

    def returned(self, requests: int) -> None:
        """Pass on units that were given back."""
        for observer in self._all:
            observer.returned(requests)
