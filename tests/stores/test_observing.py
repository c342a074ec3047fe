"""What stores tell of themselves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ratelimiter.core.policy import Policy
from ratelimiter.core.rule import OnStoreError
from ratelimiter.errors import Kind, StoreTimeout
from ratelimiter.stores.base import StoreObserver
from ratelimiter.stores.circuit_breaker import FAILURES_MAX, PROBE_MS, CircuitBreaker
from ratelimiter.stores.factory import store_for
from ratelimiter.stores.fallback import FallbackStore
from ratelimiter.stores.memory import MemoryStore
from tests.reference_store import hits_of
from tests.requesting import per_minute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit
    from ratelimiter.testing import FakeClock
    from tests.stores.redis_server import RedisServer


class Listener(StoreObserver):
    def __init__(self) -> None:
        self.calls: list[tuple[int, float]] = []
        self.failures: list[str] = []
        self.states: list[bool] = []

    def called(self, requests: int, seconds: float) -> None:
        self.calls.append((requests, seconds))

    def failed(self, kind: str) -> None:
        self.failures.append(kind)

    def degraded(self, *, degraded: bool) -> None:
        self.states.append(degraded)


class Frail(MemoryStore):
    """A store that fails while *error* is set."""

    error: Exception | None = None

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        if self.error is not None:
            raise self.error
        return self.charge_now(hits)


async def test_errors_and_changes_of_state_are_told(clock: FakeClock) -> None:
    """Each error is told by its kind, an outage at its begin and its end; a mistake of ours by its exception."""
    listener, store = Listener(), Frail(clock=clock)
    guarded = FallbackStore(store, breaker=CircuitBreaker(clock=clock), observer=listener)
    hits = hits_of(per_minute(1000))
    store.error = KeyError("oops")
    await guarded.charge(hits)
    store.error = StoreTimeout("late")
    for _ in range(FAILURES_MAX + 10):
        await guarded.charge(hits)
    clock.advance(PROBE_MS)
    store.error = None
    await guarded.charge(hits)

    assert ["KeyError", *[Kind.TIMEOUT] * FAILURES_MAX] == listener.failures
    assert [True, False] == listener.states


async def test_round_trips_are_told_with_their_requests(redis_server: RedisServer) -> None:
    """The requests of all round trips are those that were made, and concurrent ones shared a trip."""
    listener = Listener()
    rule = per_minute(1000, on_store_error=OnStoreError.DENY, lease=0)
    policy = Policy((rule,), store=redis_server.url, decision_timeout_ms=5000)
    store = store_for(policy, listener)
    await store.charge(hits_of(rule))  # the first also connects
    await asyncio.gather(*(store.charge(hits_of(rule)) for _ in range(40)))
    await store.close()

    assert 41 == sum(requests for requests, _ in listener.calls)
    assert len(listener.calls) <= 10
    assert all(0 < seconds < 5 for _, seconds in listener.calls)
    assert ([], []) == (listener.failures, listener.states)
