"""Faults between us and the server: rows F1-F9 and F21-F31 as far as the network is to blame, and F47."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.core.receipt import STORE
from ratelimiter.errors import Kind
from tests.faults.drill import HEALTHY, Drill, Service
from tests.faults.proxy import FIN, RST, Fault, FaultProxy
from tests.faults.server import PASSWORD, Server
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


async def test_f01_server_that_was_killed(server: Server) -> None:
    """A server that goes away costs nobody a decision, and is used again when it is back."""
    async with Drill(server.url, losses=1) as drill:
        await drill.settled()
        with drill.fault():
            server.kill()
            await drill.endured()
        await asyncio.to_thread(server.start)
        await drill.recovered()
    drill.check(1, "`kill -9`, then started again")


async def test_f01_server_that_is_not_there_yet() -> None:
    """A process starts without its store, and uses it as soon as it is there."""
    server = Server()
    async with Drill(server.url) as drill:
        try:
            with drill.fault():
                await drill.endured()
            assert not any(sample.source == STORE for sample in drill.samples())
            await asyncio.to_thread(server.start)
            await drill.recovered()
        finally:
            server.close()
    drill.check(1, "a closed port; Redis is started later")
    assert {Kind.UNREACHABLE} == set(drill.kinds())


@contextlib.contextmanager
def black_hole(port: int) -> Iterator[None]:
    """A port whose queue of connections is full, so that further ones are dropped without a word."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield


async def test_f02_swallowed_connections() -> None:
    """Where not even a connection comes about, nobody waits past the deadline and attempts do not pile up."""
    server = Server()
    async with Drill(server.url) as drill:
        try:
            with drill.fault(), black_hole(server.port):
                await drill.endured(at_least_s=1.5)
            await asyncio.to_thread(server.start)
            await drill.recovered()
        finally:
            server.close()
    drill.check(2, "a listening socket whose queue is full; Redis is started on that port later")


async def test_f03_stopped_server(server: Server) -> None:
    """A server that stands still holds nobody up, and what it was sent counts at most once each."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            server.freeze()
            await drill.endured(at_least_s=1.2)
            server.thaw()
        await drill.recovered()
    drill.check(3, "SIGSTOP, then SIGCONT")
    assert Kind.TIMEOUT in drill.kinds()


def debug_sleep(server: Server, seconds: float) -> threading.Thread:
    def sleep() -> None:
        with server.client() as client:
            client.execute_command("DEBUG", "SLEEP", seconds)

    thread = threading.Thread(target=sleep)
    thread.start()
    return thread


async def test_f05_slow_server(server: Server) -> None:
    """A server that does its work too late: decisions come in time, late answers reach nobody."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            sleeper = debug_sleep(server, 0.6)
            await asyncio.to_thread(sleeper.join)
        await drill.recovered()
    drill.check(5, "DEBUG SLEEP 0.6")
    assert Kind.TIMEOUT in drill.kinds()


