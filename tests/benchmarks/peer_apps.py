"""The applications of `tests.benchmarks.redis_apps`: one small JSON answer behind each limiter, mounted as its own
documentation says.

Every function is a factory for uvicorn. `BENCHMARK_REDIS` is the server's URL and `BENCHMARK_LIMIT` the policy, per API
key. A peer is imported where it is used: one that cannot be, fails alone.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import redis.asyncio
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest  # at run time, too: FastAPI reads the annotations of its endpoints
from starlette.applications import Starlette
from starlette.requests import Request  # noqa: TC002  # as above: a decorator of slowapi does
from starlette.responses import JSONResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Charge = Callable[[bytes], Awaitable[bool]]

REDIS = os.environ.get("BENCHMARK_REDIS", "")
AMOUNT, _, UNIT = os.environ.get("BENCHMARK_LIMIT", "1000000000/minute").partition("/")
LIMIT = f"{AMOUNT}/{UNIT}"
WINDOW_S = {"minute": 60, "hour": 3600}[UNIT]
CONNECTIONS_MAX = 64  # of the pools that are ours to make


def api_key(request: FastAPIRequest) -> str:
    return request.headers["X-API-Key"]


async def hello(_: Request) -> JSONResponse:
    return JSONResponse({"hello": "world"})


async def fastapi_hello() -> dict[str, str]:
    return {"hello": "world"}


def _app(framework: str, **settings: Any) -> Any:
    if framework == "starlette":
        return Starlette(routes=[Route("/", hello)], **settings)
    app = FastAPI(**settings)
    app.get("/")(fastapi_hello)
    return app


def _pool() -> redis.asyncio.ConnectionPool:
    return redis.asyncio.BlockingConnectionPool.from_url(REDIS, max_connections=CONNECTIONS_MAX, protocol=2)


class Mounted:
    """The least that a limiter needs around it: who is charged, and what a refusal looks like.

    Args:
        app: the application.
        charge: whether the principal is admitted.
        headers: on every response.
    """

    def __init__(self, app: Any, charge: Charge, headers: Callable[[], list[tuple[bytes, bytes]]]) -> None:
        self.app = app
        self.charge = charge
        self.headers = headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        principal = next(value for name, value in scope["headers"] if name == b"x-api-key")
        if not await self.charge(principal):
            await JSONResponse({"error": "rate limited"}, 429)(scope, receive, send)
            return

        def send_with_headers(message: Any) -> Any:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.headers()]}
            return send(message)

        await self.app(scope, receive, send_with_headers)


def _headers() -> list[tuple[bytes, bytes]]:
    return [
        (b"x-ratelimit-limit", AMOUNT.encode()),
        (b"x-ratelimit-remaining", b"999999999"),
        (b"x-ratelimit-reset", b"1800000000"),
    ]


# --- Contestants: each takes the name of the framework


def bare(framework: str) -> Any:
    return _app(framework)


def three_headers(framework: str) -> Any:
    async def charge(_: bytes) -> bool:
        return True

    return Mounted(_app(framework), charge, _headers)


def ours(framework: str, store: str) -> Any:
    from ratelimiter import RateLimitMiddleware

    app = _app(framework)
    app.add_middleware(RateLimitMiddleware, limit=LIMIT, principal="header:X-API-Key", store=store)
    return app


def ours_on_redis(framework: str) -> Any:
    return ours(framework, REDIS)


def ours_in_memory(framework: str) -> Any:
    return ours(framework, "memory://")


def one_evalsha(framework: str) -> Any:
    """Our script, one redis-py call each: the floor of what asks Redis for every request."""
    from ratelimiter.core.quota import Quota
    from ratelimiter.core.rule import Hit, Rule
    from ratelimiter.stores.redis import script

    client = redis.asyncio.Redis(connection_pool=_pool())
    rule = Rule("any", Quota(int(AMOUNT), WINDOW_S * 1000))
    sha = script.SHA.decode()

    async def charge(principal: bytes) -> bool:
        hits = (Hit(b"plain:" + principal, rule.quota, 1, rule),)
        keys, argv = script.arguments([hits], b"nonce")
        try:
            reply = await client.evalsha(sha, len(keys), *keys, *argv)
        except redis.exceptions.NoScriptError:
            reply = await client.eval(script.TEXT.decode(), len(keys), *keys, *argv)
        (receipt,) = script.receipts([hits], b"nonce", reply)
        return bool(receipt.admitted)  # type: ignore[union-attr]

    return Mounted(_app(framework), charge, _headers)


def limits_hit(framework: str) -> Any:
    """Its asynchronous sliding window; a hit alone, so that the headers' numbers are made up."""
    import limits
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import SlidingWindowCounterRateLimiter

    pool: Any = _pool()
    storage = RedisStorage(f"async+{REDIS}", implementation="redispy", connection_pool=pool)
    limiter = SlidingWindowCounterRateLimiter(storage)
    item = limits.parse(LIMIT)
    return Mounted(_app(framework), lambda principal: limiter.hit(item, principal.decode()), _headers)


