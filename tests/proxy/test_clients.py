"""Goal: no client can hold, confuse or exhaust the proxy. Method: connections that misbehave in time, not in syntax."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.proxy.settings import ProxySettings
from tests.proxy.inputs import chunked, get, post
from tests.proxy.wire import OK, Upstream, answering, read_body, sidecar, until

if TYPE_CHECKING:
    from tests.proxy.wire import Seen

SOON: dict[str, Any] = {"lame_duck_ms": 0, "grace_ms": 200, "linger_ms": 100}
MEGABYTE = b"x" * 2**20


async def silent(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """An upstream that never answers."""
    await read_body(seen, reader)
    await reader.read()
    return False


async def test_a_limited_expectation_is_refused_without_a_100() -> None:
    """Rows 90 and 103: a client that asks before it sends is told 429 at once, and its body is not read."""
    async with Upstream().serving() as upstream, sidecar(upstream, limit="1/minute") as proxy:
        async with proxy.client() as client:
            client.send(post(b"Expect: 100-continue", b"Content-Length: 3"))
            async with asyncio.timeout(5):
                assert b"HTTP/1.1 100 Continue\r\n\r\n" == await client.reader.readuntil(b"\r\n\r\n")
            client.send(b"abc")
            assert 200 == (await client.response()).status
        async with proxy.client() as client:
            answer = await client.exchange(post(b"Expect: 100-continue", b"Content-Length: 3"))

            assert (429, []) == (answer.status, answer.interim)
            assert "close" == answer.value("connection")
            assert b"" == await client.closed()
        assert [b"abc"] == [seen.body for seen in upstream.seen]
        assert [None] == [seen.value("expect") for seen in upstream.seen]


async def test_half_a_request_is_none() -> None:
    """Row 95: nothing reaches the upstream, and the place is free again."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy:
        async with proxy.client() as client:
            client.send(get()[:-2])
        await until(lambda: not len(proxy.service), "the client is gone")
        async with proxy.client() as client:
            client.send(post(b"Content-Length: 10", body=b"abc"))
            await until(lambda: upstream.opened, "the upstream has the head")
        await until(lambda: not len(proxy.service) and not upstream.open, "both are gone")

        assert [] == upstream.seen


