"""Goal: whatever the upstream does, no client takes a part for the whole or one answer for another. Method: upstreams
that say exactly these bytes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.proxy.pool import Target
from ratelimiter.proxy.settings import ProxySettings
from tests.proxy.inputs import get, post
from tests.proxy.wire import OK, Upstream, answering, read_body, sidecar, until
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from tests.proxy.wire import Seen

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

SOON: dict[str, Any] = {"lame_duck_ms": 0, "grace_ms": 200, "linger_ms": 100}
LINE = b"HTTP/1.1 200 OK\r\n"

BROKEN = {
    "110: length and chunks": LINE + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "111: two lengths": LINE + b"Content-Length: 3\r\nContent-Length: 2\r\n\r\nabc",
    "111: one length twice": LINE + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "111: a signed length": LINE + b"Content-Length: +3\r\n\r\nabc",
    "115: nothing but 1xx": b"HTTP/1.1 102 Processing\r\n\r\n" * 21 + OK,
    "116: an upgrade unasked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    "118: a head of 1 MB": LINE + b"X: " + b"y" * 2**20 + b"\r\n\r\n",
    "118: 5,000 fields": LINE + b"X: y\r\n" * 5000 + b"\r\n",
    "118: 200 fields": LINE + b"X: y\r\n" * 200 + b"\r\n",
    "119: bare LFs": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r\n\r\n",
    "119: a folded line": LINE + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "119: a NUL": LINE + b"X: a\0b\r\nContent-Length: 2\r\n\r\nok",
    "119: a space before the colon": LINE + b"Content-Length : 2\r\n\r\nok",
    "an unknown coding": LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\nok",
    "garbage": b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n",
    "nothing": b"",
    "half a head": LINE[:9],
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
async def test_broken_heads_become_502(raw: bytes) -> None:
    """In the dialect, with the limiter's fields; the client's connection is kept, the upstream's is not."""
    async with Upstream(answering(raw)).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        answer = await client.exchange(get())

        assert (502, "application/problem+json") == (answer.status, answer.value("content-type"))
        assert answer.value("x-ratelimit-remaining")
        upstream.handler = None
        assert 200 == (await client.exchange(get())).status
        assert 2 == upstream.opened


