"""A sidecar without sockets: what is fed in and what comes out are bytes in this process."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ratelimiter.config import loader
from ratelimiter.proxy.client_connection import ClientConnection
from ratelimiter.proxy.pool import Target
from ratelimiter.proxy.proxy import Proxy
from ratelimiter.proxy.settings import ProxySettings
from ratelimiter.proxy.upstream_connection import UpstreamConnection
from ratelimiter.sidecar.judge import LimiterJudge
from ratelimiter.stores.memory import MemoryStore


class MemoryTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("203.0.113.7", 50000)})
        self.written = b""
        self.ended = False  # whether nothing more is written
        self.closing = False
        self.aborted = False  # whether what was written may not have arrived

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended
        self.written += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = self.closing = True

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def new_gate() -> LimiterJudge:
    """One that lets everybody in. Making it takes milliseconds, so who needs many benches makes one."""
    return LimiterJudge(loader.build(limit="1000000000/minute", environ={}), MemoryStore())


class Bench:
    """One client's connection and one connection to the upstream, each with its bytes."""

    def __init__(self, *, bounds: ProxySettings | None = None, gate: LimiterJudge | None = None) -> None:
        gate = gate or new_gate()
        loop = asyncio.get_running_loop()
        bounds = replace(bounds or ProxySettings(), upstream_connections_max=1)  # which any request then takes
        self.service = Proxy(Target("app.example", 80), gate, gate, bounds, loop)
        self.client = ClientConnection(self.service, b"http")
        self.to_client = MemoryTransport()
        self.client.connection_made(self.to_client)
        self.upstream = UpstreamConnection(self.service.pool)
        self.to_upstream = MemoryTransport()
        self.upstream.connection_made(self.to_upstream)
        self.service.pool.add(self.upstream)
        self.service.pool.keep(self.upstream)

    def close(self) -> None:
        """Let go of the timers."""
        self.client.connection_lost(None)
        self.upstream.connection_lost(None)
