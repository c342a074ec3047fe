"""The proxy does what it says: a fault that is none would prove nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.proxy import FIN, RST, Fault, FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """A proxy before something that gives back what it gets."""
    writers = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with FaultProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def asked(streams: Streams, data: bytes, size: int = 0) -> bytes:
    reader, writer = streams
    writer.write(data)
    async with asyncio.timeout(5):
        return await reader.readexactly(size or len(data))


async def test_passes_on(proxy: FaultProxy) -> None:
    """Without a fault it is as if it were not there."""
    async with connected(proxy) as streams:
        assert b"hello" == await asked(streams, b"hello")


async def test_latency_and_slices(proxy: FaultProxy) -> None:
    """Answers are late, or come in pieces; both at once, on connections that are open, and not after healing."""
    async with connected(proxy) as streams:
        for fault, least_s in (
            (Fault(latency_ms=50, jitter_ms=10), 0.05),
            (Fault(slice_bytes=1, slice_ms=20), 0.08),
            (Fault(latency_ms=30, slice_bytes=2, slice_ms=20), 0.07),
        ):
            proxy.fault = fault
            begun_s = time.monotonic()
            assert b"hello" == await asked(streams, b"hello")
            assert least_s <= time.monotonic() - begun_s
        proxy.heal()
        begun_s = time.monotonic()
        assert b"hello" == await asked(streams, b"hello")
        assert time.monotonic() - begun_s < 0.05


@pytest.mark.parametrize("end", [RST, FIN])
async def test_limit(proxy: FaultProxy, end: str) -> None:
    """After so many bytes of answers a connection ends, with a reset or in good order."""
    proxy.fault = Fault(limit_bytes=3, limit_end=end)
    async with connected(proxy) as (reader, writer):
        writer.write(b"hello")
        if end == FIN:
            assert b"hel" == await reader.read()
        else:
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(5)


async def test_swallow(proxy: FaultProxy) -> None:
    """What was used while everything was swallowed stays open and dead; new connections are well after healing."""
    async with connected(proxy) as streams, connected(proxy) as idle:
        proxy.fault = Fault(swallow=True)
        streams[1].write(b"hello")
        await asyncio.sleep(0.02)
        proxy.heal()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asked(streams, b"hello")
        assert b"hello" == await asked(idle, b"hello")


async def test_garbage_and_duplicates(proxy: FaultProxy) -> None:
    """Something else is answered, or the same twice, once."""
    async with connected(proxy) as streams:
        proxy.fault = Fault(garbage=b"what?")
        assert b"what?" == await asked(streams, b"hello")
        proxy.heal()
        proxy.duplicate_next_reply()
        assert b"hellohello" == await asked(streams, b"hello", 10)
        assert b"again" == await asked(streams, b"again")
        proxy.repeat_before_next_reply()
        assert b"againnext" == await asked(streams, b"next", 9)


async def test_refuse_and_reset(proxy: FaultProxy) -> None:
    """Connections are reset, or refused until it listens again."""
    async with connected(proxy) as (reader, writer):
        assert b"hello" == await asked((reader, writer), b"hello")
        proxy.reset_peers()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    await proxy.listen()
    async with connected(proxy) as streams:
        assert b"hello" == await asked(streams, b"hello")
