"""The admin listener: health, readiness, metrics, the policy in force and the heaviest principals, apart from the data.

It only reads, and it asks no store: whoever keeps this process alive by it must not take it down with Redis.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ratelimiter.config.redact import disclosed, fingerprint
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from starlette.requests import Request

    from ratelimiter.core.policy import Policy

    Scope = Any
    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TOP_MAX = 1000  # principals that one answer lists
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
DRAIN_S = 1  # for answers under way when the listener closes


class State(NamedTuple):
    """What the process around the listener says of itself at one moment."""

    unready: Sequence[str] = ()  # why no traffic should come here: "draining", "no listener"; none: ready
    store: str = "ok"  # or "degraded": decisions are made without it


def admin_app(
    *,
    exposition: Callable[[str], tuple[bytes, str]],
    policy: Callable[[], Policy | None],
    state: Callable[[], State],
    top: Callable[[int], Mapping[str, Any]] | None = None,
    ready_requires_store: bool = False,
    hosts: Sequence[str] = (),
) -> ASGIApp:
    """The admin listener as an ASGI application.

    Args:
        exposition: answers a scrape: from its Accept header to body and Content-Type.
        policy: the one in force; None before it is loaded.
        state: readiness and the store, as they are now; must not wait.
        top: the heaviest principals, at most so many of each kind; None: `/top` is not there.
        ready_requires_store: not ready while the store is out. Takes all replicas out of service at once, so it is off
            unless being limited by nobody is worse than being down.
        hosts: what a request may call us, without port; anything when empty. On a loopback address it must be one of
            our own names, so that no web page can have a browser ask us under another name (DNS rebinding).
    """

    async def metrics(request: Request) -> Response:
        body, content_type = exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        now = state()
        unready = [*now.unready]
        if policy() is None:
            unready.append("no policy")
        if ready_requires_store and now.store != "ok":
            unready.append("no store")
        told = {"ready": not unready, "unready": unready, "store": now.store}
        return JSONResponse(told, 503 if unready else 200)

    async def effective(_: Request) -> Response:
        now = policy()
        if now is None:
            return JSONResponse({"error": "no policy is loaded"}, 503)
        return JSONResponse({"hash": fingerprint(now), "policy": disclosed(now)})

    async def heaviest(request: Request) -> Response:
        number = request.query_params.get("n", "20")
        if top is None or not (number.isascii() and number.isdigit() and int(number[:9]) <= TOP_MAX):
            told = f"n is not a number from 0 to {TOP_MAX}" if top is not None else "principals are not counted"
            return JSONResponse({"error": told}, 400 if top is not None else 404)
        return JSONResponse(top(int(number)))

    pages = {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz, "/policy": effective, "/top": heaviest}
    inner = Starlette(routes=[Route(path, page, methods=["GET"]) for path, page in pages.items()])
    return OwnNames(inner, hosts) if hosts else inner


class OwnNames:
    """Answers only requests for a host of one of our names, as web pages can have a browser ask for any other.

    Args:
        app: answers them.
        hosts: our names, without port.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "http":
            named = [value for name, value in scope["headers"] if name == b"host"]
            if len(named) != 1 or _host(named[0]) not in self._hosts:
                # RFC 9110 section 15.5.20: not a host that we speak for.
                await Response("not a name of this listener\n", 421)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _host(value: bytes) -> str:
    """The host of a Host header, without port and brackets; empty if it is none."""
    try:
        return "" if b"@" in value else urlsplit(f"//{value.decode('ascii')}").hostname or ""
    except ValueError:
        return ""


def hosts_for(address: str) -> tuple[str, ...]:
    """What requests to a listener on *address*, an IP address or a name, may call it; empty for anything."""
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
