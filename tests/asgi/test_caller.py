"""`identify=` of the middleware: the application says who calls."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter import RateLimitMiddleware
from ratelimiter.asgi.request_state import SCOPE_KEY
from ratelimiter.core.caller import Caller
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.asgi_client import http_scope, send_request

if TYPE_CHECKING:
    from pathlib import Path

SESSIONS = {"s1": "ann", "s2": "bob"}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def session(scope: Any) -> str | None:
    return SESSIONS.get(dict(scope["headers"]).get(b"x-session", b"").decode())


async def session_async(scope: Any) -> str | None:
    return session(scope)


async def statuses(limited: Any, *sessions: str, **more: Any) -> list[int]:
    scopes = [http_scope(headers={"X-Session": each}, **more) for each in sessions]
    return [(await send_request(limited, scope)).status for scope in scopes]


@pytest.mark.parametrize("identify", [session, session_async])
async def test_each_caller_has_a_budget(identify: Any) -> None:
    """From any address; a caller that is not known is charged by its address."""
    limited = RateLimitMiddleware(app, limit="2/minute", store=MemoryStore(clock=FakeClock()), identify=identify)
    first = await statuses(limited, "s1", "s1", "s2", "?", "?", "?")
    elsewhere = await statuses(limited, "s1", "s2", client=("192.0.2.9", 1))

    assert [200, 200, 200, 200, 200, 429] == first
    assert [429, 200] == elsewhere


async def test_plan_and_scopes_come_from_the_database(tmp_path: Path) -> None:
    """Tiers as the application keeps them."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        "principal: [identified, client]\nplan: {default: free}\nrules: [{limit: {free: 1/minute, pro: 3/minute}}]\n"
    )
    database = sqlite3.connect(":memory:")
    database.execute("create table users (session text, name text, plan text, scopes text)")
    rows = [("s1", "ann", "pro", "read"), ("s2", "bob", "free", "")]
    database.executemany("insert into users values (?, ?, ?, ?)", rows)
    seen: list[Any] = []

    async def telling(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope[SCOPE_KEY].identity)
        await app(scope, receive, send)

    def who(scope: Any) -> Caller | None:
        token = dict(scope["headers"]).get(b"x-session", b"").decode()
        row = database.execute("select name, plan, scopes from users where session = ?", (token,)).fetchone()
        return row and Caller(row[0], row[1], frozenset(row[2].split()))

    store = MemoryStore(clock=FakeClock())
    limited = RateLimitMiddleware(telling, config=file, store=store, identify=who, reload=False)

    assert [200, 200, 200, 429] == await statuses(limited, *["s1"] * 4)
    assert [200, 429] == await statuses(limited, "s2", "s2")
    assert {("ann", "pro"), ("bob", "free")} == {(each.principal, each.plan) for each in seen}


async def test_it_is_asked_once_a_request() -> None:
    """However many limiters stand in the stack."""
    asked: list[str] = []

    def who(scope: Any) -> str:
        asked.append(scope["path"])
        return "ann"

    inner = RateLimitMiddleware(app, limit="5/minute", name="inner", store=MemoryStore(), identify=who)
    limited = RateLimitMiddleware(inner, limit="5/minute", store=MemoryStore(), identify=who)
    await statuses(limited, "s1")

    assert ["/"] == asked


@pytest.mark.parametrize("broken", [KeyError("session"), RuntimeError("the database is out")])
async def test_its_failure_is_an_error_and_no_way_in(broken: Exception) -> None:
    """The application is not called, and nothing is charged to somebody else."""

    def who(scope: Any) -> str:
        raise broken

    limited = RateLimitMiddleware(app, limit="5/minute", store=MemoryStore(), identify=who)
    answer = await send_request(limited, http_scope())

    assert answer.error is broken
    assert [] == answer.messages


@pytest.mark.parametrize(("given", "error"), [(b"ann", TypeError), ("", ValueError), ("x" * 1_000_000, ValueError)])
async def test_what_is_no_caller_is_an_error_too(given: Any, error: type[Exception]) -> None:
    """It is never charged as something else."""
    limited = RateLimitMiddleware(app, limit="5/minute", store=MemoryStore(), identify=lambda scope: given)
    answer = await send_request(limited, http_scope())

    assert isinstance(answer.error, error)
