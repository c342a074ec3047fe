"""Several observers hang on one limiter."""

from __future__ import annotations

from typing import Any

from ratelimiter.core.policy import Policy
from ratelimiter.limiter import Limiter, PolicyObserver
from ratelimiter.observers import Observers
from ratelimiter.stores.base import StoreObserver
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import per_minute, request


class Plain:
    """Wants to know of decisions only."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def decided(self, decision: object, hits: object, seconds: float) -> None:
        self.told.append((decision, hits, seconds))


class Curious(Plain):
    """Wants to know everything."""

    def loaded(self, policy: Policy) -> None:
        self.told.append(policy)

    def called(self, requests: int, seconds: float) -> None:
        self.told.append((requests, seconds))

    def failed(self, kind: str) -> None:
        self.told.append(kind)

    def degraded(self, *, degraded: bool) -> None:
        self.told.append(degraded)


async def test_each_is_told_what_it_listens_for() -> None:
    """Who has only one method hears of decisions; who has them all hears everything, in order."""
    plain, curious, policy = Plain(), Curious(), Policy((per_minute(),))
    observers = Observers(plain, curious)
    decided = await Limiter(policy, MemoryStore(), observer=observers, stopwatch=lambda: 1.0).decide(request())
    observers.called(3, 0.5)
    observers.failed("timeout")
    observers.degraded(degraded=True)

    assert isinstance(observers, StoreObserver)
    assert isinstance(observers, PolicyObserver)
    assert [(*decided, 0.0)] == plain.told
    assert [policy, (*decided, 0.0), (3, 0.5), "timeout", True] == curious.told
