"""Responses that are read to their end though the client has left, because their end says what they cost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ratelimiter.clock import stopwatch_s
from ratelimiter.proxy.interfaces import notify
from ratelimiter.proxy.timeouts import Sweep

if TYPE_CHECKING:
    import asyncio

    from ratelimiter.proxy.head import ResponseHead
    from ratelimiter.proxy.interfaces import BodyObserver, Follower
    from ratelimiter.proxy.settings import ProxySettings
    from ratelimiter.proxy.upstream_connection import UpstreamConnection

log = logging.getLogger(__name__)


class Drains:
    """The responses that are drained now, bounded in number and in time.

    Args:
        settings: `drains_max` and `drain_timeout_ms`.
        loop: the event loop.
    """

    def __init__(self, settings: ProxySettings, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._sweep = Sweep(loop, settings.tick_s)
        self._all: set[Drain] = set()

    def __len__(self) -> int:
        """Responses drained now."""
        return len(self._all)

    def begin(self, connection: UpstreamConnection, follower: Follower, observer: BodyObserver | None) -> bool:
        """Drain the response that *connection* carries, and end *follower* after it; return False if too many are.

        Args:
            connection: whose request is complete.
            follower: of the exchange.
            observer: of the response's body; None if its head has not come.
        """
        if len(self._all) >= self._settings.drains_max:
            return False
        drain = Drain(self, connection, follower, observer, stopwatch_s() + self._settings.drain_timeout_ms / 1000)
        self._all.add(drain)
        self._sweep.add(drain)
        connection.redirect(drain)
        return True

    def discard(self, drain: Drain) -> None:
        """Forget a drain that is over."""
        self._all.discard(drain)
        self._sweep.discard(drain)

    def close(self) -> None:
        """End every drain now."""
        for drain in list(self._all):
            drain.give_up()


class Drain:
    """One response that is read and thrown away: a ResponseReceiver.

    Args:
        drains: all of them.
        connection: brings it.
        follower: is told of its end.
        observer: sees its body; None before its head.
        due_s: when it is given up, on `stopwatch_s`.
    """

    def __init__(
        self,
        drains: Drains,
        connection: UpstreamConnection,
        follower: Follower,
        observer: BodyObserver | None,
        due_s: float,
    ) -> None:
        self._drains = drains
        self._connection = connection
        self._follower = follower
        self._observer = observer
        self._due_s = due_s

    # --- A ResponseReceiver

    def informed(self, head: ResponseHead) -> None:
        """Wait on for the final response."""

    def responded(self, head: ResponseHead, content: bytes, *, complete: bool) -> None:
        """Tell the follower of the head, and show its observer the first of the content."""
        self._observer = notify(self._follower.responded, head.status, head.headers)
        if content:
            self.content(content)
        if complete:
            self._end(complete=True)

    def switched(self, head: ResponseHead, data: bytes) -> None:  # noqa: ARG002  # of a tunnel nothing is read
        """Give up: a tunnel has no end that would say anything."""
        self.give_up()

    def content(self, data: bytes) -> None:
        """Show the observer a piece of the content."""
        if self._observer is not None:
            try:
                self._observer(data)
            except Exception:
                log.exception("an observer of a response's body failed")
                self._observer = None

    def ended(self, trailers: list[bytes]) -> None:  # noqa: ARG002  # no client is left to get them
        """End: the response is complete."""
        self._end(complete=True)

    def unanswered(self) -> None:
        """End: there is no response."""
        self._end(complete=False)

    def upstream_failed(self, status: int, issue: str) -> None:  # noqa: ARG002  # there is no client to tell
        """End: the response was cut."""
        self._end(complete=False)

    def upstream_full(self) -> None:
        """Send nothing: the request is complete."""

    def upstream_ready(self) -> None:
        """Send nothing: the request is complete."""

    # --- For its set

    def tick(self, now_s: float, passed_s: float) -> None:  # noqa: ARG002  # as Sweep calls it
        """Give up if it takes too long."""
        if now_s >= self._due_s:
            self.give_up()

    def give_up(self) -> None:
        """Close the connection, and end."""
        self._connection.close()
        self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        self._drains.discard(self)
        notify(self._follower.ended, complete, not complete)
