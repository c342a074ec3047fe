"""The listeners of admin and operator: where they are bound, and what a client can hold of them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
DRAIN_S = 1  # for answers under way when the listener closes
CONNECTIONS_MAX = 64  # of one listener; a new one beyond them takes the place of the oldest
FIRST_REQUEST_S = 10.0  # from the connection to the end of its first request's head
LIFE_S = 300.0  # of a connection, whatever it does


def hosts_for(address: str) -> tuple[str, ...]:
    """Return the names that requests to a listener on *address*, an IP address or a name, may call it by.

    Empty if any name may be used, since the listener is not on a loopback address.
    """
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = address == "localhost"
    return tuple(dict.fromkeys((*LOOPBACK_NAMES, address))) if loopback else ()


def bind(listen: str) -> socket.socket:
    """Listen at `HOST:PORT`; port 0 is a free one.

    Raises:
        ConfigError: it is no such address, or cannot be listened at.
    """
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
        msg = f"--admin: {listen!r} is not HOST:PORT; write one like 127.0.0.1:9090"
        raise ConfigError(msg)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family)
    except OSError as fault:
        msg = f"--admin: {listen} cannot be listened at ({fault.strerror}); name an address of ours and a free port"
        raise ConfigError(msg) from None


class _BoundedProtocol(HttpToolsProtocol):
    """A connection that cannot be held for long, of a listener that holds only so many.

    Without that an idle client, or a few hundred of them, would take the descriptors that requests and health checks
    need: uvicorn itself times out a connection only between two requests.
    """

    opened: dict[_BoundedProtocol, None]  # the connections of one listener, oldest first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.opened) >= CONNECTIONS_MAX:
            next(iter(self.opened)).transport.abort()
        self.opened[self] = None
        super().connection_made(transport)
        self._asked = False
        self._timers = [
            self.loop.call_later(FIRST_REQUEST_S, self._end_unasked),
            self.loop.call_later(LIFE_S, transport.abort),
        ]

    def on_headers_complete(self) -> None:
        self._asked = True
        super().on_headers_complete()

    def _end_unasked(self) -> None:
        if not self._asked:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.opened.pop(self, None)
        for timer in self._timers:
            timer.cancel()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_admin(app: ASGIApp, listener: socket.socket) -> AsyncIterator[str]:
    """Serve *app* on the running event loop while the context lasts; gives the URL that it is served at.

    Args:
        app: of `admin_app`.
        listener: of `bind`; closed at the end.
    """
    settings = uvicorn.Config(
        app,
        http=type("BoundedProtocol", (_BoundedProtocol,), {"opened": {}}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = _Server(settings)
    host, port = listener.getsockname()[:2]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn tells in no other way
        await asyncio.sleep(0.001)
    try:
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await serving
        listener.close()
