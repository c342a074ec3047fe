"""Deadlines for the store. A pause of our own event loop does not count against the store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from ratelimiter.errors import StoreOverloaded, StoreTimeout

if TYPE_CHECKING:
    from types import TracebackType

    from ratelimiter.errors import StoreError

LATE_S = 0.005  # a timer that fires later than this says that the event loop stood still, not the store
# What the store gets then: replies may have come that are not read yet, and requests that had to wait are only leaving.
GRACE_S = 0.01


def stood_still(late_s: float, before_s: float, timeout_s: float) -> bool:
    """Return True if a timer that fired *late_s* late is to be set anew, by `GRACE_S`.

    Args:
        late_s: how late it is.
        before_s: how late it was the time before; 0 if this is the first. It is set anew again only for a pause that
            alone is longer than the deadline, so that no store gains much by our being slow.
        timeout_s: the deadline.
    """
    return late_s > (timeout_s if before_s else LATE_S)


def missed(timeout_s: float, late_s: float) -> StoreError:
    """Return the error for a missed deadline; *late_s* is how late our own timer fired.

    A pause longer than the deadline itself says nothing about the store.
    """
    if late_s > timeout_s:
        return StoreOverloaded(f"our event loop stood still for {late_s * 1000:.0f} ms")
    return StoreTimeout(f"no answer within {timeout_s * 1000:.0f} ms")


class Deadline:
    """Gives what is inside *timeout_ms*; use as `async with`.

    Raises:
        StoreTimeout: the time is up.
        StoreOverloaded: the time is up, and most of it was a pause of our own.
    """

    def __init__(self, timeout_ms: int) -> None:
        self._timeout_s = timeout_ms / 1000
        self._late_s = 0.0
        self._scope = asyncio.timeout(None)
        self._alarm: asyncio.TimerHandle

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._timeout_s
        self._alarm = loop.call_at(due_s, self._ring, loop, due_s)
        await self._scope.__aenter__()
        return self

    def _ring(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        now_s = loop.time()
        if stood_still(now_s - due_s, self._late_s, self._timeout_s):
            self._late_s = now_s - due_s
            self._alarm = loop.call_at(now_s + GRACE_S, self._ring, loop, now_s + GRACE_S)
        else:
            self._scope.reschedule(now_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm.cancel()
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError as up:
            raise missed(self._timeout_s, self._late_s) from up