def slowapi(framework: str) -> Any:
    """Its middleware with a default limit and its headers."""
    from slowapi import Limiter, _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded
    from slowapi.middleware import SlowAPIMiddleware

    app = _app(framework)
    app.state.limiter = Limiter(api_key, default_limits=[LIMIT], storage_uri=REDIS, headers_enabled=True)
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    app.add_middleware(SlowAPIMiddleware)
    return app


def slowapi_decorated(framework: str) -> Any:
    """Its decorator, without headers: the first example of its documentation."""
    from slowapi import Limiter, _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded

    limiter = Limiter(api_key, storage_uri=REDIS)
    if framework == "starlette":

        @limiter.limit(LIMIT)
        async def starlette_endpoint(request: Request) -> JSONResponse:
            return JSONResponse({"hello": "world"})

        app: Any = Starlette(routes=[Route("/", starlette_endpoint)])
    else:
        app = FastAPI()

        @app.get("/")
        @limiter.limit(LIMIT)
        async def endpoint(request: FastAPIRequest) -> dict[str, str]:
            return {"hello": "world"}

    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    return app


def asgi_ratelimit(framework: str) -> Any:
    from ratelimit import RateLimitMiddleware, Rule
    from ratelimit.backends.redis import RedisBackend

    async def authenticate(scope: Any) -> tuple[str, str]:
        return next(value.decode() for name, value in scope["headers"] if name == b"x-api-key"), "default"

    app = _app(framework)
    amount: dict[str, Any] = {UNIT: int(AMOUNT)}
    app.add_middleware(
        RateLimitMiddleware,
        authenticate=authenticate,
        backend=RedisBackend(redis.asyncio.StrictRedis.from_url(REDIS)),
        config={r"^/": [Rule(**amount)]},
    )
    return app


def throttled(_: str) -> Any:
    """Its decorator, and its middleware for the headers; with its sliding window, as its default is a bucket."""
    from throttled.asyncio import RedisStore
    from throttled.asyncio.contrib.fastapi import (
        Limiter,
        RateLimitExceededError,
        RateLimitMiddleware,
        rate_limit_exceeded_handler,
    )

    limiter = Limiter(f"{AMOUNT}/{UNIT[0]}", store=RedisStore(server=REDIS), using="sliding_window", key_func=api_key)
    app = FastAPI()
    app.add_exception_handler(RateLimitExceededError, rate_limit_exceeded_handler)
    app.add_middleware(RateLimitMiddleware)

    @app.get("/")
    @limiter.limit()
    async def endpoint(request: FastAPIRequest) -> dict[str, str]:
        return {"hello": "world"}

    return app


def fastapi_limiter(_: str) -> Any:
    """Its dependency. One bucket for all principals: it hands pyrate-limiter their names, which one bucket ignores."""
    from fastapi import Depends
    from fastapi_limiter.depends import RateLimiter
    from pyrate_limiter import Limiter, Rate, RedisBucket

    dependencies: list[Any] = []

    async def identifier(request: Any) -> str:
        return str(request.headers["X-API-Key"])

    async def limited(request: FastAPIRequest) -> None:
        await dependencies[0](request, None)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        client = redis.asyncio.Redis.from_url(REDIS)
        bucket: Any = RedisBucket.init([Rate(int(AMOUNT), WINDOW_S * 1000)], client, "bucket")
        dependencies.append(RateLimiter(limiter=Limiter(await bucket), identifier=identifier))
        yield

    app = FastAPI(lifespan=lifespan)
    app.get("/", dependencies=[Depends(limited)])(fastapi_hello)
    return app


def fastapi_redis_sdk(_: str) -> Any:
    """Its dependency and its headers."""
    os.environ["REDIS_URL"] = REDIS
    from fastapi import Depends
    from redis_fastapi import FastAPIRedis, rate_limit

    app = FastAPI()
    FastAPIRedis(app).lifespan().rate_limiting()
    app.get("/", dependencies=[Depends(rate_limit(LIMIT, identifier=api_key))])(fastapi_hello)
    return app


CONTESTANTS: dict[str, Callable[[str], Any]] = {
    "bare": bare,
    "three headers, no limiter": three_headers,
    "ratelimiter, memory": ours_in_memory,
    "ratelimiter, Redis": ours_on_redis,
    "one redis-py EVALSHA each": one_evalsha,
    "limits, sliding hit": limits_hit,
    "asgi-ratelimit": asgi_ratelimit,
    "slowapi, decorator": slowapi_decorated,
    "slowapi, middleware": slowapi,
    "throttled-py, sliding": throttled,
    "fastapi-limiter": fastapi_limiter,
    "fastapi-redis-sdk": fastapi_redis_sdk,
}
FASTAPI_ONLY = {"throttled-py, sliding", "fastapi-limiter", "fastapi-redis-sdk"}


def app() -> Any:
    """The application that `BENCHMARK_APP` names, like `starlette: bare`."""
    framework, _, name = os.environ["BENCHMARK_APP"].partition(": ")
    return CONTESTANTS[name](framework)
