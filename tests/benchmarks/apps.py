"""The applications that the benchmarks serve: one small JSON answer, bare and behind a limiter."""

from __future__ import annotations

import signal
from itertools import cycle
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from ratelimiter import RateLimitMiddleware
from ratelimiter.engine.fan_out import FanOut
from ratelimiter.metrics.heavy_hitters import Top
from ratelimiter.metrics.limiter_metrics import Metrics

if TYPE_CHECKING:
    from starlette.requests import Request

PLENTY = "1000000000/minute"


async def _hello(_: Request) -> JSONResponse:
    return JSONResponse({"hello": "world"})


def _starlette() -> Starlette:
    return Starlette(routes=[Route("/", _hello)])


def _fastapi() -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def hello(greeting: str = "hello") -> dict[str, str]:
        return {greeting: "world"}

    return app


class ThreeHeaders:
    """What any limiter must cost: three headers on every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        def send_with_headers(message: Any) -> Any:
            if message["type"] == "http.response.start":
                headers = [
                    (b"x-ratelimit-limit", b"1000000000"),
                    (b"x-ratelimit-remaining", b"999999999"),
                    (b"x-ratelimit-reset", b"1800000000"),
                ]
                message = {**message, "headers": [*message["headers"], *headers]}
            return send(message)

        await self.app(scope, receive, send_with_headers)


class Switched:
    """An application whose observer changes at each SIGUSR1: what differs then is the observer and nothing else, not
    even where things are in memory.
    """

    def __init__(self, app: Any) -> None:
        self._limited = RateLimitMiddleware(app, limit=PLENTY, principal="header:X-API-Key")
        policy = self._limited.limiter.policy
        self.observers: dict[str, Any] = {
            "limited": None,
            "with metrics": Metrics(CollectorRegistry(), policy),
            "with metrics and top": FanOut(Metrics(CollectorRegistry(), policy), Top()),
        }
        self._names = cycle(self.observers)
        self.switch()

    def switch(self, *_: object) -> None:
        """To the next one."""
        self._limited.limiter._observer = self.observers[next(self._names)]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._limited(scope, receive, send)


def _behind(app: Any, middleware: Any = RateLimitMiddleware, **settings: Any) -> Any:
    app.add_middleware(middleware, **settings)
    return app


starlette_bare = _starlette()
starlette_three_headers = _behind(_starlette(), ThreeHeaders)
starlette_limited = _behind(_starlette(), limit=PLENTY, principal="header:X-API-Key")
starlette_no_headers = _behind(_starlette(), limit=PLENTY, principal="header:X-API-Key", headers=[])
starlette_refusing = _behind(_starlette(), limit="1/hour", principal="header:X-API-Key")
starlette_switched = Switched(_starlette())
signal.signal(signal.SIGUSR1, starlette_switched.switch)
fastapi_bare = _fastapi()
fastapi_limited = _behind(_fastapi(), limit=PLENTY, principal="header:X-API-Key")
