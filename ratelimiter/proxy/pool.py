"""The connections to the upstream: kept, checked before they are used again, and no more than there may be."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections import deque
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.clock import stopwatch_s
from ratelimiter.proxy.happy_eyeballs import Dialer
from ratelimiter.proxy.timeouts import Sweep
from ratelimiter.proxy.upstream_connection import UpstreamConnection

if TYPE_CHECKING:
    import ssl

    from ratelimiter.proxy.settings import ProxySettings

# For this long after a response an upstream may close behind it, keep-alive or not: nginx does so after some errors.
SETTLED_S = 0.02
# An upstream that closed an idle connection may close the others when they are as old; for this long that is believed,
# and of its time this share is used.
LEARNED_S, LEARNED_SHARE = 60.0, 0.75


class CrowdedError(Exception):
    """All connections to the upstream that there may be are in use, and none was given back in time."""


class Target(NamedTuple):
    """The address of the upstream."""

    host: str = ""
    port: int = 0
    path: str = ""  # of a unix socket, instead
    tls: ssl.SSLContext | None = None

    @property
    def authority(self) -> bytes:
        """The Host of a request that has none."""
        if self.path:
            return b"localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()


class Pool:
    """The connections to one upstream; the one used last is used next.

    Args:
        target: where the upstream is.
        settings: on times and sizes.
        loop: the event loop.
    """

    def __init__(self, target: Target, settings: ProxySettings, loop: asyncio.AbstractEventLoop) -> None:
        self.target = target
        self.tls = target.tls  # of new connections; it may be replaced
        self.settings = settings
        self._loop = loop
        self._idle: list[UpstreamConnection] = []
        self._all: set[UpstreamConnection] = set()
        self._opening = 0  # that are not among these yet
        self._line: deque[asyncio.Future[UpstreamConnection | None]] = deque()  # waiting for one, or for room
        self._dialer = None if target.path or _is_address(target.host) else Dialer(target.host, target.port, loop)
        self._sweep = Sweep(loop, min(1.0, settings.upstream_idle_ms / 4000))
        self._swept = False
        self._closed_after_s = float("inf")  # of idleness, by the upstream
        self._closed_at_s = float("-inf")

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._all)

    @property
    def waiting(self) -> int:
        """Requests in line for a connection now."""
        return len(self._line)

    def take(self, *, resendable: bool = True) -> UpstreamConnection | None:
        """Return a connection that is open and idle; None if there is none.

        The kernel is asked first, since an upstream may have closed the connection (RFC 9112 section 9.3.1).

        Args:
            resendable: True if the request may be sent once more, should the connection end without an answer. Else the
                connection must have been idle for a moment, and for less time than the upstream kept others.
        """
        idle, at = self._idle, -1
        if self._dialer is not None and self._dialer.spread > 1 and not self._full():
            if len(self._all) + self._opening < self._dialer.spread:
                return None  # a new one, to the next address
            at = 0  # the one that has rested longest, so that addresses take turns
        if not resendable and not self._full():
            return self._take_settled()
        while idle:
            connection = idle.pop(at)
            if connection.untouched():
                return connection
            connection.close()
        return None

    def _full(self) -> bool:
        return len(self._all) + self._opening >= self.settings.upstream_connections_max

    def _take_settled(self) -> UpstreamConnection | None:
        idle, now_s = self._idle, stopwatch_s()
        kept_s = self._closed_after_s * LEARNED_SHARE if now_s - self._closed_at_s < LEARNED_S else float("inf")
        at = bisect_right(idle, now_s - SETTLED_S, key=_idle_since)
        while at:
            at -= 1
            connection = idle[at]
            if now_s - connection.idle_since_s > kept_s:
                return None
            del idle[at]
            if connection.untouched():
                return connection
            connection.close()
        return None

    async def connect(self) -> UpstreamConnection:
        """Return a new connection or, if there may be no more, the next one that is given back.

        Raises:
            OSError: the upstream cannot be reached.
            TimeoutError: it does not answer.
            CrowdedError: none was given back in time.
        """
        waiting = False
        try:
            async with asyncio.timeout(self.settings.connect_timeout_ms / 1000):
                if not self._full():
                    self._opening += 1
                else:
                    waiting = True
                    connection = await self._turn()
                    waiting = False
                    if connection is not None:
                        return connection
                return await self._open()
        except TimeoutError:
            if waiting:
                raise CrowdedError from None
            raise

    async def _turn(self) -> UpstreamConnection | None:
        """Wait in line for a connection; None if one may be opened, which counts as opening already."""
        turn: asyncio.Future[UpstreamConnection | None] = self._loop.create_future()
        self._line.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):
                    self._line.remove(turn)  # near its head: the first to come is the first to give up
            elif (connection := turn.result()) is not None:  # it has come, but too late
                self.keep(connection)
            else:
                self._opening -= 1
                self._let_open()
            raise

    def _next_in_line(self) -> asyncio.Future[UpstreamConnection | None] | None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():  # by giving up
                return turn
        return None

    def _let_open(self) -> None:
        """Let the first request in line open one more connection."""
        turn = self._next_in_line()
        if turn is not None:
            self._opening += 1
            turn.set_result(None)

    async def _open(self) -> UpstreamConnection:
        """Return a new connection, which was counted as opening."""
        target, loop = self.target, self._loop
        made = False
        try:
            if target.path:
                _, connection = await loop.create_unix_connection(
                    lambda: UpstreamConnection(self), target.path, ssl=self.tls
                )
            elif self._dialer is None:
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self), target.host, target.port, ssl=self.tls
                )
            else:
                name = None if self.tls is None else target.host
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self),
                    sock=await self._dialer.dial(),
                    ssl=self.tls,
                    server_hostname=name,
                )
            if connection.closed:
                msg = "closed at once"
                raise ConnectionResetError(msg)
            self.add(connection)
            made = True
        finally:
            self._opening -= 1
            if not made:
                self._let_open()
        return connection

    def add(self, connection: UpstreamConnection) -> None:
        """Count *connection* among those that are open."""
        self._all.add(connection)

    def keep(self, connection: UpstreamConnection) -> None:
        """Take back a connection whose response is complete."""
        now_s = stopwatch_s()
        if now_s - connection.born_s > self.settings.upstream_age_ms / 1000:
            connection.close()
            return
        turn = self._next_in_line() if self._line else None
        if turn is not None:
            turn.set_result(connection)
            return
        connection.idle_since_s = now_s
        self._idle.append(connection)
        if not self._swept:
            self._swept = True
            self._sweep.add(self)

    def forget(self, connection: UpstreamConnection, *, by_upstream: bool = False) -> None:
        """Take note that the connection is closed; *by_upstream*: not by us."""
        try:
            self._idle.remove(connection)
        except ValueError:
            pass
        else:
            if by_upstream:
                self._learn(stopwatch_s(), connection.idle_since_s)
        if connection in self._all:
            self._all.discard(connection)
            self._let_open()

    def _learn(self, now_s: float, idle_since_s: float) -> None:
        """Take note of how long the upstream keeps idle connections."""
        after_s = now_s - idle_since_s
        if after_s < SETTLED_S:
            return
        if now_s - self._closed_at_s >= LEARNED_S:
            self._closed_after_s = float("inf")
        self._closed_after_s = min(self._closed_after_s, after_s)
        self._closed_at_s = now_s

    def tick(self, now_s: float, passed_s: float) -> None:  # noqa: ARG002  # as Sweep calls it
        """Close what has been idle for too long: the upstream would, at a moment of its own choosing."""
        oldest_s = now_s - self.settings.upstream_idle_ms / 1000
        eldest_s = now_s - self.settings.upstream_age_ms / 1000
        for connection in [one for one in self._idle if one.idle_since_s < oldest_s or one.born_s < eldest_s]:
            connection.close()
        if not self._idle:
            self._swept = False
            self._sweep.discard(self)

    def close(self) -> None:
        """Close every connection."""
        self._idle.clear()
        for connection in list(self._all):
            connection.close()


def _idle_since(connection: UpstreamConnection) -> float:
    return connection.idle_since_s


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
