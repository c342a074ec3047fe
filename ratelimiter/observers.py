"""Several observers as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.limiter import OrdersObserver, PolicyObserver
from ratelimiter.stores.base import StoreObserver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.orders import Orders
    from ratelimiter.core.policy import Hit, Policy
    from ratelimiter.limiter import Observer


class Observers:
    """Tells each of *observers*, in their order, what it wants to know."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        self._of_stores = [each for each in observers if isinstance(each, StoreObserver)]
        self._of_policies = [each for each in observers if isinstance(each, PolicyObserver)]
        self._of_orders = [each for each in observers if isinstance(each, OrdersObserver)]

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        """Tell all; see `ratelimiter.limiter.Observer`."""
        for observer in self._observers:
            observer.decided(decision, hits, seconds)

    def loaded(self, policy: Policy) -> None:
        """Tell those who listen for policies; see `ratelimiter.limiter.PolicyObserver`."""
        for observer in self._of_policies:
            observer.loaded(policy)

    def obeyed(self, orders: Orders) -> None:
        """Tell those who listen for orders; see `ratelimiter.limiter.OrdersObserver`."""
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
