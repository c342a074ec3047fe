"""The admin listener: health, readiness, metrics, the policy in force and the heaviest principals, apart from the data.

It only reads, and it asks no store: whoever keeps this process alive by it must not take it down with Redis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ratelimiter.admin.console.app import Console, console_routes
from ratelimiter.config.redact import disclosed, fingerprint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from starlette.requests import Request

    from ratelimiter.core.policy import Policy

    Scope = Any
    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TOP_MAX = 1000  # principals that one answer lists


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
    console: Console | None = None,
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
        console: the web console at `/`; None for none.
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
    routes: list[BaseRoute] = [Route(path, page, methods=["GET"]) for path, page in pages.items()]
    if console is not None:
        routes += console_routes(console, policy=policy, state=state, top=top)
    inner = Starlette(routes=routes)
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
