"""What is read of a body before the application, and what the application then gets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.asgi.body import peek
from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.config import loader
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.asgi_client import http_scope, send_request

if TYPE_CHECKING:
    from pathlib import Path

DEEP = b'{"depth": "deep"}'


def incoming(*chunks: bytes, then: str | None = None) -> list[dict[str, Any]]:
    """The messages of a body; with *then*, one that breaks it off."""
    more = [True] * (len(chunks) - 1) + [then is not None]
    messages = [{"type": "http.request", "body": c, "more_body": m} for c, m in zip(chunks, more, strict=True)]
    return [*messages, {"type": then}] if then else messages


def receiving(messages: list[dict[str, Any]]) -> Any:
    queue = list(messages)

    async def receive() -> dict[str, Any]:
        return queue.pop(0) if queue else {"type": "http.disconnect"}

    receive.queue = queue  # type: ignore[attr-defined]
    return receive


async def drained(receive: Any) -> tuple[bytes, str]:
    """What an application reads, and how it ended."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body, message["type"]
        body += message["body"]
        if not message["more_body"]:
            return body, "complete"


@given(chunks=st.lists(st.binary(max_size=9), min_size=1, max_size=8), wanted=st.integers(1, 40), broken=st.booleans())
async def test_the_application_gets_every_byte(chunks: list[bytes], wanted: int, broken: bool) -> None:
    """Once, in order, with the end that it had; and no message is taken that was not needed."""
    receive = receiving(incoming(*chunks, then="http.disconnect" if broken else None))
    body, again = await peek(receive, wanted)
    whole = b"".join(chunks)

    assert body == whole[: len(body)]
    assert len(body) >= min(wanted, len(whole))
    assert len(body) < wanted + max(map(len, chunks))
    assert (whole, "http.disconnect" if broken else "complete") == await drained(again)
    assert "http.disconnect" == (await again())["type"]


async def test_the_application_waits_for_the_disconnect_as_ever() -> None:
    """After the body it is the server that answers, when there is something to say."""
    asked = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if asked.is_set():
            await asyncio.Event().wait()
        asked.set()
        return {"type": "http.request"}

    _, again = await peek(receive, 10)

    assert {"type": "http.request", "body": b"", "more_body": False} == await again()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(again(), 0.01)


# --- Through the middleware ------------------------------------------------------------------------------------------


@pytest.fixture
def policy(tmp_path: Path) -> Any:
    """One deep lookup a minute, other requests unlimited."""
    path = tmp_path / "policy.yaml"
    path.write_text(
        "json_bytes_max: 1024\n"
        "rules: [{name: deep, limit: 1/minute, match: {methods: [POST], path: /lookup, json: {depth: deep}}}]\n"
    )
    return loader.load(path)


class App:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            self.got.append((b"", (await receive())["type"]))
            await send({"type": "websocket.accept"})
            return
        self.got.append(await drained(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


async def test_deep_requests_are_limited_and_others_are_not(policy: Any) -> None:
    """However the body was cut into chunks, and the application gets it whole."""
    app = App()
    limited = RateLimitMiddleware(app, config=policy, store=MemoryStore(clock=FakeClock()))
    bodies = ([DEEP], [DEEP[:3], b"", DEEP[3:]], [b"{}"], [b""], [b"no JSON"])
    statuses = [(await send_request(limited, http_scope("POST", "/lookup"), incoming(*body))).status for body in bodies]

    assert [200, 429, 200, 200, 429] == statuses
    assert [(DEEP, "complete"), (b"{}", "complete"), (b"", "complete")] == app.got


async def test_what_is_too_long_is_neither_held_nor_spared(policy: Any) -> None:
    """Of a long body no more is read than shows that it is; it counts, and the application gets all of it."""
    app = App()
    limited = RateLimitMiddleware(app, config=policy, store=MemoryStore(clock=FakeClock()))
    chunks = [b"x" * 512] * 100
    first = await send_request(limited, http_scope("POST", "/lookup"), incoming(*chunks))
    receive = receiving(incoming(*chunks))
    await limited(http_scope("POST", "/lookup"), receive, _deaf)

    assert 200 == first.status
    assert [(b"x" * 51_200, "complete")] == app.got
    assert 97 == len(receive.queue)


async def test_a_declared_length_is_enough(policy: Any) -> None:
    """What says that it is too long is not read at all."""
    receive = receiving(incoming(b"{}"))
    limited = RateLimitMiddleware(App(), config=policy, store=MemoryStore(clock=FakeClock()))
    await send_request(limited, http_scope("POST", "/lookup"), incoming(DEEP))
    await limited(http_scope("POST", "/lookup", {"Content-Length": "5000"}), receive, _deaf)

    assert 1 == len(receive.queue)


async def test_who_leaves_in_the_middle_is_charged(policy: Any) -> None:
    """Half a body may be the half of anything; the application hears of the disconnect as ever."""
    app = App()
    limited = RateLimitMiddleware(app, config=policy, store=MemoryStore(clock=FakeClock()))
    await send_request(limited, http_scope("POST", "/lookup"), incoming(DEEP[:5], then="http.disconnect"))

    assert [(DEEP[:5], "http.disconnect")] == app.got
    assert 429 == (await send_request(limited, http_scope("POST", "/lookup"), incoming(DEEP))).status


async def test_a_limiter_further_in_looks_as_well(policy: Any) -> None:
    """Each reads for itself, and the application gets the body once."""
    app = App()
    store = MemoryStore(clock=FakeClock())
    inner = RateLimitMiddleware(app, config=policy, store=store)
    outer = RateLimitMiddleware(inner, config=policy, store=store)
    statuses = [
        (await send_request(outer, http_scope("POST", "/lookup"), incoming(DEEP[:4], DEEP[4:]))).status
        for _ in range(2)
    ]

    assert [200, 429] == statuses
    assert [(DEEP, "complete")] == app.got


async def test_a_websocket_has_no_body(policy: Any, tmp_path: Path) -> None:
    """Its first message is the application's, untouched."""
    file = tmp_path / "all.yaml"
    file.write_text("rules: [{limit: 1/minute, match: {json: {depth: deep}}}]\n")
    app = App()
    limited = RateLimitMiddleware(app, config=file, store=MemoryStore(clock=FakeClock()))
    for _ in range(2):
        await limited(
            {**http_scope("GET", "/"), "type": "websocket"}, receiving([{"type": "websocket.connect"}]), _deaf
        )

    assert [(b"", "websocket.connect")] * 2 == app.got


async def _deaf(message: Any) -> None: ...
