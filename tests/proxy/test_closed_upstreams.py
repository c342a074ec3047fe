"""Goal: an upstream that closes a kept connection makes no other client's request fail. Method: upstreams that close at
awkward moments, scripted and real.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from ratelimiter.proxy.settings import ProxySettings
from tests.proxy.inputs import get, sized
from tests.proxy.servers import needed, nginx, started
from tests.proxy.wire import OK, Upstream, read_body, sidecar
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.proxy.servers import Process
    from tests.proxy.wire import Handler, Seen

RESET = struct.pack("ii", 1, 0)


def request(method: str, body: bytes = b"") -> bytes:
    """A request of *method*; with a Content-Length if there is a body."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} / HTTP/1.1\r\nHost: a.example\r\n{length}\r\n".encode() + body


def closing_at_the_second(reset: bool, said: bytes = b"") -> tuple[Handler, list[str]]:
    """A handler that answers the first request of each connection and closes at the second one; and what it was asked.

    Args:
        reset: close with a reset.
        said: what it still says before it closes.
    """
    asked: list[str] = []
    used: list[asyncio.StreamWriter] = []

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await read_body(seen, reader)
        asked.append(seen.request)
        if writer not in used:
            used.append(writer)
            writer.write(OK)
            return True
        writer.write(said)
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        return False

    return handle, asked


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
async def test_an_idempotent_request_goes_once_more(method: str, reset: bool) -> None:
    """On a new connection, if a used one ends without a byte (RFC 9110 section 9.2.2); the client sees a 200."""
    handle, asked = closing_at_the_second(reset)
    async with Upstream(handle).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 200 == (await client.exchange(get())).status
        answer = await client.exchange(request(method), head=method == "HEAD")
    assert (200, 2) == (answer.status, upstream.opened)
    assert [f"{method} /"] * 2 == asked[1:]


@pytest.mark.parametrize(
    "raw", [request("POST"), request("PATCH"), request("PUT", b"abc"), request("POST", b"abc"), request("LOCK")]
)
async def test_any_other_request_is_sent_only_once(raw: bytes) -> None:
    """The upstream may have acted on it: the client is told 502. A used connection must have been idle for a moment."""
    handle, asked = closing_at_the_second(reset=False)
    async with Upstream(handle).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 200 == (await client.exchange(get())).status
        await asyncio.sleep(0.05)  # until the connection may be used for it
        assert 502 == (await client.exchange(raw)).status
    assert (2, 1) == (len(asked), upstream.opened)


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 103 Early\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_a_request_that_was_answered_in_part_is_not_sent_again(said: bytes) -> None:
    """One byte, or an informational response, shows that the upstream has the request."""
    handle, asked = closing_at_the_second(reset=False, said=said)
    async with Upstream(handle).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 200 == (await client.exchange(get())).status
        assert 502 == (await client.exchange(get())).status
    assert 2 == len(asked)


async def test_a_request_goes_once_more_and_not_twice() -> None:
    """An upstream that answers nothing at all on new connections either gets the request two times."""
    asked: list[str] = []

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        asked.append(seen.request)
        if len(asked) == 1:
            writer.write(OK)
            return True
        return False

    async with Upstream(handle).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 200 == (await client.exchange(get())).status
        assert 502 == (await client.exchange(get())).status
    assert (3, 2) == (len(asked), upstream.opened)


async def test_a_request_on_a_new_connection_is_not_sent_again() -> None:
    """No idle connection can have been closed under it, so it is the request that the upstream does not like."""
    asked: list[str] = []

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        asked.append(seen.request)
        return False

    async with Upstream(handle).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 502 == (await client.exchange(get())).status
    assert 1 == len(asked)


@pytest.mark.wall_clock
@pytest.mark.parametrize("delay_s", [0.0, 0.001])
@pytest.mark.parametrize("raw", [get(), sized(b"3"), request("POST")])
async def test_a_connection_that_is_closed_behind_its_answer_harms_nobody(raw: bytes, delay_s: float) -> None:
    """An upstream says keep-alive and closes all the same: the next request, of whatever kind, finds another one."""

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await read_body(seen, reader)
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(delay_s)
        return False

    async with Upstream(handle).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert [200] * 20 == [(await client.exchange(raw)).status for _ in range(20)]


