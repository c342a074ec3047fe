"""Goal: a client can hold little of an admin listener, and not for long. Method: real sockets, short bounds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ratelimiter.admin import listener
from ratelimiter.admin.listener import CONNECTIONS_MAX, bind, serve_admin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def ok(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with 200."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serve_admin(ok, bind("127.0.0.1:0")) as url:
        yield url


async def idle(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def ended(reader: asyncio.StreamReader) -> bool:
    """Wait until the other side has closed the connection."""
    try:
        return await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionResetError:
        return True


async def test_idle_connections_take_no_place_from_health(url: str) -> None:
    """Five times as many as there is room for: the oldest go, and a probe is answered at once."""
    held = [await idle(url) for _ in range(5 * CONNECTIONS_MAX)]
    async with httpx.AsyncClient() as client:
        assert 200 == (await client.get(f"{url}/healthz")).status_code
    assert await ended(held[0][0])
    for _, writer in held:
        writer.close()


async def test_a_connection_without_a_request_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that connects and is silent, or sends half a head, is cut off."""
    monkeypatch.setattr(listener, "FIRST_REQUEST_S", 0.01)
    silent, slow = await idle(url), await idle(url)
    slow[1].write(b"GET /healthz HTTP/1.1\r\nHost")

    assert await ended(silent[0])
    assert await ended(slow[0])
    for _, writer in (silent, slow):
        writer.close()


async def test_no_connection_lives_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks now and then ends, too."""
    monkeypatch.setattr(listener, "LIFE_S", 0.05)
    reader, writer = await idle(url)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    await asyncio.wait_for(reader.read(), 10)
    writer.close()
