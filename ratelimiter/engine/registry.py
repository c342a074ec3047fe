"""Every limiter of the process, for the tests of applications."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ratelimiter.engine.limiter import Limiter

_limiters: WeakSet[Limiter] = WeakSet()
_created: list[Callable[[Limiter], None]] = []  # are given every new limiter; for tests of applications


def limiters() -> list[Limiter]:
    """Return every limiter of the process."""
    return list(_limiters)


@contextmanager
def on_creation(take: Callable[[Limiter], None]) -> Iterator[None]:
    """Call *take* with every limiter that is made meanwhile."""
    _created.append(take)
    try:
        yield
    finally:
        _created.remove(take)


def add(limiter: Limiter) -> None:
    """Add a new *limiter*."""
    _limiters.add(limiter)
    for take in _created:
        take(limiter)
