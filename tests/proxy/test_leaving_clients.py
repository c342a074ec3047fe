"""Goal: a client that leaves is noticed in every state, and one that has only closed its side is answered. Method:
clients that close, and upstreams that say nothing for as long as they are asked; no timeout of the proxy is short.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.proxy.settings import ASK, LEAVE, STAY, ProxySettings
from tests.proxy.inputs import get
from tests.proxy.test_refused_uploads import new_context
from tests.proxy.wire import OK, Upstream, sidecar, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.proxy.wire import Client, Handler, Seen, Sidecar

MINUTES: dict[str, Any] = {
    "upstream_timeout_ms": 600_000,
    "body_timeout_ms": 600_000,
    "write_timeout_ms": 600_000,
    "lame_duck_ms": 0,
}
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%s\r\n"


def saying(first: bytes) -> Handler:
    """A handler that says *first*, then nothing until the other side closes; it reads no more than it must."""

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(first)
        if seen.request.startswith("POST"):
            await asyncio.sleep(60)  # takes in nothing
        await reader.read()
        return False

    return handle


STATES = {
    "waiting for the answer": (b"", get()),
    "waiting for the answer, HTTP/1.0": (b"", get().replace(b"HTTP/1.1", b"HTTP/1.0")),
    "a quiet stream in chunks": (STREAM % b"Transfer-Encoding: chunked\r\n" + b"3\r\nabc\r\n", get()),
    "a quiet stream of some length": (STREAM % b"Content-Length: 1000\r\n" + b"abc", get()),
    "a quiet stream without one": (STREAM % b"" + b"abc", get()),
    "more requests than are read ahead": (b"", get() * 3000),
    "a tunnel": (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", UPGRADE),
}


async def gone(proxy: Sidecar, upstream: Upstream) -> None:
    await until(lambda: not len(proxy.service) and not upstream.open, "both are gone")
    await until(lambda: not len(proxy.service.pool), "no connection is left")


@pytest.mark.parametrize("state", STATES)
async def test_a_client_that_leaves_is_noticed(state: str) -> None:
    """Its connection, the upstream's and the place of its request are free long before any timeout."""
    first, asked = STATES[state]
    upstream = Upstream(saying(first))
    async with upstream.serving(), sidecar(upstream, bounds=ProxySettings(**MINUTES)) as proxy:
        async with proxy.client() as client:
            client.send(asked)
            await until(lambda: upstream.open, "the upstream has it")
            if first:
                await client.reader.readuntil(b"\r\n\r\n")
        await gone(proxy, upstream)
        assert not proxy.exchanges or proxy.exchanges[-1].status in (0, 101, 200)


async def test_a_client_that_leaves_its_upload_is_noticed() -> None:
    """Also while it is not read, because the upstream takes in nothing."""
    upstream = Upstream(saying(b""))
    async with upstream.serving(), sidecar(upstream, bounds=ProxySettings(**MINUTES)) as proxy:
        async with proxy.client() as client:
            client.send(POST)
            writing = asyncio.ensure_future(flood(client))
            await until(lambda: proxy.service.pool and any(c.paused for c in proxy.service._clients), "it is not read")
            writing.cancel()
            client.writer.transport.abort()
        await until(lambda: not len(proxy.service) and not len(proxy.service.pool), "both are gone")


async def flood(client: Client) -> None:
    while True:
        client.send(bytes(100_000))
        await client.writer.drain()


async def test_a_client_that_leaves_over_tls_is_noticed(tmp_path: Path) -> None:
    """TLS has no half-open connection."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    upstream = Upstream(saying(b""))
    settings = ProxySettings(**MINUTES)
    async with upstream.serving(), sidecar(upstream, bounds=settings, tls=new_context(tmp_path)) as proxy:
        async with proxy.client(ssl=trusting) as client:
            client.send(get())
            await until(lambda: upstream.open, "the upstream has it")
        await gone(proxy, upstream)


async def test_a_client_in_line_that_leaves_is_noticed() -> None:
    """Its place in the line for an upstream connection is free."""
    settings = ProxySettings(**MINUTES, upstream_connections_max=1, connect_timeout_ms=600_000)
    upstream = Upstream(saying(b""))
    async with upstream.serving(), sidecar(upstream, bounds=settings) as proxy, proxy.client() as first:
        first.send(get())
        await until(lambda: upstream.open, "the upstream has it")
        async with proxy.client() as client:
            client.send(get())
            await until(lambda: proxy.service.pool.waiting, "it is in line")
        await until(lambda: not proxy.service.pool.waiting and len(proxy.service) == 1, "it has left the line")


@pytest.mark.parametrize("mode", [ASK, STAY])
@pytest.mark.parametrize("raw", [get(), get() + get(), b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"])
async def test_a_client_that_has_closed_its_side_is_answered(raw: bytes, mode: str) -> None:
    """However long the answer takes, and as often as the client is asked if it is still there."""
    settings = ProxySettings(**MINUTES, half_closed=mode, half_close_ms=50)

    async def slow(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.6)
        writer.write(OK)
        return True

    async with (
        Upstream(slow).serving() as upstream,
        sidecar(upstream, bounds=settings) as proxy,
        proxy.client() as client,
    ):
        client.send(raw)
        client.writer.write_eof()
        for _ in range(raw.count(b"HTTP/1.1")):
            answer = await client.response()
            assert (200, b"ok") == (answer.status, answer.body)
            assert {100} if mode == ASK else set() == set(answer.interim)
        assert b"" == await client.closed()


async def test_a_client_that_stays_gets_the_rest_of_a_stream() -> None:
    """With `half_closed: stay`, also if it closes its side in the middle."""
    go_on = asyncio.Event()

    async def stream(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM % b"Content-Length: 6\r\n" + b"abc")
        await go_on.wait()
        writer.write(b"def")
        return True

    settings = ProxySettings(**MINUTES, half_closed=STAY)
    upstream = Upstream(stream)
    async with upstream.serving(), sidecar(upstream, bounds=settings) as proxy, proxy.client() as client:
        client.send(get())
        await client.reader.readuntil(b"abc")
        client.writer.write_eof()
        go_on.set()
        assert b"def" == await client.closed()


async def test_to_leave_is_to_close_a_side() -> None:
    """With `half_closed: leave` no client is asked."""
    settings = ProxySettings(**MINUTES, half_closed=LEAVE)
    upstream = Upstream(saying(b""))
    async with upstream.serving(), sidecar(upstream, bounds=settings) as proxy, proxy.client() as client:
        client.send(get())
        await until(lambda: upstream.open, "the upstream has it")
        client.writer.write_eof()
        assert b"" == await client.closed()
        await gone(proxy, upstream)


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]
)
async def test_an_upstream_that_says_it_is_at_work_is_not_silent(interim: bytes) -> None:
    """The timeout is for silence: each informational response begins it anew."""
    settings = ProxySettings(lame_duck_ms=0, upstream_timeout_ms=400)

    async def working(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        for _ in range(8):
            writer.write(interim)
            await asyncio.sleep(0.1)
        writer.write(OK)
        return True

    async with (
        Upstream(working).serving() as upstream,
        sidecar(upstream, bounds=settings) as proxy,
        proxy.client() as client,
    ):
        answer = await client.exchange(get())
        assert (200, 8) == (answer.status, len(answer.interim))
