"""The routes of the console, and the headers that keep a browser from doing anything else with its page."""

from __future__ import annotations

import asyncio
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from ratelimiter.admin.console.page import page, sections
from ratelimiter.clock import Clock, unix_ms
from ratelimiter.config.loader import load_file
from ratelimiter.config.redact import fingerprint
from ratelimiter.core.request import Request as JudgedRequest
from ratelimiter.engine.explain import explain
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from os import PathLike

    from ratelimiter.admin.app import State
    from ratelimiter.admin.console.recorder import ConsoleRecorder
    from ratelimiter.admin.operator_tokens import Tokens
    from ratelimiter.core.policy import Policy

    ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

BODY_MAX = 16_384
# The page runs only its own script, connects only to this listener, and stands in no frame.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_FILES = {"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8"}


class Console(NamedTuple):
    """The sources of the console, beside those of the admin listener."""

    recorder: ConsoleRecorder
    file: str | PathLike[str] | None = None  # of the policy, to say the lines of its rules
    operator: ASGIApp | None = None  # of `operator_app`; None: no orders from the page
    tokens: Tokens | None = None  # of the operators
    clock: Clock = unix_ms


def console_routes(
    console: Console,
    *,
    policy: Callable[[], Policy | None],
    state: Callable[[], State],
    top: Callable[[int], Mapping[str, Any]] | None,
) -> list[Route | Mount]:
    """Return the routes of the console for the admin listener."""
    operated = console.operator is not None
    places = _Places(console.file)

    async def live() -> str:
        now = policy()
        found = {} if now is None else await asyncio.to_thread(places.of, now)
        return sections(
            console.recorder,
            policy=now,
            state=state(),
            top=None if top is None else top(100),
            places=found,
            now_ms=console.clock(),
            operated=operated,
        )

    async def whole(_: Request) -> Response:
        return Response(page(await live(), operated=operated), headers=HEADERS, media_type="text/html")

    async def fragment(_: Request) -> Response:
        return Response(await live(), headers=HEADERS, media_type="text/html")

    def of_file(name: str) -> Callable[[Request], Awaitable[Response]]:
        body = resources.files("ratelimiter.admin.console").joinpath(name).read_bytes()

        async def respond(_: Request) -> Response:
            return Response(body, headers={**HEADERS, "content-type": _FILES[name]})

        return respond

    async def explained(request: Request) -> Response:
        """Answer with what `ratelimiter explain` says; for operators only, as it tells whose digest is whose."""
        if not same_origin(request) or console.tokens is None:
            return JSONResponse({"problems": ["asked from another page"]}, 403, HEADERS)
        await asyncio.to_thread(console.tokens.refresh)
        credentials = request.headers.getlist("authorization")
        if len(credentials) > 1:
            return JSONResponse({"problems": ["Authorization: is given more than once; send one"]}, 400, HEADERS)
        scheme, _, given = "".join(credentials).partition(" ")
        if scheme.lower() != "bearer" or not console.tokens.name(given.strip()):
            return JSONResponse({"problems": ["a token of an operator is needed"]}, 401, HEADERS)
        now = policy()
        try:
            asked = _asked(await request.body())
        except ValueError as fault:
            return JSONResponse({"problems": [str(fault)]}, 400, HEADERS)
        if now is None:
            return JSONResponse({"problems": ["no policy is loaded"]}, 503, HEADERS)
        return JSONResponse({"lines": explain(now, asked, console.clock())}, headers=HEADERS)

    routes: list[Route | Mount] = [
        Route("/", whole, methods=["GET"]),
        Route("/console/live", fragment, methods=["GET"]),
        *(Route(f"/console/{name}", of_file(name), methods=["GET"]) for name in _FILES),
    ]
    if console.operator is not None:
        routes.append(Route("/console/explain", explained, methods=["POST"]))
        routes.append(Mount("/operator", app=SameOrigin(console.operator)))
    return routes


def same_origin(request: Request) -> bool:
    """Return True unless another page has made a browser send *request*."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    site = request.headers.get("sec-fetch-site", "same-origin")
    return site in ("same-origin", "none") and (origin is None or origin.partition("://")[2] == host)


class SameOrigin:
    """Answers only requests that no other page has had a browser send. Orders need a token in a header besides, which a
    browser never adds by itself.

    Args:
        app: answers them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection scope."""
        if scope["type"] == "http" and not same_origin(Request(scope)):
            await JSONResponse({"problems": ["asked from another page"]}, 403, HEADERS)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class _Places:
    """The line of the policy file that each rule came from; read again when another policy is in force."""

    def __init__(self, file: str | PathLike[str] | None) -> None:
        self._file = file
        self._known = ""
        self._places: dict[str, str] = {}

    def of(self, policy: Policy) -> dict[str, str]:
        """Return the places by rule. Waits for the disk when the policy has changed."""
        if self._file is None:
            return {}
        known = fingerprint(policy)
        if known != self._known:
            self._known, self._places = known, self._read(policy)
        return self._places

    def _read(self, policy: Policy) -> dict[str, str]:
        try:
            found = load_file(self._file or "")
        except ConfigError:  # it has changed since, and is not in force
            return {}
        document = found.document
        if document is None or [rule.name for rule in found.policy.rules] != [rule.name for rule in policy.rules]:
            return {}
        stated = document.value.get("rules") if isinstance(document.value, dict) else None
        if not isinstance(stated, list) or len(stated) != len(policy.rules):
            return {}
        name = Path(self._file or "").name
        return {rule.name: f"{name}:{document.mark(('rules', at))[0]}" for at, rule in enumerate(policy.rules)}


def _asked(body: bytes) -> JudgedRequest:
    """Return the request that the form describes.

    Raises:
        ValueError: it describes none.
    """
    if len(body) > BODY_MAX:
        msg = f"the body is longer than {BODY_MAX} bytes; write less"
        raise ValueError(msg)
    try:
        told = json.loads(body)
        method, url, peer, lines = (str(told[name]).strip() for name in ("method", "url", "peer", "headers"))
    except (ValueError, KeyError, TypeError, RecursionError):
        msg = "the body is not an object with method, url, peer and headers"
        raise ValueError(msg) from None
    target = url.partition("://")[2].partition("/") if "://" in url.partition("?")[0] else None
    path = url if target is None else f"/{target[2]}"
    headers = []
    for line in filter(None, lines.splitlines()):
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            msg = "headers: a line is not 'Name: value'"
            raise ValueError(msg)
        headers.append((name.strip().lower().encode(), value.strip().encode()))
    return JudgedRequest(method, path.encode("utf-8", "surrogateescape"), tuple(headers), peer or None, body=b"")
