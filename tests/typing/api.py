"""The public API as its users write it: checked by mypy, never run. A change of a public type shows here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

from fastapi import FastAPI
from starlette.applications import Starlette

from ratelimiter import Caller, ConfigError, DialectError, RateLimiterError, RateLimitMiddleware, StoreError
from ratelimiter.asgi.error_handlers import install_error_handlers
from ratelimiter.config.loader import load
from ratelimiter.core.policy import Policy
from ratelimiter.core.request import Request
from ratelimiter.engine.limiter import Judgement, Limiter
from ratelimiter.engine.observer import Observer
from ratelimiter.fastapi import RateLimits
from ratelimiter.metrics.heavy_hitters import Top
from ratelimiter.metrics.limiter_metrics import Metrics
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.rule import Hit


class Counting(Observer):
    """An observer of an application's own."""

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        assert_type(decision.allowed, bool)
        assert_type(decision.reason, str)
        assert_type(hits[0].key, bytes)


async def who(scope: Any) -> Caller | None:
    """Tell who calls, by the session."""
    user = scope["session"].get("user")
    return Caller(user, plan="pro") if user else None


def mount() -> None:
    """Mount the middleware in each way that the documentation shows."""
    app = Starlette()
    app.add_middleware(RateLimitMiddleware, limit="60/minute")
    app.add_middleware(RateLimitMiddleware, config="config/quickstart.yaml")
    app.add_middleware(
        RateLimitMiddleware,
        limit=["60/minute", "1000/hour"],
        store="redis://localhost:6379/0",
        dialect="trace",
        principal="header:X-API-Key",
        headers=["x-ratelimit", "draft-11"],
    )
    app.add_middleware(RateLimitMiddleware, config="config/quickstart.yaml", identify=who, observer=Counting())
    install_error_handlers(app, dialect="trace")


def current_user() -> str:
    """Stand for a dependency of the application."""
    return "alice"


def endpoints() -> None:
    """Limit endpoints of FastAPI."""
    limits = RateLimits(store="redis://localhost:6379/0", dialect="problem")
    app = FastAPI(lifespan=limits.lifespan)

    @app.post("/login", dependencies=[limits("5/minute")])
    async def login() -> None: ...

    @app.get("/reports", dependencies=[limits("10/minute", by=current_user)])
    async def reports() -> None: ...


async def judge() -> None:
    """Judge without ASGI."""
    clock = FakeClock()
    policy = load("config/quickstart.yaml")
    assert_type(policy, Policy)
    metrics, top = Metrics(), Top()
    limiter = Limiter(policy, MemoryStore(clock=clock), observer=metrics, clock=clock)
    judgement = await limiter.judge(Request("GET", b"/", [(b"host", b"example")], "192.0.2.1"))
    assert_type(judgement, Judgement)
    assert_type(judgement.decision.retry_after_ms, int | None)
    assert_type(metrics.exposition(), tuple[bytes, str])
    assert_type(top.report(), dict[str, Any])


def errors() -> None:
    """Catch the errors of the package."""
    try:
        load("nowhere.yaml")
    except ConfigError as error:
        assert_type(error.problems, tuple[str, ...])
    except (StoreError, RateLimiterError):
        raise
    except DialectError:
        raise
