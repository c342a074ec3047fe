"""Several observers as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.engine.batched_observer import Decisions
from ratelimiter.engine.limiter import NamesObserver, OrdersObserver, PolicyObserver
from ratelimiter.stores.base import StoreObserver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.overrides import Orders
    from ratelimiter.core.policy import Hit, Policy
    from ratelimiter.engine.batched_observer import Told
    from ratelimiter.engine.limiter import Observer


class Observers(Decisions):
    """Tells each of *observers*, in their order, what it wants to know: when a batch is full if it counts in batches,
    else at once.
    """

    def __init__(self, *observers: Observer) -> None:
        super().__init__()
        self._in_batches = [each for each in observers if isinstance(each, Decisions)]
        self._at_once = [each for each in observers if not isinstance(each, Decisions)]
        self._of_stores = [each for each in observers if isinstance(each, StoreObserver)]
        self._of_policies = [each for each in observers if isinstance(each, PolicyObserver)]
        self._of_names = [each for each in observers if isinstance(each, NamesObserver)]
        self._of_orders = [each for each in observers if isinstance(each, OrdersObserver)]
        for each in self._in_batches:
            each.take_from(self)
        if self._at_once:
            self.decided = self._tell_and_keep  # type: ignore[method-assign]

    def _tell_and_keep(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        for observer in self._at_once:
            observer.decided(decision, hits, seconds)
        super().decided(decision, hits, seconds)

    def begin(self) -> None:
        """Tell those who count in batches; see `ratelimiter.engine.batched_observer.Batches`."""
        for observer in self._in_batches:
            observer.begin()

    def _count(self, batch: Sequence[Told]) -> None:
        for observer in self._in_batches:
            observer.take(batch)

    def named(self, names: Mapping[bytes, str]) -> None:
        """Tell those who show people; see `ratelimiter.engine.limiter.NamesObserver`."""
        for observer in self._of_names:
            observer.named(names)

    def loaded(self, policy: Policy) -> None:
        """Tell those who listen for policies; see `ratelimiter.engine.limiter.PolicyObserver`."""
        for observer in self._of_policies:
            observer.loaded(policy)

    def obeyed(self, orders: Orders) -> None:
        """Tell those who listen for orders; see `ratelimiter.engine.limiter.OrdersObserver`."""
        for observer in self._of_orders:
            observer.obeyed(orders)

    def called(self, requests: int, seconds: float) -> None:
        """Tell those who listen to stores; see `ratelimiter.stores.base.StoreObserver`."""
        for observer in self._of_stores:
            observer.called(requests, seconds)

    def failed(self, kind: str) -> None:
        """Tell those who listen to stores."""
        for observer in self._of_stores:
            observer.failed(kind)

    def degraded(self, *, degraded: bool) -> None:
        """Tell those who listen to stores."""
        for observer in self._of_stores:
            observer.degraded(degraded=degraded)