async def test_f06_paused_writes(server: Server) -> None:
    """A server that answers reads and holds back writes is out, as far as we are concerned."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with server.client() as client:
            with drill.fault():
                client.client_pause(60_000, all=False)
                await drill.endured()
                client.client_unpause()
            await drill.recovered()
    drill.check(6, "CLIENT PAUSE WRITE")


@pytest.mark.parametrize("latency_ms", [12, 80, 200])
async def test_f08_latency(unhurt: Server, latency_ms: int) -> None:
    """Below half the deadline latency changes nothing, as who comes while batches are under way waits for one of them
    and then for his own; above the deadline decisions come at the deadline, without the store.
    """
    async with FaultProxy(unhurt.port) as proxy, Drill(Server.url_of(proxy.port)) as drill:
        await drill.settled()
        with drill.fault():
            proxy.fault = Fault(latency_ms=latency_ms, jitter_ms=5)
            if latency_ms < 40:
                await drill.flowed()
            else:
                await drill.endured()
            proxy.heal()
        await drill.recovered()
    drill.check(8, f"proxy: every answer {latency_ms} to {latency_ms + 5} ms later")
    if latency_ms < 40:
        assert {} == drill.kinds()


async def test_f09_dripping_answer(unhurt: Server) -> None:
    """An answer that comes byte by byte is no answer when the deadline is there."""
    async with FaultProxy(unhurt.port) as proxy, Drill(Server.url_of(proxy.port)) as drill:
        await drill.settled()
        with drill.fault():
            proxy.fault = Fault(slice_bytes=1, slice_ms=30)
            await drill.endured()
            proxy.heal()
        await drill.recovered()
    drill.check(9, "proxy: one byte every 30 ms")


@pytest.mark.parametrize(("row", "end", "kind"), [(26, RST, "a reset"), (27, FIN, "the end")])
async def test_f26_f27_cut_answers(unhurt: Server, row: int, end: str, kind: str) -> None:
    """An answer that breaks off is no answer; what was asked may have been counted, and is not asked again."""
    async with FaultProxy(unhurt.port) as proxy, Drill(Server.url_of(proxy.port)) as drill:
        await drill.settled()
        with drill.fault():
            proxy.fault = Fault(limit_bytes=3, limit_end=end)
            await drill.endured()
            proxy.heal()
        await drill.recovered()
    drill.check(row, f"proxy: {kind} after 3 bytes of every connection")
    assert Kind.DISCONNECTED in drill.kinds()


async def test_f28_dead_connection(unhurt: Server) -> None:
    """Connections that nothing passes through any more are given up, and new ones are made."""
    async with FaultProxy(unhurt.port) as proxy, Drill(Server.url_of(proxy.port)) as drill:
        await drill.settled()
        with drill.fault():
            proxy.fault = Fault(swallow=True)
            await drill.endured(at_least_s=1.2)
            proxy.heal()
        await drill.recovered()
    drill.check(28, "proxy: swallows both directions, and that for ever on every connection it has seen")


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"\x00" * 64]
)
async def test_f29_garbage(unhurt: Server, garbage: bytes) -> None:
    """What no Redis server says is nobody's answer."""
    async with FaultProxy(unhurt.port) as proxy, Drill(Server.url_of(proxy.port)) as drill:
        await drill.settled()
        with drill.fault():
            proxy.fault = Fault(garbage=garbage)
            await drill.endured()
            proxy.heal()
        await drill.recovered()
    drill.check(29, f"proxy: answers {garbage[:8]!r}...")
    assert Kind.PROTOCOL in drill.kinds()


async def test_f30_duplicated_answer(unhurt: Server) -> None:
    """An answer that comes twice costs a connection, and never does anybody get what was another's."""
    async with FaultProxy(unhurt.port) as proxy, Drill(Server.url_of(proxy.port)) as drill:
        await drill.settled()
        with drill.fault():
            for _ in range(20):
                proxy.duplicate_next_reply()
                await drill.until(lambda: not proxy.duplicates, "an answer has passed twice")
                await drill.flowed(0.02)
        await drill.recovered()
    drill.check(30, "proxy: one answer sent twice, 20 times")
    assert proxy.accepted > 3


async def test_f30_stale_answer(unhurt: Server) -> None:
    """An answer that comes again when the next one is awaited is known for what it is."""
    async with FaultProxy(unhurt.port) as proxy, Drill(Server.url_of(proxy.port)) as drill:
        await drill.settled()
        with drill.fault():
            for _ in range(20):
                proxy.repeat_before_next_reply()
                await drill.until(lambda: not proxy.stale, "an answer has come again")
                await drill.flowed(0.02)
        await drill.recovered()
    drill.check(30, "proxy: the answer to another call sent before one's own, 20 times")
    assert Kind.MISMATCH in drill.kinds()


async def test_f23_reset_of_all_connections(unhurt: Server) -> None:
    """Connections that break all at once come back one per limiter."""
    async with FaultProxy(unhurt.port) as proxy, Drill(Server.url_of(proxy.port)) as drill:
        await drill.settled()
        with drill.fault():
            for _ in range(5):
                proxy.reset_peers()
                await drill.flowed(0.1)
        await drill.recovered()
        accepted = proxy.accepted
    drill.check(23, "proxy: every connection reset, 5 times")
    assert accepted <= 3 * 6 * 2


