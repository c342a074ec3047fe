"""The observer of a limiter: methods that do nothing until a subclass overrides them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ratelimiter.stores.base import StoreObserver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.overrides import RuntimeOverrides
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.usage import Usage
    from ratelimiter.engine.batched_observer import Decisions
    from ratelimiter.tokens.figures import Cause


class Observer(StoreObserver):
    """An observer of decisions, of the policy in force, of runtime overrides, of reloads, and of the store.

    Methods do nothing here. Each must be quick and must not raise. A subclass overrides those that it needs.
    """

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        """Note *decision*.

        Args:
            decision: made a moment ago.
            hits: that it was about; their keys tell principals apart and name none of them.
            seconds: from the request to the decision, the wait for the store included.
        """

    def refused(self, decision: Decision, request_id: str, method: str) -> None:
        """Note under which request id the refusal *decision* was answered; empty if requests have none."""

    def named(self, names: Mapping[bytes, str]) -> None:
        """Note the principals behind the keys of the next decision; called under `show_principals` only (8)."""

    def loaded(self, policy: Policy) -> None:
        """Note that requests are judged under *policy* from now on."""

    def overridden(self, overrides: RuntimeOverrides) -> None:
        """Note that requests are judged under the runtime *overrides*, too, from now on."""

    def checked(self) -> None:
        """Note that the policy file was read."""

    def reloaded(self, result: str) -> None:
        """Note the result of a changed policy file, or of a request to read it: see `ratelimiter.config.reload`."""

    def used(self, rule: str, model: str, usage: Usage, reserved: int, due: int) -> None:
        """Note what an answer of a language model used.

        Args:
            rule: name of a rule that counts tokens; each such rule of a request tells the usage.
            model: that the request asked for, as far as the policy lists it; else `other`.
            usage: tokens by kind.
            reserved: units before the call.
            due: units that the usage costs.
        """

    def unreadable(self, rule: str, cause: Cause) -> None:
        """Note an answer whose usage is not known, so that the reservation of *rule* stands."""

    def in_batches_of(self, source: Decisions) -> Decisions | None:  # noqa: ARG002  # for those that take batches
        """Return this observer if it takes decisions in the batches of *source*; None to get each by `decided`."""
        return None


NULL_OBSERVER = Observer()


class DecisionObserver(Protocol):
    """The least that an application's observer has; it is told of nothing but decisions."""

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        """Note *decision*; see `Observer.decided`."""


def observer_of(given: Observer | DecisionObserver | None) -> Observer:
    """Return *given* as an observer; of an object of another class only `decided` is called, whatever else it has."""
    if given is None:
        return NULL_OBSERVER
    # The one look at a type: at the door of applications, whose objects may have methods that mean something else.
    return given if isinstance(given, Observer) else _DecisionsOnly(given)


class _DecisionsOnly(Observer):
    """An application's object that observes decisions and nothing else."""

    def __init__(self, given: DecisionObserver) -> None:
        self._given = given

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        self._given.decided(decision, hits, seconds)
