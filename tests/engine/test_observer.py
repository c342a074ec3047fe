"""Several observers hang on one limiter."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from ratelimiter.core.policy import Policy
from ratelimiter.engine.limiter import Limiter, PolicyObserver
from ratelimiter.engine.observer import Observers
from ratelimiter.metrics.heavy_hitters import Top
from ratelimiter.metrics.limiter_metrics import Metrics
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


async def test_those_that_count_in_batches_share_one() -> None:
    """What is read is complete at any time, whoever reads first; who shares metrics with another limiter is told no
    decision of that one; and who counts in no batch hears of each at once.
    """
    registry, plain, own, others, policy = CollectorRegistry(), Plain(), Top(), Top(), Policy((per_minute(2),))
    metrics = Metrics(registry, policy)
    first = Limiter(policy, MemoryStore(), observer=Observers(own, plain, metrics))
    second = Limiter(policy, MemoryStore(), observer=Observers(metrics, others))
    for _ in range(5):
        await first.decide(request())
        await second.decide(request(peer="192.0.2.9"))

    def counted(outcome: str) -> float | None:
        return registry.get_sample_value("ratelimiter_requests_total", {"outcome": outcome, "source": "store"})

    assert 5 == len(plain.told)
    assert [3] == [each["refusals"] for each in own.report()["now"]["refused"]]
    assert (4, 6) == (counted("admitted"), counted("refused"))
    assert [3] == [each["refusals"] for each in others.report()["now"]["refused"]]


async def test_who_shows_people_is_told_their_names() -> None:
    """Through any number of observers, and before the decision; metrics hear of none."""
    registry, top = CollectorRegistry(), Top()
    policy = Policy((per_minute(2),), show_principals=True)
    metrics = Metrics(registry, policy)
    limiter = Limiter(policy, MemoryStore(), observer=Observers(metrics, Plain(), top))
    for _ in range(3):
        await limiter.decide(request(peer="192.0.2.9"))

    assert ["192.0.2.9"] == [each["name"] for each in top.report()["now"]["refused"]]
    assert b"192.0.2.9" not in metrics.exposition()[0]
