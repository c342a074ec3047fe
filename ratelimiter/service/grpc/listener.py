"""Listening sockets of a gRPC server, and the connections that came in by them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ratelimiter.service.grpc.connection import Connection

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Sequence

    from ratelimiter.service.grpc.stream import Application

BACKLOG = 1024
TICK_S = 1.0
POLL_S = 0.02  # to see that the last connection has ended
ALPN = ["h2"]  # RFC 9113 section 3.2


class Listener:
    """Accepts connections and drains them.

    Args:
        application: answers their requests.
        loop: that all of it runs on.
        tls: of the sockets; None for plain TCP.
    """

    def __init__(
        self, application: Application, loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None = None
    ) -> None:
        self._application = application
        self._loop = loop
        self._tls = tls
        if tls is not None:
            tls.set_alpn_protocols(ALPN)
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._ticking: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections from *sockets*, which are bound."""
        for sock in sockets:
            server = await self._loop.create_server(self._connected, sock=sock, ssl=self._tls, backlog=BACKLOG)
            self._servers.append(server)
        self._tick()

    def _connected(self) -> Connection:
        return Connection(self._application, self._loop, self._connections)

    def _tick(self) -> None:
        now_s = self._loop.time()
        for connection in list(self._connections):
            connection.tick(now_s)
        self._ticking = self._loop.call_later(TICK_S, self._tick)

    async def drain(self, timeout_s: float, at_once: asyncio.Event | None = None) -> None:
        """Accept nothing more, let clients finish what they began, and close what is open after *timeout_s*, or when
        *at_once* is set.
        """
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.drain()
        end_s = self._loop.time() + timeout_s
        at_once = at_once or asyncio.Event()
        while self._connections and not at_once.is_set() and self._loop.time() < end_s:  # noqa: ASYNC110  # no event for each connection that ends
            await asyncio.sleep(POLL_S)
        for connection in list(self._connections):
            connection.abort()
        if self._ticking is not None:
            self._ticking.cancel()
