"""Goal: a process starts, serves and goes without failing anybody. Method: real sockets, real signals, short times."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.errors import ConfigError
from ratelimiter.proxy.addresses import Listen
from ratelimiter.proxy.listener import bind, bind_all, name_of, tls_context
from ratelimiter.proxy.pool import Target
from ratelimiter.proxy.settings import ProxySettings
from tests.proxy.inputs import get, post
from tests.proxy.wire import OK, Client, Upstream, read_body, sidecar, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.proxy.wire import Seen

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

SOON: dict[str, Any] = {"lame_duck_ms": 0, "grace_ms": 5000, "linger_ms": 100}


class Held(Upstream):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__(self._hold)
        self.let = asyncio.Event()

    async def _hold(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await read_body(seen, reader)
        self.seen.append(seen)
        await self.let.wait()
        writer.write(OK)
        return True


async def test_draining_fails_nobody() -> None:
    """Row 125: idle connections are closed, what is under way is finished, nobody new is let in."""
    async with Held().serving() as upstream, sidecar(upstream, bounds=ProxySettings(**SOON)) as proxy:
        assert proxy.server.ready
        async with proxy.client() as idle, proxy.client() as busy:
            busy.send(get(b"/1") + get(b"/2"))
            await until(lambda: upstream.seen, "the upstream has it")
            draining = asyncio.create_task(proxy.server.drain())
            assert b"" == await idle.closed()
            assert not proxy.server.ready
            with pytest.raises(OSError, match="refused"):
                await asyncio.open_connection("127.0.0.1", proxy.port)
            upstream.let.set()
            answer = await busy.response()
            await draining

            assert (200, "close") == (answer.status, answer.value("connection"))
            assert b"" == await busy.closed()
        assert ["GET /1"] == [seen.request for seen in upstream.seen]


async def test_a_lame_duck_still_serves() -> None:
    """Row 125: for a while new connections are taken in, and told that there is no second request."""
    bounds = ProxySettings(lame_duck_ms=60_000, grace_ms=5000)
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy:
        at_once = asyncio.Event()
        draining = asyncio.create_task(proxy.server.drain(at_once))
        await until(lambda: not proxy.server.ready, "it has begun")
        async with proxy.client() as client:
            answer = await client.exchange(get())
            assert (200, "close") == (answer.status, answer.value("connection"))
            assert b"" == await client.closed()
        at_once.set()
        await draining


async def test_grace_has_an_end() -> None:
    """What is not finished in time is cut off."""
    bounds = ProxySettings(lame_duck_ms=0, grace_ms=50)
    async with Held().serving() as upstream, sidecar(upstream, bounds=bounds) as proxy, proxy.client() as client:
        client.send(get())
        await until(lambda: upstream.seen, "the upstream has it")
        await proxy.server.drain()
        assert b"" == await client.closed()


async def test_unix_sockets_on_both_sides(tmp_path: Path) -> None:
    """A listener and an upstream may be files; a client without an address is nobody's, and trusted by nobody."""
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await reader.read()
        writer.close()
        gone.set()

    gone = asyncio.Event()
    behind, before = str(tmp_path / "app.sock"), str(tmp_path / "proxy.sock")
    upstream = await asyncio.start_unix_server(answer, behind)
    async with sidecar(Target(path=behind), listen=Listen(path=before), limit="1/minute") as proxy:
        reader, writer = await asyncio.open_unix_connection(before)
        client = Client(reader, writer)
        assert [200, 429] == [(await client.exchange(get())).status for _ in range(2)]
        writer.close()
        assert 1 == len(proxy.service.pool)
    await gone.wait()
    upstream.close()

    assert b"x-forwarded-for: unknown\r\n" in seen[0]
    assert b"Host: api.example\r\n" in seen[0]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    options = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*words, "-keyout", key, "-out", cert, *options], check=True, capture_output=True)
    return cert, key


async def test_a_listener_with_tls(certificate: tuple[str, str]) -> None:
    """Clients reach it, HTTP/1.1 is what is agreed on, and the upstream is told the scheme."""
    trusting = ssl.create_default_context(cafile=certificate[0])
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, tls=tls_context(*certificate), bounds=ProxySettings(**SOON)) as proxy,
    ):
        async with proxy.client(ssl=trusting, server_hostname="localhost") as client:
            assert "http/1.1" == client.writer.get_extra_info("ssl_object").selected_alpn_protocol()
            assert 200 == (await client.exchange(get())).status
            body = b"x" * 500_000
            assert 200 == (await client.exchange(post(b"Content-Length: 500000", body=body))).status
            assert 400 == (await client.exchange(b"nonsense\r\n\r\n")).status
            assert b"" == await client.closed()
        async with proxy.client() as plain:  # no TLS: closed without a word
            plain.send(get())
            await plain.closed()

    assert "https" == upstream.seen[0].value("x-forwarded-proto")
    assert body == upstream.seen[1].body


