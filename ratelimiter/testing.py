"""For the tests of applications that use this package: time that passes when told to, and stores that are fresh."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ratelimiter.engine import registry
from ratelimiter.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ratelimiter.clock import Clock
    from ratelimiter.engine.limiter import Limiter
    from ratelimiter.stores.base import Store


class FakeClock:
    """A clock that stands still until it is moved.

    Args:
        now_ms: Unix time in milliseconds that it shows at first.

    Example:
        >>> clock = FakeClock()
        >>> before = clock()
        >>> clock.advance(1500)
        >>> clock() - before
        1500
    """

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        """Return its time, as Unix time in milliseconds."""
        return self.now_ms

    def advance(self, ms: int) -> None:
        """Move the clock *ms* milliseconds on, or back when negative."""
        self.now_ms += ms


class FreshLimits:
    """The limits of a test: of every limiter of the process nothing is counted yet, and time stands still.

    Attributes:
        clock: of every store.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        self._stores: dict[str, MemoryStore] = {}

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self.clock.advance(round(seconds * 1000))

    def reset(self) -> None:
        """Forget all that is counted."""
        self._stores.clear()
        for each in registry.limiters():
            self.take(each)

    def take(self, limiter: Limiter) -> None:
        """Have *limiter* count here: with all others whose policy names the same store."""
        store = self._stores.setdefault(limiter.policy.store, MemoryStore(clock=self.clock))
        limiter.replace_store(store, self.clock)


@contextmanager
def fresh_limits() -> Iterator[FreshLimits]:
    """Have every limiter of the process count anew in memory, made before or meanwhile; afterwards all is as before."""
    limits = FreshLimits()
    before: list[tuple[Limiter, Store, Clock]] = []

    def take(limiter: Limiter) -> None:
        before.append((limiter, limiter.store, limiter.clock))
        limits.take(limiter)

    for each in registry.limiters():
        take(each)
    try:
        with registry.on_creation(take):
            yield limits
    finally:
        for limiter, store, clock in before:
            limiter.replace_store(store, clock)