SHORT = {
    "112: shorter than its length": (b"Content-Length: 10\r\n\r\nabc",),
    "113: no last chunk": (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",),
    "113: a broken chunk": (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"3\r\nabcd\r\n0\r\n\r\n"),
    "113: half a trailer": (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n",),
}


@pytest.mark.parametrize("parts", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("reset", [False, True])
async def test_a_body_that_breaks_off_is_broken_off(parts: tuple[bytes, ...], reset: bool) -> None:
    """The client's connection ends before the body does: never padded, never called complete."""

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(LINE + parts[0])
        await relayed.wait()
        for part in parts[1:]:
            writer.write(part)
        await writer.drain()
        if reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return False

    relayed = asyncio.Event()
    async with Upstream(handle).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        client.send(get())
        await client.reader.readuntil(b"\r\n\r\n")
        relayed.set()
        rest = await client.closed()

        assert not rest.endswith(b"0\r\n\r\n")
        assert len(rest) < 10


@pytest.mark.parametrize("reset", [False, True])
async def test_a_body_that_ends_with_its_connection(reset: bool) -> None:
    """Row 113: it is complete when the upstream closes properly, and chunks say so; a reset breaks it off."""

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nabc")
        await relayed.wait()
        if reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return False

    for request in (get(), b"GET /x HTTP/1.0\r\n\r\n"):
        relayed = asyncio.Event()
        async with Upstream(handle).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
            client.send(request)
            await client.reader.readuntil(b"abc")
            relayed.set()
            if not reset and request == get():
                assert b"\r\n0\r\n\r\n" == await client.reader.readuntil(b"0\r\n\r\n")
            elif reset and request != get():
                with pytest.raises(ConnectionResetError):  # a FIN would have said that it is complete
                    await client.reader.read()
            else:
                assert not (await client.closed()).endswith(b"0\r\n\r\n")


async def test_what_comes_behind_a_body_is_nobody_s_answer() -> None:
    """Row 114: surplus bytes are dropped with their connection."""
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    raw = LINE + b"Content-Length: 2\r\n\r\nok" + poison
    handler = answering(raw, then_close=False)
    async with Upstream(handler).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert [b"ok", b"ok"] == [(await client.exchange(get())).body for _ in range(2)]
        assert 2 == upstream.opened


async def test_what_comes_unasked_is_nobody_s_answer() -> None:
    """Row 114: bytes on an idle connection end it."""
    written = asyncio.Event()

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(OK)
        await written.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        await reader.read()
        return False

    async with Upstream(handle).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert b"ok" == (await client.exchange(get())).body
        written.set()
        await until(lambda: not upstream.open, "it is given up")
        upstream.handler = None
        assert b"ok" == (await client.exchange(get())).body


async def test_informational_responses_pass() -> None:
    """Row 115: hints are relayed, a 100 is not, as nobody waits for it; HTTP/1.0 knows none of them."""
    raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK
    handler = answering(raw, then_close=False)
    async with Upstream(handler).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert ([103], 200) == ((answer := await client.exchange(get())).interim, answer.status)
        answer = await client.exchange(b"GET /x HTTP/1.0\r\n\r\n")
        assert ([], 200) == (answer.interim, answer.status)


@pytest.mark.parametrize(
    ("request_line", "raw", "length"),
    [
        (b"HEAD", LINE + b"Content-Length: 5\r\n\r\nhello", "5"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", None),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", "5"),
    ],
)
async def test_answers_without_a_body_have_none(request_line: bytes, raw: bytes, length: str | None) -> None:
    """Row 117: what comes nevertheless is dropped with its connection."""
    handler = answering(raw, then_close=False)
    async with Upstream(handler).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        for _ in range(2):
            answer = await client.exchange(get(method=request_line), head=True)
            assert (b"", length) == (answer.body, answer.value("content-length"))
        assert 2 == upstream.opened


async def test_a_head_is_passed_on_as_it_was_read() -> None:
    """Rows 120, 121: fields keep their order and spelling; those of one hop are gone; what is ours to say, only we say;
    a Retry-After of the upstream is its own.
    """
    raw = LINE + (
        b"X: a\r\nSet-Cookie: a=b\r\nSET-COOKIE: c=d\r\nKeep-Alive: timeout=5\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"
        b"X-RateLimit-Remaining: 12345\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
    )
    handler = answering(raw, then_close=False)
    async with (
        Upstream(handler).serving() as upstream,
        sidecar(upstream, limit="9/minute") as proxy,
        proxy.client() as client,
    ):
        answer = await client.exchange(get())

    names = [line.partition(":")[0] for line in answer.lines]
    ours = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]
    assert ["X", "Set-Cookie", "SET-COOKIE", "Retry-After", *ours, "Content-Length"] == names
    assert "8" == answer.value("x-ratelimit-remaining")


async def test_what_the_upstream_is_told_of_the_client() -> None:
    """Rows 48, 93, 94, 126: its own account of itself is replaced, fields of one hop and underscored ones are gone."""
    raw = get(
        b"/x",
        b"X-Forwarded-For: 6.6.6.6",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: evil.example",
        b"Forwarded: for=6.6.6.6",
        b"X-Real-IP: 6.6.6.6",
        b"X_Forwarded_For: 6.6.6.6",
        b"TE: trailers",
        b"Proxy-Connection: close",
        b"Keep-Alive: 5",
        b"Proxy: http://evil.example",
        b"Connection: keep-alive, X-Forwarded-For, X-Hop",
        b"X-Hop: 1",
        b"Accept:  */*\t",
    )
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        await client.exchange(raw)

    assert [
        "Host: api.example",
        "Accept:  */*\t",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: api.example",
    ] == upstream.seen[0].lines


async def test_what_a_trusted_proxy_says_is_passed_on() -> None:
    """Row 128: its account is kept, and it is added to it."""
    raw = get(
        b"/x",
        b"X-Forwarded-For: 6.6.6.6",
        b"X-Forwarded-For:",
        b"X-Forwarded-For: 7.7.7.7",
        b"X-Forwarded-Proto: https",
    )
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, trusted_proxies="127.0.0.0/8", families=("x-forwarded", "forwarded")) as proxy,
        proxy.client() as client,
    ):
        await client.exchange(raw)

    (seen,) = upstream.seen
    assert "6.6.6.6, 7.7.7.7, 127.0.0.1" == seen.value("x-forwarded-for")
    assert "https" == seen.value("x-forwarded-proto")
    assert 'for=127.0.0.1;proto=http;host="api.example"' == seen.value("forwarded")