async def test_at_the_most_connections_a_post_takes_what_there_is() -> None:
    """A connection that has just been used is better than none."""
    settings = ProxySettings(lame_duck_ms=0, upstream_connections_max=1)
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, bounds=settings) as proxy,
        proxy.client() as client,
    ):
        assert [200] * 5 == [(await client.exchange(sized(b"3"))).status for _ in range(5)]
    assert 1 == upstream.opened


# --- Servers that were not written for this test

UVICORN = """
import sys, uvicorn
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError
    while (await receive()).get("more_body"): pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), timeout_keep_alive=0, log_level="critical")
"""
WSGI = """
def app(environ, start_response):
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
NODE = """
const server = require('http').createServer((request, response) => {
  request.resume().on('end', () => {
    response.writeHead(200, {'Content-Length': 2}); response.end('ok');
    if (request.url == '/closed') response.on('finish', () => request.socket.destroy());
  });
});
server.keepAliveTimeout = 1;
server.listen(PORT, '127.0.0.1');
"""


def uvicorn(_: Path) -> AbstractAsyncContextManager[Process]:
    """Uvicorn that keeps no connection longer than a moment, and says that it does."""
    port = free_port()
    return started(sys.executable, "-c", UVICORN, str(port), port=port)


def gunicorn(folder: Path) -> AbstractAsyncContextManager[Process]:
    """Gunicorn with threads that keep connections for one second, and workers that are replaced all the time."""
    port = free_port()
    (folder / "wsgi_of_test.py").write_text(WSGI)
    words = ("-m", "gunicorn", "-k", "gthread", "--threads", "4", "--keep-alive", "1", "-b", f"127.0.0.1:{port}")
    return started(sys.executable, *words, "--chdir", str(folder), "wsgi_of_test:app", port=port)


def node(_: Path) -> AbstractAsyncContextManager[Process]:
    """Node that closes connections a millisecond after their last use, or at once."""
    port = free_port()
    return started(needed("node", "nodejs"), "-e", NODE.replace("PORT", str(port)), port=port)


def nginx_with_a_file(folder: Path) -> AbstractAsyncContextManager[Process]:
    """nginx, which answers a bad If-Match with 412 and keep-alive, and closes."""
    (folder / "file").write_bytes(b"ok")
    return nginx(folder)


AWKWARD = b"GET /%s HTTP/1.1\r\nHost: a.example\r\nIf-Match: bad\r\n\r\n"
SERVERS: dict[str, tuple[Callable[[Path], AbstractAsyncContextManager[Process]], bytes, tuple[bytes, ...]]] = {
    "nginx": (nginx_with_a_file, AWKWARD % b"file", (get(b"/file"),)),
    "node": (node, AWKWARD % b"closed", (get(b"/"), sized(b"3"))),
    "uvicorn": (uvicorn, AWKWARD % b"", (get(b"/"), sized(b"3"))),
    "gunicorn": (gunicorn, AWKWARD % b"", (get(b"/"), sized(b"3"))),
}


@pytest.mark.wall_clock
@pytest.mark.parametrize("name", SERVERS)
async def test_one_client_makes_no_request_of_another_fail(name: str, tmp_path: Path) -> None:
    """One client makes the server close connections as fast as it can; 600 requests of others get no 5xx."""
    start, awkward, others = SERVERS[name]
    async with start(tmp_path) as server, sidecar(server.target) as proxy:

        async def disturb() -> None:
            async with proxy.client() as client:
                while True:
                    await client.exchange(awkward)

        async def ask(raw: bytes) -> list[int]:
            async with proxy.client() as client:
                statuses = []
                for number in range(100):
                    statuses.append((await client.exchange(raw)).status)
                    await asyncio.sleep(0.001 * (number % 7))
                return statuses

        disturbing = [asyncio.create_task(disturb()) for _ in range(2)]
        answers = await asyncio.gather(*[ask(others[number % len(others)]) for number in range(6)])
        for task in disturbing:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    assert [] == [status for statuses in answers for status in statuses if status >= 500]
