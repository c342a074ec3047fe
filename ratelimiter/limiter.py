"""The engine: a request in, a decision out, whatever stands around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ratelimiter.clock import Clock, unix_ms
from ratelimiter.core.decision import Decision, decide, malformed, unmatched
from ratelimiter.core.policy import Planner
from ratelimiter.core.request import MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from ratelimiter.core.policy import Hit, Policy
    from ratelimiter.core.request import Request
    from ratelimiter.stores.base import Store


class Observer(Protocol):
    """Is told every decision, after it fell."""

    def decided(self, decision: Decision) -> None:
        """Take note of *decision*. Must be quick and must not raise."""


class Limiter:
    """Judges requests under one policy.

    Args:
        policy: what is admitted.
        store: where it is counted.
        observer: who is told.
        clock: for decisions that need no store; Unix time in milliseconds.
    """

    def __init__(
        self, policy: Policy, store: Store, *, observer: Observer | None = None, clock: Clock = unix_ms
    ) -> None:
        self.policy = policy
        self.store = store
        self._planner = Planner(policy)
        self._observer = observer
        self._clock = clock

    def hits(self, request: Request) -> tuple[Hit, ...]:
        """What *request* would be charged.

        Raises:
            MalformedRequest: its path or a header that names a principal can be read in two ways.
        """
        return self._planner.plan(request).hits(request)

    async def decide(self, request: Request, charged: Container[Hit] = ()) -> tuple[Decision, Sequence[Hit]]:
        """Charge *request* to every rule that it matches, or to none.

        Args:
            request: what is judged.
            charged: hits that another limiter in the same stack has charged for this very request; not charged again.

        Returns:
            The decision, and the hits that it was about.

        Raises:
            StoreError: the store gave no answer and nothing stands in for it.
        """
        hits: Sequence[Hit] = ()
        try:
            hits = self._planner.plan(request).hits(request)
        except MalformedRequest as fault:
            decision = malformed(self._clock(), fault.field, fault.issue)
        else:
            if charged:
                hits = [hit for hit in hits if hit not in charged]
            decision = decide(hits, await self.store.charge(hits)) if hits else unmatched(self._clock())
        if self._observer is not None:
            self._observer.decided(decision)
        return decision, hits