async def test_silence_is_closed() -> None:
    """Row 96: who connects and says nothing is let go without a word."""
    bounds = ProxySettings(head_timeout_ms=50, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy, proxy.client() as client:
        assert b"" == await client.closed()


async def test_a_head_that_drips_is_cut_off() -> None:
    """Row 97: the deadline of a head is absolute; each byte does not renew it."""
    bounds = ProxySettings(head_timeout_ms=100, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy, proxy.client() as client:

        async def drip() -> None:
            for byte in get(b"/x", *[b"X-%d: y" % n for n in range(50)]):
                client.send(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        answer = await client.response()
        dripping.cancel()

        assert 408 == answer.status
        assert b"" == await client.closed()
        assert [] == upstream.seen


async def test_the_head_of_a_later_request_has_its_own_deadline() -> None:
    """Row 97: between requests a client may rest, within one it may not."""
    bounds = ProxySettings(head_timeout_ms=100, idle_timeout_ms=5000, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy, proxy.client() as client:
        assert 200 == (await client.exchange(get())).status
        await asyncio.sleep(0.2)
        assert 200 == (await client.exchange(get())).status
        assert 408 == (await client.exchange(get()[:-2])).status


async def test_an_idle_connection_is_closed() -> None:
    """Row 96, between requests."""
    bounds = ProxySettings(idle_timeout_ms=50, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy, proxy.client() as client:
        await client.exchange(get())

        assert b"" == await client.closed()


@pytest.mark.parametrize("bounds", [{"body_timeout_ms": 100}, {"body_grace_ms": 50, "body_rate_min": 10_000}])
async def test_a_body_that_drips_is_cut_off(bounds: dict[str, Any]) -> None:
    """Row 98: by the pause between two bytes, or by the average rate, so that a drip is no way around the first."""
    wait_s = 0.2 if "body_timeout_ms" in bounds else 0.01
    made = ProxySettings(head_timeout_ms=400, **bounds, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=made) as proxy, proxy.client() as client:

        async def drip() -> None:
            client.send(post(b"Content-Length: 1000"))
            for _ in range(1000):
                client.send(b"x")
                await asyncio.sleep(wait_s)

        dripping = asyncio.create_task(drip())
        answer = await client.response()
        dripping.cancel()

        assert 408 == answer.status
        assert b"" == await client.closed()
        assert [] == upstream.seen
        await until(lambda: not upstream.open, "the upstream is told")


def unsent_to_clients(port: int) -> int:
    """Bytes that the kernel keeps for clients of a listener at *port* who have not taken them in."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[4].split(":")[0], 16) for line in lines if line[1].endswith(f":{port:04X}") and line[3] != "0A")


async def test_who_reads_nothing_is_cut_off_and_the_upstream_paused() -> None:
    """Row 99: a response of any size waits in bounded memory, and not for ever."""
    sent = 0

    async def endless(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while sent < 10**9:
            writer.write(MEGABYTE)
            await writer.drain()
            sent += len(MEGABYTE)
        return False

    bounds = ProxySettings(write_timeout_ms=300, **SOON)
    async with Upstream(endless).serving() as upstream, sidecar(upstream, bounds=bounds) as proxy:
        loop = asyncio.get_running_loop()
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.setblocking(False)
        await loop.sock_connect(reader, ("127.0.0.1", proxy.port))
        await loop.sock_sendall(reader, get())
        await until(lambda: len(proxy.service), "the client is there")
        unsent = [0]

        def cut_off() -> bool:
            unsent.append(unsent_to_clients(proxy.port))
            return not len(proxy.service)

        await until(cut_off, "it is cut off")

        assert 4096 < max(unsent) < 2**19  # of which the kernel would take in megabytes
        assert 0 == unsent_to_clients(proxy.port), "the kernel has let go of it, too"
        assert sent < 30 * 2**20  # what two pairs of socket buffers take in
        await until(lambda: not upstream.open, "the upstream is let go")
        reader.close()


async def test_one_address_has_so_many_connections() -> None:
    """Row 100: those beyond the number are closed at once, those within it are served."""
    bounds = ProxySettings(connections_per_address_max=3, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy:
        async with proxy.client() as one, proxy.client(), proxy.client():
            await until(lambda: len(proxy.service) == 3, "all are in")
            async with proxy.client() as fourth:
                assert b"" == await fourth.closed()
            assert 200 == (await one.exchange(get())).status
            assert 1 == proxy.service.turned_away
        await until(lambda: not len(proxy.service), "all are gone")
        async with proxy.client() as client:
            assert 200 == (await client.exchange(get())).status


async def test_a_trusted_proxy_has_as_many_as_it_likes() -> None:
    """Row 100: behind a load balancer every client has its address."""
    bounds = ProxySettings(connections_per_address_max=1, **SOON)
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, bounds=bounds, trusted_proxies="127.0.0.1") as proxy,
        proxy.client(),
        proxy.client() as second,
    ):
        assert 200 == (await second.exchange(get())).status


async def test_there_are_so_many_connections_in_all() -> None:
    """Row 100, whoever they are of."""
    bounds = ProxySettings(connections_max=1, **SOON)
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, bounds=bounds, trusted_proxies="127.0.0.1") as proxy,
        proxy.client(),
        proxy.client() as second,
    ):
        assert b"" == await second.closed()


async def test_ten_thousand_pipelined_requests() -> None:
    """Row 101: served in order, each counted, a bounded number read ahead."""
    number = 10_000
    async with Upstream().serving() as upstream, sidecar(upstream, limit=f"{number - 5}/minute") as proxy:
        async with proxy.client() as client:
            client.send(b"".join(get(b"/%d" % n) for n in range(number)))
            statuses = [(await client.response()).status for _ in range(number)]

        assert [200] * (number - 5) + [429] * 5 == statuses
        assert [f"GET /{n}" for n in range(number - 5)] == [seen.request for seen in upstream.seen]
        assert 1 == upstream.opened


async def test_a_refused_upload_is_not_read() -> None:
    """Row 105: the 429 arrives although the body is still on its way; no more than 64 kB of it are taken in."""
    async with Upstream().serving() as upstream, sidecar(upstream, limit="1/minute") as proxy:
        async with proxy.client() as client:
            await client.exchange(get())
            client.send(post(b"Content-Length: 10485760", body=MEGABYTE))
            answer = await client.response()

            assert (429, "close") == (answer.status, answer.value("connection"))
            for _ in range(9):
                client.send(MEGABYTE)
            assert b"" == await client.closed()
        assert ["GET /x"] == [seen.request for seen in upstream.seen]


async def test_a_refused_body_that_has_come_is_dropped() -> None:
    """Row 105: where the whole body is there already the connection is kept; what follows it is the next request."""
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, limit="1/minute") as proxy,
        proxy.client() as client,
    ):
        await client.exchange(get())
        client.send(post(b"Content-Length: 3", body=b"abc") + chunked(b"3\r\nabc\r\n0\r\n\r\n") + get())

        assert [429] * 3 == [(await client.response()).status for _ in range(3)]


async def test_a_client_that_leaves_takes_its_request_along() -> None:
    """Row 107: within a second the upstream is let go; what was charged stays charged."""
    async with Upstream(silent).serving() as upstream, sidecar(upstream, limit="1/minute") as proxy:
        async with proxy.client() as client:
            client.send(get())
            await until(lambda: upstream.open, "the upstream has it")
        await until(lambda: not upstream.open and not len(proxy.service), "both are gone")
        async with proxy.client() as client:
            assert 429 == (await client.exchange(get())).status

        assert [0, 429] == [exchange.status for exchange in proxy.exchanges]


async def test_a_client_that_has_said_all_is_answered() -> None:
    """Row 108: half a connection is enough to be answered on, all that was asked for."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        client.send(get(b"/1") + get(b"/2"))
        client.writer.write_eof()

        assert [200, 200] == [(await client.response()).status for _ in range(2)]
        assert b"" == await client.closed()


async def test_a_reset_is_no_drama(caplog: pytest.LogCaptureFixture) -> None:
    """Row 109: the place is free, the upstream let go, and nothing is logged."""

    async def half(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await reader.read()
        return False

    async with Upstream(half).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        client.send(get())
        await client.reader.readuntil(b"half")
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await until(lambda: not len(proxy.service) and not upstream.open, "both are gone")

    assert [] == caplog.records


async def test_http_1_0_clients() -> None:
    """They get no chunks: a body of unknown length ends with the connection; and stay only if they ask to."""
    handler = answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", then_close=False)
    async with Upstream(handler).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        answer = await client.exchange(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")

        assert (200, b"abc", "close", None) == (
            answer.status,
            answer.body,
            answer.value("connection"),
            answer.value("transfer-encoding"),
        )
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy:
        async with proxy.client() as client:
            answer = await client.exchange(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (200, "keep-alive") == (answer.status, answer.value("connection"))
            answer = await client.exchange(b"GET /x HTTP/1.0\r\n\r\n")
            assert (200, "close") == (answer.status, answer.value("connection"))
            assert b"" == await client.closed()
        assert f"127.0.0.1:{upstream.port}" == upstream.seen[0].value("host")


async def test_bodies_and_trailers_pass() -> None:
    """A body arrives whole however it was framed, with those trailers that may be passed on."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        trailers = b"X-Sum: 1\r\nContent-Length: 9\r\nX_Sum: 2\r\nAuthorization: x\r\nRetry-After: 9\r\n"
        await client.exchange(post(b"Content-Length: 5", body=b"hello"))
        await client.exchange(chunked(b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n" + trailers + b"\r\n"))
        await client.exchange(post(b"Content-Length: 0"))
        await client.exchange(post())

    assert [b"hello", b"hello", b"", b""] == [seen.body for seen in upstream.seen]
    assert [[], ["X-Sum: 1"], [], []] == [seen.trailers for seen in upstream.seen]
    assert ["5", None, "0", None] == [seen.value("content-length") for seen in upstream.seen]


async def test_a_body_too_long_is_refused() -> None:
    """By what its length says before a byte is forwarded; in chunks, as soon as it is so."""
    bounds = ProxySettings(body_max=10, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy:
        for raw in (post(b"Content-Length: 11", body=b"x" * 11), chunked(b"b\r\n" + b"x" * 11 + b"\r\n")):
            async with proxy.client() as client:
                assert 413 == (await client.exchange(raw)).status
        async with proxy.client() as client:
            assert 200 == (await client.exchange(chunked(b"a\r\n" + b"x" * 10 + b"\r\n0\r\n\r\n"))).status
        assert [b"x" * 10] == [seen.body for seen in upstream.seen]


async def test_what_an_exchange_was_is_told() -> None:
    """An observer hears who answered what, of which size, and in which time; of what cannot be read, too."""
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, limit="1/minute", dialect="intrace") as proxy,
        proxy.client() as client,
    ):
        answer = await client.exchange(post(b"Content-Length: 3", b"X-Request-Id: mine", body=b"abc"))
        await client.exchange(get(b"/x?secret"))
        await client.exchange(b"nonsense\r\n\r\n")

    first, second, third = proxy.exchanges
    assert ("", b"", 400, "proxy", 0) == third[:5]
    assert ("POST", b"/x", 200, "upstream", 3, 2, "mine") == (*first[:6], first.request_id)
    assert ("GET", b"/x?secret", 429, "judge", 0) == second[:5]
    assert 0 < first.upstream_ms <= first.duration_ms
    assert 0 == second.upstream_ms
    assert "mine" == answer.value("x-request-id") == upstream.seen[0].value("x-request-id")


async def test_errors_of_the_judge_are_ours() -> None:
    """Whatever the judge raises, the client gets a 500 in the dialect, and the upstream nothing."""

    class Broken:
        looks_at_paths = looks_at_bodies = False
        reserved_request = reserved_response = frozenset[bytes]()
        figures = frozenset[bytes]()

        async def judge(self, request: object) -> object:
            raise RuntimeError

    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        proxy.service.judge = Broken()  # type: ignore[assignment]
        answer = await client.exchange(get())

        assert (500, "application/problem+json") == (answer.status, answer.value("content-type"))
        assert [] == upstream.seen


async def test_full_duplex() -> None:
    """A response may begin before its request ends, and both go on; the connection ends with them."""

    async def echo(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        for _ in range(2):
            writer.write(await reader.readexactly(3))
        return True

    async with Upstream(echo).serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        client.send(post(b"Content-Length: 6"))
        head = await client.reader.readuntil(b"\r\n\r\n")
        client.send(b"abc")
        assert b"abc" == await client.reader.readexactly(3)
        client.send(b"def")
        assert b"def" == await client.reader.readexactly(3)
        assert b"Connection: close" in head
        assert b"" == await client.closed()


async def test_an_early_answer_ends_the_request() -> None:
    """Row 106: it is relayed, and neither connection is used again."""
    async with (
        Upstream(early).serving() as upstream,
        sidecar(upstream, bounds=ProxySettings(**SOON)) as proxy,
        proxy.client() as client,
    ):
        client.send(post(b"Content-Length: 1000000", body=b"x" * 100))
        answer = await client.response()

        assert (200, "close") == (answer.status, answer.value("connection"))
        assert b"" == await client.closed()
        await until(lambda: not upstream.open, "the upstream is let go")


async def early(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(OK)
    await reader.read()
    return False


async def test_a_crowd_of_one_address_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """It may be a balancer: the line says what to do about it, and does not name the address."""
    bounds = ProxySettings(connections_per_address_max=1, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy, proxy.client() as first:
        assert 200 == (await first.exchange(get())).status
        for _ in range(3):
            async with proxy.client() as another:
                assert b"" == await another.closed()

    (line,) = [record.getMessage() for record in caplog.records if "address" in record.getMessage()]
    assert "trusted_proxies" in line
    assert "127.0.0.1" not in line
    assert 3 == proxy.service.turned_away
