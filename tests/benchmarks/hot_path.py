"""CPU of one request through uvicorn's protocol, an application and the limiter, without a network on the HTTP side.

    python -m tests.benchmarks.hot_path [--frameworks starlette fastapi] [--connections 64] [--only NAME...]

The protocol is fed by hand and writes to a transport that only counts, all in this process, so that what other
processes do disturbs little: trust the least of the bursts. To a server's own CPU the kernel adds about as much again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import time
from typing import TYPE_CHECKING, Any

import uvloop
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("bare", "three headers, no limiter", "ratelimiter, memory", "ratelimiter, Redis")
REQUESTS = [b"GET / HTTP/1.1\r\nHost: localhost\r\nX-API-Key: key-%04d\r\n\r\n" % n for n in range(1000)]
BURSTS = 60
ROUNDS = 12  # of all connections, per burst


class Counting(asyncio.Transport):
    """A client that takes every answer; *answered* hears of each."""

    def __init__(self, answered: Callable[[], None]) -> None:
        super().__init__({"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)})
        self._answered = answered

    def write(self, data: Any) -> None:
        if data.endswith(b"}"):  # the body: this application's is JSON
            self._answered()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class Client:
    """So many connections, all of which ask at once, and again when all are answered."""

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop, connections: int) -> None:
        config = Config(app, access_log=False, log_level="error", lifespan="off", loop="none")
        config.load()
        self._loop = loop
        self._protocols = [HttpToolsProtocol(config, ServerState(), {}, loop) for _ in range(connections)]
        for protocol in self._protocols:
            protocol.connection_made(Counting(self._answered))
        self._missing = 0
        self._all: asyncio.Future[None]
        self._asked = 0

    def _answered(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._all.set_result(None)

    async def burst(self) -> float:
        """CPU of this process per request, in microseconds."""
        begun_s = time.process_time()
        for _ in range(ROUNDS):
            self._missing = len(self._protocols)
            self._all = self._loop.create_future()
            for protocol in self._protocols:
                self._asked = (self._asked + 1) % len(REQUESTS)
                protocol.data_received(REQUESTS[self._asked])
            await self._all
        return (time.process_time() - begun_s) / ROUNDS / len(self._protocols) * 1e6


async def compare(framework: str, names: list[str], connections: int) -> None:
    """Every application in turn, burst after burst."""
    from tests.benchmarks.peer_apps import CONTESTANTS  # reads the environment

    loop = asyncio.get_running_loop()
    clients = {name: Client(CONTESTANTS[name](framework), loop, connections) for name in names}
    seen: dict[str, list[float]] = {name: [] for name in names}
    for client in clients.values():
        for _ in range(5):
            await client.burst()
    gc.collect()
    gc.freeze()
    for _ in range(BURSTS):
        for name, client in clients.items():
            seen[name].append(await client.burst())
    print(f"\n{framework}, {connections} connections, CPU us per request")
    print(f"  {'':28} {'least':>8} {'median':>8} {'added':>8}")
    for name, values in seen.items():
        added = min(values) - min(seen[names[0]])
        print(f"  {name:28} {min(values):8.2f} {sorted(values)[len(values) // 2]:8.2f} {added:8.2f}")


def main() -> None:
    """Print one table per framework."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frameworks", nargs="+", default=["starlette", "fastapi"])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--only", nargs="+", default=list(NAMES))
    chosen = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with RedisServer() as server:
        os.environ["BENCHMARK_REDIS"] = server.url
        os.sched_setaffinity(server.pid, {cores[-1]})
        os.sched_setaffinity(0, {cores[0]})
        for framework in chosen.frameworks:
            uvloop.run(compare(framework, chosen.only, chosen.connections))


if __name__ == "__main__":
    main()