async def test_f23_restart_under_a_crowd(server: Server) -> None:
    """A server that is started again while many wait for it meets no storm of connections."""
    async with Drill(server.url, losses=1) as drill:
        await drill.settled()
        stop = asyncio.Event()

        async def keep_asking(service: Service, number: int) -> None:
            while not stop.is_set():
                await service.ask("/wide/103", f"key-{drill.token}-{service.mode}-{number}", 103)
                await asyncio.sleep(0.05)

        crowd = [
            asyncio.create_task(keep_asking(service, number))
            for service in drill.services.values()
            for number in range(30)
        ]
        with drill.fault():
            server.kill()
            await drill.endured(at_least_s=0.3)
        await asyncio.to_thread(server.start)
        await drill.recovered()
        stop.set()
        await asyncio.gather(*crowd)
        with server.client() as client:
            connections = client.info("stats")["total_connections_received"]
    drill.check(23, "`kill -9`, then started again, under 90 callers more", crowd=90)
    assert connections < 25  # some of them of those who look whether it is there


async def test_f01_refused_by_the_network(unhurt: Server) -> None:
    """A port that closes and opens again, with the data intact: nobody gets a second limit."""
    async with FaultProxy(unhurt.port) as proxy, Drill(Server.url_of(proxy.port)) as drill:
        await drill.settled()
        with drill.fault():
            proxy.refuse()
            await drill.endured()
            await proxy.listen()
        await drill.recovered()
    drill.check(1, "proxy: refuses, then listens again")


async def test_f47_name_that_does_not_resolve(unhurt: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nobody knows is an outage that ends when somebody does."""
    real = socket.getaddrinfo
    async with Drill(Server.url_of(unhurt.port, "store.invalid")) as drill:
        with drill.fault():
            await drill.endured()
            monkeypatch.setattr(socket, "getaddrinfo", lambda _, *args, **more: real("127.0.0.1", *args, **more))
        await drill.recovered()
    drill.check(47, "a host name below .invalid; later it resolves")


async def test_f47_resolver_that_hangs(unhurt: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that does not answer holds up no decision, and few threads."""
    real, hang = socket.getaddrinfo, threading.Event()

    def hanging(_: object, *args: Any, **more: Any) -> object:
        hang.wait(10)
        return real("127.0.0.1", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    before = threading.active_count()
    async with Drill(Server.url_of(unhurt.port, "store.invalid")) as drill:
        with drill.fault():
            await drill.endured(at_least_s=1.2)
            threads = threading.active_count() - before
            hang.set()
        await drill.recovered()
    drill.check(47, "a resolver that hangs, in place of the system's; later it answers")
    assert threads <= 2
    assert {Kind.TIMEOUT, Kind.UNREACHABLE} >= set(drill.kinds())
    assert all(sample.source not in HEALTHY for sample in drill.during())


@pytest.mark.parametrize("way", ["TLS", "a unix socket"])
async def test_f01_f03_other_ways_in(way: str, tmp_path: Path) -> None:
    """A server that is reached through TLS or a unix socket is no different: gone, back, and standing still."""
    if way == "TLS":
        cert, key, port = *certificate(tmp_path), free_port()
        server = Server(tls_port=str(port), tls_cert_file=cert, tls_key_file=key, tls_auth_clients="no")
        url = f"rediss://:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={cert}"
    else:
        server = Server()
        url = f"unix://:{PASSWORD}@{server.socket}"
    with server:
        async with Drill(url, losses=1) as drill:
            await drill.settled()
            with drill.fault():
                server.kill()
                await drill.endured()
            await asyncio.to_thread(server.start)
            await drill.recovered()
            with drill.fault():
                server.freeze()
                await drill.endured()
                server.thaw()
            await drill.recovered()
        drill.check(1, f"over {way}: `kill -9` and started again; then SIGSTOP and SIGCONT", fds=6)


def certificate(directory: Path) -> tuple[str, str]:
    """Certificate and key for localhost."""
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*words, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key
