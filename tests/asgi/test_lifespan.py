"""Mistakes stop a server as it starts; what servers and frameworks leave out of scopes is no mistake."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette

from ratelimiter import ConfigError, RateLimitMiddleware
from ratelimiter.asgi.lifespan import NEEDS_ASYNCIO
from ratelimiter.stores.memory import MemoryStore
from tests.asgi_client import http_scope, send_request
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from pathlib import Path

MISTAKES = [
    ({"limit": "60/minuet"}, "60/minuet"),
    ({"limit": "1/minute", "dialect": "no-such"}, "no-such"),
    ({}, "there is neither a limit nor a policy file"),
]


async def app(scope: Any, receive: Any, send: Any) -> str:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    return "a value"


async def startup(served: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await served({"type": "lifespan", "asgi": {}, "state": {}}, receive, send)
    return sent


@pytest.mark.parametrize(("settings", "told"), MISTAKES)
async def test_a_mistake_fails_the_startup_where_middleware_is_built_late(settings: Any, told: str) -> None:
    """Starlette builds it with the first scope, where servers swallow an exception; and no request is served."""
    served = Starlette()
    served.add_middleware(RateLimitMiddleware, **settings)
    (failed,) = await startup(served)
    answer = await send_request(served, http_scope())

    assert "lifespan.startup.failed" == failed["type"]
    assert told in failed["message"]
    assert isinstance(answer.error, ConfigError)


@pytest.mark.parametrize(("settings", "told"), MISTAKES)
async def test_a_mistake_is_raised_at_once_elsewhere(settings: Any, told: str) -> None:
    """Where the application is wrapped by hand."""
    with pytest.raises(ConfigError, match=told):
        RateLimitMiddleware(app, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("lifespan", ["auto", "on"])
def test_uvicorn_does_not_start(tmp_path: Path, lifespan: str) -> None:
    """The process ends with the message, before it serves anybody."""
    (tmp_path / "broken.py").write_text(
        "from starlette.applications import Starlette\n"
        "from ratelimiter import RateLimitMiddleware\n"
        "app = Starlette()\n"
        "app.add_middleware(RateLimitMiddleware, limit='60/minuet')\n"
    )
    command = [sys.executable, "-m", "uvicorn", "broken:app", "--lifespan", lifespan, "--port", str(free_port())]
    done = subprocess.run(
        [*command, "--app-dir", str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )

    assert 0 != done.returncode
    assert "60/minuet" in done.stderr
    assert "startup complete" not in done.stderr


async def test_the_lifespan_of_the_application_is_passed_on() -> None:
    """With all that it says, when nothing is wrong."""
    served = Starlette()
    served.add_middleware(RateLimitMiddleware, limit="1/minute", store=MemoryStore())

    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == [m["type"] for m in await startup(served)]


def test_another_event_loop_is_refused_with_a_sentence() -> None:
    """Under trio the server does not start, instead of failing with every request (T2)."""
    served = RateLimitMiddleware(app, limit="1/minute", store=MemoryStore())
    running = startup(served)
    with pytest.raises(StopIteration) as ended:  # no loop of asyncio runs
        running.send(None)

    assert [{"type": "lifespan.startup.failed", "message": NEEDS_ASYNCIO}] == ended.value.value


@pytest.mark.parametrize("missing", ["headers", "client", "raw_path", "root_path", "method"])
async def test_scopes_may_leave_out_what_they_may(missing: str) -> None:
    """As servers and test clients do (T8)."""
    served = RateLimitMiddleware(app, limit="1/minute", store=MemoryStore(), dialect="intrace", headers=["draft-11"])
    scopes = [{name: value for name, value in http_scope().items() if name != missing} for _ in range(2)]
    answers = [await send_request(served, scope) for scope in scopes]

    assert [None, None] == [answer.error for answer in answers]
    assert [200, 429] == [answer.status for answer in answers]


async def test_what_the_application_returns_is_returned() -> None:
    """Some frameworks look at it."""
    served = RateLimitMiddleware(app, limit="1/minute", store=MemoryStore())

    async def send(_: Any) -> None: ...

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    assert "a value" == await served(http_scope(), receive, send)
