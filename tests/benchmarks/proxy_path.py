"""CPU of one request through the proxy's own code and the limiter behind it, without sockets.

    python -m tests.benchmarks.proxy_path [--watched] [--requests N] [--profile]

The protocols are fed by hand and write to transports that answer at once, all in this process, so that what other
processes do disturbs little: trust the least of the bursts. The kernel adds about as much again; see `sidecar`.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import time
from itertools import cycle
from typing import Any

import uvloop

from ratelimiter.config import loader
from ratelimiter.engine.observer import NULL_OBSERVER, Observer
from ratelimiter.proxy.client_connection import ClientConnection
from ratelimiter.proxy.pool import Target
from ratelimiter.proxy.proxy import Proxy
from ratelimiter.proxy.settings import ProxySettings
from ratelimiter.proxy.upstream_connection import UpstreamConnection
from ratelimiter.sidecar.judge import LimiterJudge
from ratelimiter.stores.memory import MemoryStore

HEAD = (
    b"GET /v1/items%d HTTP/1.1\r\nHost: 127.0.0.1:18200\r\n"
    b"X-API-Key: k\r\nUser-Agent: benchmark/1.0\r\nAccept: %s\r\n\r\n"
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 21 Nov 2026 02:00:0%d GMT\r\n"
    b'Content-Type: application/json\r\nContent-Length: 18\r\nConnection: keep-alive\r\n\r\n{"hello": "world"}'
)
# What a connection has just seen it need not read again: so as clients and upstreams mostly are, and as none is.
KINDS = {
    "the same again": ([HEAD % (1, b"application/json")], [RESPONSE % 0]),
    "other targets, new answers": (
        [HEAD % (n, b"application/json") for n in range(2)],
        [RESPONSE % n for n in range(2)],
    ),
    "new fields, new answers": ([HEAD % (n, b"a/%d" % n) for n in range(2)], [RESPONSE % n for n in range(2)]),
}
BURSTS, ROUNDS = 60, 500


class Wire(asyncio.Transport):
    """Takes everything; if it belongs to an upstream, it answers."""

    def __init__(self, upstream: UpstreamConnection | None = None) -> None:
        super().__init__({"peername": ("127.0.0.1", 50000)})
        self.upstream = upstream
        self.answers = cycle([b""])
        self.written = 0

    def write(self, data: Any) -> None:
        self.written += 1
        if self.upstream is not None:
            self.upstream.data_received(next(self.answers))

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class Quiet(Observer):
    """An observer, so that exchanges and decisions are told."""

    def exchanged(self, exchange: object) -> None: ...

    def decided(self, decision: object, hits: object, seconds: float) -> None: ...


async def compare(*, watched: bool, profile: bool) -> None:
    """Print microseconds per request: admitted and refused."""
    loop = asyncio.get_running_loop()
    observer = Quiet() if watched else None
    gc.freeze()
    for limit in ("1000000000/minute", "1/hour"):
        policy = loader.build(limit=limit, principal="header:X-API-Key", environ={})
        gate = LimiterJudge(policy, MemoryStore(), observer=observer or NULL_OBSERVER)
        service = Proxy(Target("127.0.0.1", 1), gate, gate, ProxySettings(), loop, observer=observer)
        upstream = UpstreamConnection(service.pool)
        answering = Wire(upstream)
        upstream.connection_made(answering)
        service.pool.keep(upstream)
        for name, (requests, answers) in KINDS.items():
            answering.answers = cycle(answers)
            client = ClientConnection(service, b"http")
            wire = Wire()
            client.connection_made(wire)
            seen = []
            profiler = cProfile.Profile()
            for _ in range(BURSTS):
                await asyncio.sleep(0)
                if profile:
                    profiler.enable()
                begun_s = time.process_time()
                for _ in range(ROUNDS):
                    for request in requests:
                        client.data_received(request)
                seen.append((time.process_time() - begun_s) / ROUNDS / len(requests) * 1e6)
                profiler.disable()
            assert wire.written == BURSTS * ROUNDS * len(requests)
            print(f"{limit:18} {name:26} least {min(seen):6.2f}  median {sorted(seen)[BURSTS // 2]:6.2f} us")
            if profile:
                pstats.Stats(profiler).sort_stats("tottime").print_stats(28)
            client.abort()


def main() -> None:
    """Print a line per kind of request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watched", action="store_true", help="tell somebody, as with an admin listener")
    parser.add_argument("--profile", action="store_true", help="print where it goes, instead")
    chosen = parser.parse_args()
    uvloop.run(compare(watched=chosen.watched, profile=chosen.profile))


if __name__ == "__main__":
    main()
