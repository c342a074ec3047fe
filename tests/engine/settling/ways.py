"""The two ways to stand in front of a service, and a client that leaves when it likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.proxy.pool import Target
from ratelimiter.stores.factory import store_for
from tests.proxy.wire import Client, sidecar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ratelimiter.core.policy import Policy
    from tests.proxy.wire import Message

MIDDLEWARE, SIDECAR = "middleware", "sidecar"
WAYS = (MIDDLEWARE, SIDECAR)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    """*app* under uvicorn; its port."""
    config = uvicorn.Config(
        app, port=0, log_level="critical", proxy_headers=False, ws="websockets-sansio", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    # With the protocol named asyncio sends small answers at once, and not when the one before is acknowledged.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110  # uvicorn offers no event to wait for
        await asyncio.sleep(0.005)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def limited(way: str, service: Any, policy: Policy) -> AsyncIterator[int]:
    """*service* behind the limiter, one way or the other; the port that clients ask."""
    if way == MIDDLEWARE:
        app = RateLimitMiddleware(service, config=policy)
        async with served(app) as port:
            yield port
        await app.close()
        return
    async with served(service) as port:
        store = store_for(policy)
        async with sidecar(Target("127.0.0.1", port), limit=None, config=policy, store=store) as proxy:
            yield proxy.port
        await proxy.gate.limiter.close()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    """A connection, which is gone at once at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def raw(target: str, method: str = "GET", body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: api.example"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def ask(port: int, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> Message:
    """The answer to one request on a connection of its own."""
    async with connected(port) as client:
        return await client.exchange(raw(target, method, body, **headers))