async def test_a_connection_is_used_again() -> None:
    """One after another, requests of any client share a connection; at the same time they do not."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy:
        for _ in range(3):
            async with proxy.client() as client:
                assert 200 == (await client.exchange(get())).status

        assert (1, 1) == (upstream.opened, len(proxy.service.pool))


async def test_a_stale_connection_is_replaced_before_anything_is_sent() -> None:
    """An upstream that has closed an idle connection is asked on a new one, and never twice."""
    async with Upstream(answering(OK)).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        for _ in range(20):
            assert 200 == (await client.exchange(post(b"Content-Length: 1", body=b"x"))).status
            await until(lambda: not len(proxy.service.pool), "it is known")


async def test_a_request_is_never_sent_twice() -> None:
    """An upstream that takes a request and closes without a word was asked once; its client gets a 502."""
    record: list[Seen] = []
    async with Upstream(answering(record=record)).serving() as upstream, sidecar(upstream) as proxy:
        async with proxy.client() as client:
            assert 502 == (await client.exchange(get())).status

        assert (1, 1) == (len(record), upstream.opened)


async def test_idle_connections_are_given_up() -> None:
    """Before the upstream does it, at a moment of its choosing."""
    bounds = ProxySettings(upstream_idle_ms=50, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy, proxy.client() as client:
        await client.exchange(get())
        await until(lambda: not upstream.open, "it is closed")
        assert 200 == (await client.exchange(get())).status


async def test_an_upstream_that_is_not_there() -> None:
    """502 in the dialect; the connection is kept, and so is a body that was not asked for."""
    async with sidecar(Target("127.0.0.1", free_port())) as proxy, proxy.client() as client:
        assert 502 == (await client.exchange(get())).status
        assert 502 == (await client.exchange(post(b"Content-Length: 3", body=b"abc"))).status
        assert 502 == (await client.exchange(get())).status
        assert ["proxy"] * 3 == [exchange.source for exchange in proxy.exchanges]


async def test_an_upstream_that_does_not_accept() -> None:
    """504 after the time for a connection."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        crowd = [socket.socket() for _ in range(3)]
        for each in crowd:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        bounds = ProxySettings(connect_timeout_ms=100, **SOON)
        async with sidecar(Target(*full.getsockname()), bounds=bounds) as proxy, proxy.client() as client:
            assert 504 == (await client.exchange(get())).status
        for each in crowd:
            each.close()


