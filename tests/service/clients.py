"""A gRPC server of ours in a process of its own, for clients that are not ours.

    python -m tests.service.clients

It prints its port, then serves `/test.Echo/Echo` and health checks until it is stopped by SIGTERM, and then drains.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvloop

from ratelimiter.service.grpc.calls import Call, Server
from ratelimiter.service.grpc.health import CHECK, WATCH, Health
from ratelimiter.service.grpc.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Iterator

ECHO, LATER = "/test.Echo/Echo", "/test.Echo/Later"


async def _echo(call: Call) -> bytes:
    return call.message


async def _later(call: Call) -> bytes:
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.3, future.set_result, call.message)
    return await future


async def serve() -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    health = Health(["test.Echo"])
    server = Server({ECHO: _echo, LATER: _later, CHECK: health.check}, {WATCH: health.watch}, loop)
    listener = Listener(server, loop)
    sock = socket.create_server(("127.0.0.1", 0))
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await listener.start([sock])
    print(sock.getsockname()[1], flush=True)
    await stopped.wait()
    health.drain()
    health.close()
    await listener.drain(10)


@contextmanager
def served() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run the server; its port and its process."""
    process = subprocess.Popen([sys.executable, "-m", "tests.service.clients"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process
    finally:
        process.terminate()
        assert 0 == process.wait(15)
        process.stdout.close()


if __name__ == "__main__":
    uvloop.run(serve())
