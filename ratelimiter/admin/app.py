"""The admin listener: health, readiness, metrics, the policy in force and the heaviest principals, apart from the data.

It only reads, and it asks no store: a liveness probe must not restart this process because Redis is out.
"""

from __future__ import annotations

import asyncio
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
    """The state of the process around the listener."""

    unready: Sequence[str] = ()  # reasons to send no traffic here, like "draining"; empty: ready
    store: str = "ok"  # "degraded": decisions are made without it; "unknown": it was not asked yet


def admin_app(
    *,
    exposition: Callable[[str], tuple[bytes, str]],
    policy: Callable[[], Policy | None],
    state: Callable[[], State],
    top: Callable[[int], Mapping[str, Any]] | None = None,
    ready_requires_store: bool = False,
    hosts: Sequence[str] = (),
    console: Console | None = None,
    history: Callable[[], Sequence[Mapping[str, object]]] | None = None,
) -> ASGIApp:
    """Return the admin listener as an ASGI application.

    Args:
        exposition: takes the Accept header of a scrape, and returns body and Content-Type; called in a thread.
        policy: returns the policy in force; None before it is loaded.
        state: returns readiness and the state of the store; must not wait.
        top: returns the heaviest principals, at most so many of each kind; None turns `/top` off.
        ready_requires_store: not ready while the store is out. That takes all replicas out of service at once, so it
            is for APIs that must rather be down than unlimited.
        hosts: host names that a request may use, without port; all if empty. On a loopback address these are the
            names of the listener, so that no web page can reach it through a name of its own (DNS rebinding).
        console: the web console at `/`; None for none.
        history: returns hash, time and changes of the last policies, the latest first; None to leave them out.
    """
    scraping = asyncio.Lock()

    async def metrics(request: Request) -> Response:
        # In a thread, one at a time: with many rules an exposition takes tens of milliseconds. The event loop, which
        # may be that of the data, gets its turn after 5 ms of them at most (sys.getswitchinterval).
        async with scraping:
            body, content_type = await asyncio.to_thread(exposition, request.headers.get("accept", ""))
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
        past = {} if history is None else {"history": list(history())}
        return JSONResponse({"hash": fingerprint(now), "policy": disclosed(now)} | past)

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
    """Passes on the requests whose Host is one of our names; a web page can have a browser send any other.

    Args:
        app: answers these requests.
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
    """Return the host of a Host header, without port and brackets; empty if the header has none."""
    try:
        return "" if b"@" in value else urlsplit(f"//{value.decode('ascii')}").hostname or ""
    except ValueError:
        return ""