async def test_an_upstream_that_does_not_answer() -> None:
    """504 after the time for an answer, and the upstream is let go; half an answer is broken off."""

    async def slow(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await read_body(seen, reader)
        writer.write(LINE + b"Content-Length: 10\r\n\r\nabc" if seen.request == "GET /half" else b"")
        await reader.read()
        return False

    bounds = ProxySettings(upstream_timeout_ms=100, **SOON)
    async with Upstream(slow).serving() as upstream, sidecar(upstream, bounds=bounds) as proxy:
        async with proxy.client() as client:
            assert 504 == (await client.exchange(get())).status
            assert not (await client.exchange(get(b"/half"))).complete
        await until(lambda: not upstream.open, "it is let go")


async def test_an_upstream_that_takes_nothing_in() -> None:
    """The client is paused, not buffered for; in the end it is a 504."""

    async def deaf(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()
        return False

    bounds = ProxySettings(upstream_timeout_ms=300, **SOON)
    async with (
        Upstream(deaf).serving() as upstream,
        sidecar(upstream, bounds=bounds) as proxy,
        proxy.client() as client,
    ):
        client.send(post(b"Content-Length: 100000000"))
        sending = asyncio.create_task(_send(client.writer, 100_000_000))
        assert 504 == (await client.response()).status
        sending.cancel()
        assert proxy.exchanges[0].received < 30 * 2**20


async def _send(writer: asyncio.StreamWriter, size: int) -> None:
    for _ in range(size // 2**20):
        writer.write(b"x" * 2**20)
        await writer.drain()


async def test_bodies_pass_both_ways_at_once_and_unchanged() -> None:
    """Ten megabytes, echoed, with either framing."""
    body = bytes(range(256)) * 4096 * 10

    async def echo(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await read_body(seen, reader)
        if "chunks" in seen.first_line:
            writer.write(
                LINE + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(seen.body), seen.body)
            )
        else:
            writer.write(LINE + b"Content-Length: %d\r\n\r\n%s" % (len(seen.body), seen.body))
        await writer.drain()
        return True

    async with Upstream(echo).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        for target in (b"/length", b"/chunks"):
            raw = get(target, b"Content-Length: %d" % len(body), method=b"POST") + body
            client.send(raw)
            assert body == (await client.response()).body


UPGRADE = get(
    b"/chat", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 13"
)


async def tunnel(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """An upstream that agrees to the upgrade and echoes."""
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello")
    while data := await reader.read(65536):
        writer.write(data)
    return False


async def test_an_upgrade_is_judged_once_and_then_a_tunnel() -> None:
    """Row 122: what goes through is not looked at; over the limit there is a 429 and no upgrade."""
    async with Upstream(tunnel).serving() as upstream, sidecar(upstream, limit="1/minute") as proxy:
        async with proxy.client() as client:
            answer = await client.exchange(UPGRADE + b"early")
            assert (101, "websocket", "0") == (
                answer.status,
                answer.value("upgrade"),
                answer.value("x-ratelimit-remaining"),
            )
            assert b"hello" == await client.reader.readexactly(5)
            assert b"early" == await client.reader.readexactly(5)
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert b"GET / HTTP/1.1\r\n\r\n" == await client.reader.readexactly(18)
        await until(lambda: not upstream.open, "the tunnel has no other end")
        async with proxy.client() as client:
            answer = await client.exchange(UPGRADE)
            assert (429, None) == (answer.status, answer.value("upgrade"))
        assert [101, 429] == [exchange.status for exchange in proxy.exchanges]


async def test_an_upgrade_that_is_not_agreed_to() -> None:
    """The upstream's answer is relayed like any other."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        answer = await client.exchange(UPGRADE)

        assert (200, b"ok") == (answer.status, answer.body)
        assert "websocket" == upstream.seen[0].value("upgrade")


async def test_an_idle_tunnel_is_closed() -> None:
    """Both ways, after its own time."""
    bounds = ProxySettings(tunnel_timeout_ms=100, **SOON)
    async with (
        Upstream(tunnel).serving() as upstream,
        sidecar(upstream, bounds=bounds) as proxy,
        proxy.client() as client,
    ):
        await client.exchange(UPGRADE)
        assert b"hello" == await client.closed()
        await until(lambda: not upstream.open, "both ends are closed")


async def test_a_tunnel_ends_with_its_client() -> None:
    """Row 122: an upstream that does not close in its turn does not hold the connections."""

    async def deaf(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        assert b"bye" == await reader.read()  # the end of what the client had to say
        heard.set()
        while True:
            writer.write(b"still here")
            await writer.drain()
            await asyncio.sleep(0.01)

    heard = asyncio.Event()
    async with (
        Upstream(deaf).serving() as upstream,
        sidecar(upstream, bounds=ProxySettings(**SOON)) as proxy,
        proxy.client() as client,
    ):
        await client.exchange(UPGRADE)
        client.send(b"bye")
        client.writer.write_eof()
        await heard.wait()
        await until(lambda: not len(proxy.service) and not upstream.open, "both ends are closed")


# --- No more connections than there may be


async def held(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answers after a moment."""
    await read_body(seen, reader)
    await asyncio.sleep(0.05)
    last = seen.request == "GET /last"
    writer.write(OK.replace(b"Content", b"Connection: close\r\nContent") if last else OK)
    return not last


@pytest.mark.parametrize("path", [b"/x", b"/last"])
async def test_requests_wait_in_line_for_a_connection(path: bytes) -> None:
    """There are never more than the bound; one that is given back, or closes, is the next one's."""
    most = 0

    async def counting(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        nonlocal most
        most = max(most, upstream.open)
        return await held(seen, reader, writer)

    upstream, bounds = Upstream(counting), ProxySettings(upstream_connections_max=2, **SOON)
    async with upstream.serving(), sidecar(upstream, bounds=bounds) as proxy:

        async def ask() -> int:
            async with proxy.client() as client:
                return (await client.exchange(get(path))).status

        assert [200] * 9 == await asyncio.gather(*[ask() for _ in range(9)])
        assert 2 == most
        assert (9 if path == b"/last" else 2) == upstream.opened


async def test_who_waits_too_long_is_told_503() -> None:
    """Within the time for a connection, in words about us; the next one is served when there is room again."""
    let = asyncio.Event()

    async def holding(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await let.wait()
        writer.write(OK)
        return True

    bounds = ProxySettings(upstream_connections_max=1, connect_timeout_ms=100, **SOON)
    async with Upstream(holding).serving() as upstream, sidecar(upstream, bounds=bounds) as proxy:
        async with proxy.client() as first, proxy.client() as second:
            first.send(get())
            await until(lambda: upstream.open, "the only one is taken")
            assert 503 == (await second.exchange(get())).status
            assert 0 == proxy.service.pool.waiting
            second.send(get())
            let.set()
            assert [200, 200] == [(await first.response()).status, (await second.response()).status]
        assert 1 == upstream.opened


async def test_a_place_in_line_is_passed_on_when_its_client_has_gone() -> None:
    """Whoever is behind gets the connection."""
    let = asyncio.Event()

    async def holding(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await let.wait()
        writer.write(OK)
        return True

    bounds = ProxySettings(upstream_connections_max=1, **SOON)
    async with (
        Upstream(holding).serving() as upstream,
        sidecar(upstream, bounds=bounds) as proxy,
        proxy.client() as first,
        proxy.client() as last,
    ):
        first.send(get())
        await until(lambda: upstream.open, "the only one is taken")
        async with proxy.client() as gone:
            gone.send(get())
            await until(lambda: proxy.service.pool.waiting == 1, "it is in line")
            last.send(get())
            await until(lambda: proxy.service.pool.waiting == 2, "the other is behind it")
            gone.writer.transport.abort()
            await until(lambda: proxy.service.pool.waiting == 1, "it has left")
        let.set()
        assert [200, 200] == [(await first.response()).status, (await last.response()).status]


async def test_a_place_in_line_outlives_a_failure_to_connect() -> None:
    """Who is next tries it, and hears the same: nobody waits for a connection that nobody opens."""
    bounds = ProxySettings(upstream_connections_max=1, connect_timeout_ms=5000, **SOON)
    async with sidecar(Target("127.0.0.1", free_port()), bounds=bounds) as proxy:

        async def ask() -> int:
            async with proxy.client() as client:
                return (await client.exchange(get())).status

        assert [502] * 5 == await asyncio.gather(*[ask() for _ in range(5)])


async def test_an_upstream_that_has_a_name() -> None:
    """Looked up, connected to, and asked by the name."""
    async with (
        Upstream().serving() as upstream,
        sidecar(Target("localhost", upstream.port)) as proxy,
        proxy.client() as client,
    ):
        assert 200 == (await client.exchange(get())).status
    async with sidecar(Target("no.such.host.invalid", 80)) as proxy, proxy.client() as client:
        assert 502 == (await client.exchange(get())).status


# --- Via


async def test_via_names_us_both_ways() -> None:
    """RFC 9110 section 7.6.3: behind what others said, with the version that each message came in."""
    seen: list[Seen] = []
    upstream = Upstream(answering(b"HTTP/1.0 200 OK\r\nVia: 1.1 behind\r\nContent-Length: 0\r\n\r\n", record=seen))
    async with upstream.serving(), sidecar(upstream, via=b"gate:80") as proxy, proxy.client() as client:
        answer = await client.exchange(get(b"/x", b"Via: 1.0 before"))
        assert ["1.1 behind", "1.0 gate:80"] == answer.values("via")
        assert ["1.0 before", "1.1 gate:80"] == seen[0].values("via")
    async with upstream.serving(), sidecar(upstream) as proxy, proxy.client() as client:
        assert ["1.1 behind"] == (await client.exchange(get())).values("via")
        assert [] == seen[1].values("via")