async def test_an_upstream_with_tls(certificate: tuple[str, str]) -> None:
    """It is spoken to if its certificate is trusted; else that is a 502."""
    cert, key = certificate

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.read()
        writer.close()
        gone.set()

    gone = asyncio.Event()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile=cert)
    for tls, status in ((trusting, 200), (ssl.create_default_context(), 502)):
        async with sidecar(Target("localhost", port, tls=tls)) as proxy, proxy.client() as client:
            assert status == (await client.exchange(get())).status
    await gone.wait()
    server.close()


def test_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    """Is told at the start."""
    (tmp_path / "cert.pem").write_text("nonsense")

    for file in ("cert.pem", "none.pem"):
        with pytest.raises(ConfigError, match=r"--tls-cert: .* cannot be used"):
            tls_context(str(tmp_path / file), None)


def test_a_port_that_is_taken() -> None:
    """Is told at the start, and where."""
    with bind(Listen("127.0.0.1")) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--listen: '127.0.0.1:{port}' cannot be bound"):
            bind(Listen("127.0.0.1", port))


def test_a_port_that_is_shared() -> None:
    """As many sockets as processes, all on one port."""
    sockets = [*chain(*bind_all(Listen("127.0.0.1"), 3))]

    assert 1 == len({name_of(sock) for sock in sockets})
    assert 3 == len(sockets)
    for sock in sockets:
        sock.close()


def test_a_unix_socket_that_was_left_behind(tmp_path: Path) -> None:
    """Is replaced; any other file is not."""
    path = str(tmp_path / "proxy.sock")
    bind(Listen(path=path)).close()
    again = bind(Listen(path=path))
    assert f"unix:{path}" == name_of(again)
    again.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be bound"):
        bind(Listen(path=str(tmp_path / "file")))


def test_ipv6_is_named_in_brackets() -> None:
    """As in URLs."""
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("there is no IPv6 here")
    with bind(Listen("::1")) as bound:
        assert name_of(bound).startswith("[::1]:")


def started(*flags: str) -> tuple[subprocess.Popen[str], str]:
    """A sidecar of its own process, and where it listens."""
    words = [sys.executable, "-m", "ratelimiter", "proxy", "--listen", "127.0.0.1:0", "--admin", "none"]
    process = subprocess.Popen([*words, "--limit", "1000/minute", *flags], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, line.split(" ")[0].removeprefix("http://")


async def fetched(address: str, raw: bytes = b"") -> int:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        return (await Client(reader, writer).exchange(raw or get(b"/x", b"Connection: close"))).status
    finally:
        writer.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_process_goes_when_it_is_told(workers: int) -> None:
    """SIGTERM is the beginning of the end, a second signal the end of it; the exit status is 0 either way."""
    async with Upstream().serving() as upstream:
        process, address = started("--upstream", f"http://127.0.0.1:{upstream.port}", "--workers", str(workers))
        await until_served(address)
        process.send_signal(signal.SIGTERM)
        assert 200 == await fetched(address)  # a lame duck
        process.send_signal(signal.SIGINT)
        assert 0 == await asyncio.to_thread(process.wait, 10)
        process.stdout.close()  # type: ignore[union-attr]


async def test_a_worker_that_falls_is_replaced() -> None:
    """The others serve on meanwhile, and in the end there are as many as before."""
    async with Upstream().serving() as upstream:
        process, address = started("--upstream", f"http://127.0.0.1:{upstream.port}", "--workers", "2")
        await until_served(address)
        await until(lambda: len(children(process.pid)) == 2, "both are there")
        before = children(process.pid)
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: len(set(children(process.pid)) - {before[0]}) == 2, "there are two again")
        await until_served(address)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert 0 == await asyncio.to_thread(process.wait, 10)
        process.stdout.close()  # type: ignore[union-attr]


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


async def until_served(address: str) -> None:
    for _ in range(500):
        try:
            assert 200 == await fetched(address)
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.01)
        else:
            return
    raise AssertionError(address)


def test_a_name_is_bound_at_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one port, also where any free one will do; an address that this machine has not is left out."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    workers = bind_all(Listen("name"), 2)
    try:
        names = [[name_of(sock) for sock in sockets] for sockets in workers]
        port = workers[0][0].getsockname()[1]
        assert [[f"[::1]:{port}", f"127.0.0.1:{port}"]] * 2 == names
    finally:
        for sock in chain(*workers):
            sock.close()

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
    with pytest.raises(ConfigError, match="'name:0' cannot be bound"):
        bind_all(Listen("name"), 1)


def test_nothing_stays_bound_if_one_address_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another has is no reason to serve half of what was asked for."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(ConfigError, match=f"'name:{port}' cannot be bound"):
            bind_all(Listen("name", port), 1)
        monkeypatch.undo()
        bind(Listen("127.0.0.1", port)).close()


def test_no_host_is_every_address() -> None:
    """Of both families."""
    (sockets,) = bind_all(Listen(""), 1)
    try:
        port = sockets[0].getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port)).close()
    finally:
        for sock in sockets:
            sock.close()
