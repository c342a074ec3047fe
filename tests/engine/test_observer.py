"""Several observers hang on one limiter."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.core.policy import Policy
from ratelimiter.engine.fan_out import FanOut
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.observer import NULL_OBSERVER, Observer, observer_of
from ratelimiter.metrics.heavy_hitters import Top
from ratelimiter.metrics.limiter_metrics import Metrics
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import per_minute, request


class Plain:
    """Wants to know of decisions only."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def decided(self, decision: object, hits: object, seconds: float) -> None:
        self.told.append((decision, hits, seconds))


class Curious(Observer, Plain):
    """Wants to know everything."""

    def decided(self, decision: object, hits: object, seconds: float) -> None:
        Plain.decided(self, decision, hits, seconds)

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
    observers = FanOut(plain, curious)
    decided = await Limiter(policy, MemoryStore(), observer=observers, stopwatch=lambda: 1.0).judge(request())
    observers.called(3, 0.5)
    observers.failed("timeout")
    observers.degraded(degraded=True)

    assert [(*decided[:2], 0.0)] == plain.told
    assert [policy, (*decided[:2], 0.0), (3, 0.5), "timeout", True] == curious.told


class Loader:
    """An application's own object, whose other methods mean something else."""

    def __init__(self) -> None:
        self.decisions = 0

    def decided(self, *_: object) -> None:
        self.decisions += 1

    def loaded(self) -> bool:
        raise AssertionError

    def named(self) -> str:
        raise AssertionError

    def failed(self) -> bool:
        raise AssertionError

    def degraded(self) -> bool:
        raise AssertionError


async def test_only_decided_is_called_of_an_object_of_another_class() -> None:
    """A method that shares its name with one of `Observer` is not called for that, be it alone or among others."""
    alone, among = Loader(), Loader()
    policy = Policy((per_minute(),), show_principals=True)
    for observer in (alone, FanOut(among)):
        limiter = Limiter(policy, MemoryStore(), observer=observer)
        limiter.swap(policy)
        await limiter.judge(request())
    given = observer_of(alone)
    given.failed("timeout")
    given.degraded(degraded=True)

    assert (1, 1) == (alone.decisions, among.decisions)


async def test_the_middleware_takes_an_object_with_other_methods_of_those_names() -> None:
    """Building the application does not call `loaded`, and the request is observed."""
    observer = Loader()

    async def app(*_: object) -> None: ...

    middleware = RateLimitMiddleware(app, limit="1/minute", observer=observer)
    await middleware({"type": "http", "path": "/", "headers": []}, None, None)  # type: ignore[arg-type]

    assert 1 == observer.decisions


def test_an_observer_does_nothing_by_default() -> None:
    """A subclass overrides what it needs, and `None` is the observer that overrides nothing."""
    methods = {name for name in (*vars(Observer), *vars(Observer.__base__)) if not name.startswith("_")}
    own = Observer()

    assert {
        "decided",
        "named",
        "loaded",
        "overridden",
        "called",
        "failed",
        "degraded",
        "checked",
        "reloaded",
    } <= methods
    assert NULL_OBSERVER is observer_of(None)
    assert own is observer_of(own)


async def test_those_that_count_in_batches_share_one() -> None:
    """What is read is complete at any time, whoever reads first; who shares metrics with another limiter is told no
    decision of that one; and who counts in no batch hears of each at once.
    """
    registry, plain, own, others, policy = CollectorRegistry(), Plain(), Top(), Top(), Policy((per_minute(2),))
    metrics = Metrics(registry, policy)
    first = Limiter(policy, MemoryStore(), observer=FanOut(own, plain, metrics))
    second = Limiter(policy, MemoryStore(), observer=FanOut(metrics, others))
    for _ in range(5):
        await first.judge(request())
        await second.judge(request(peer="192.0.2.9"))

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
    limiter = Limiter(policy, MemoryStore(), observer=FanOut(metrics, Plain(), top))
    for _ in range(3):
        await limiter.judge(request(peer="192.0.2.9"))

    assert ["192.0.2.9"] == [each["name"] for each in top.report()["now"]["refused"]]
    assert b"192.0.2.9" not in metrics.exposition()[0]
