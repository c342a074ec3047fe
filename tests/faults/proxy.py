"""A TCP proxy that does on purpose what networks do by accident; it knows nothing of what is spoken.

    async with FaultProxy(server.port) as proxy:
        proxy.fault = Fault(latency_ms=80, jitter_ms=10)  # from now on, on connections that are open, too
        proxy.heal()

Faults are done to what the upstream answers; `swallow` and what resets or refuses is done to both directions.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Self, cast

FIN, RST = "fin", "rst"


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of the bytes that pass."""

    latency_ms: int = 0  # before an answer is passed on
    jitter_ms: int = 0  # at most so much more, by chance; order is kept
    slice_bytes: int = 0  # an answer comes in pieces of so many bytes; 0 in one
    slice_ms: int = 0  # between two pieces
    limit_bytes: int | None = None  # after so many bytes of answers from now on a connection ends...
    limit_end: str = RST  # ... like this
    swallow: bool = False  # a connection that was used meanwhile stays open, and nothing passes ever again
    garbage: bytes = b""  # what is answered instead of what the upstream says


NONE = Fault()


class FaultProxy:
    """Listens on a free local port and forwards to *port* on *host*, with `fault` in between.

    Attributes:
        fault: what is done now; may be changed at any time.
        port: where it listens.
        accepted: connections so far.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, seed: int = 1) -> None:
        self.upstream = (host, port)
        self.fault = NONE
        self.port = 0
        self.accepted = 0
        self.links: set[Link] = set()
        self.chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.duplicates = 0  # chunks of answers that are yet to be passed on twice
        self.stale = 0  # chunks of answers before which the one before is yet to be passed on again
        self._server: asyncio.Server | None = None

    def heal(self) -> None:
        """Do nothing any more; what has become of connections stays."""
        self.fault = NONE

    def duplicate_next_reply(self, times: int = 1) -> None:
        """Pass the next chunk that the upstream answers on twice."""
        self.duplicates = times

    def repeat_before_next_reply(self, times: int = 1) -> None:
        """Pass the last chunk that the upstream answered on once more, just before the next."""
        self.stale = times

    def reset_peers(self) -> None:
        """End every connection with a reset, on both sides."""
        for link in list(self.links):
            link.end(RST)

    async def listen(self) -> None:
        """Accept connections; after `refuse` on the same port as before."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Link(self), "127.0.0.1", self.port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Stop listening, and reset what is connected."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset_peers()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        await asyncio.sleep(0)  # for transports to close


class Link(asyncio.Protocol):
    """One connection through the proxy; itself the side of the client."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.fault = proxy.fault  # what `passed` is counted under
        self.passed = 0  # bytes of answers
        self.last = b""  # that the upstream answered
        self.dead = False  # something was swallowed: a middlebox has forgotten this connection
        self.client: asyncio.Transport | None = None
        self.upstream: asyncio.Transport | None = None
        self.unsent: list[bytes] = []
        self.free_s = 0.0  # when the answer before has been passed on
        self.due: deque[tuple[float, bytes]] = deque()  # what is to be passed on, and when
        self.loop = asyncio.get_running_loop()
        self.connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.client = cast("asyncio.Transport", transport)
        self.proxy.accepted += 1
        self.proxy.links.add(self)
        self.connecting = self.loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            transport, _ = await self.loop.create_connection(lambda: Answers(self), *self.proxy.upstream)
        except OSError:
            self.end(RST)
            return
        self.upstream = transport
        for data in self.unsent:
            self.upstream.write(data)

    def data_received(self, data: bytes) -> None:
        if self._swallows():
            return
        if self.upstream is None:
            self.unsent.append(data)
        else:
            self.upstream.write(data)

    def answered(self, data: bytes) -> None:
        """The upstream said *data*."""
        fault, proxy = self.proxy.fault, self.proxy
        if self._swallows():
            return
        if fault is not self.fault:
            self.fault, self.passed = fault, 0
        if fault.garbage:
            data = fault.garbage
        if proxy.stale and self.last:
            proxy.stale -= 1
            data, self.last = self.last + data, data
        else:
            self.last = data
        if proxy.duplicates:
            proxy.duplicates -= 1
            data += data
        delay_s = (fault.latency_ms + proxy.chance.uniform(0, fault.jitter_ms)) / 1000
        size = fault.slice_bytes or len(data)
        for start in range(0, len(data), size):
            due_s = max(self.free_s, self.loop.time() + delay_s)
            self._at(due_s, data[start : start + size])
            self.free_s = due_s + (fault.slice_ms / 1000 if fault.slice_bytes else 0)

    def _at(self, due_s: float, data: bytes) -> None:
        # One line for all, as timers that are due at the same time go off in any order.
        self.due.append((due_s, data))
        if len(self.due) == 1:
            self._pass_on_due()

    def _pass_on_due(self) -> None:
        while self.due and self.due[0][0] <= self.loop.time():
            self._pass_on(self.due.popleft()[1])
        if self.due:
            self.loop.call_at(self.due[0][0], self._pass_on_due)

    def _pass_on(self, data: bytes) -> None:
        fault = self.fault
        if self.client is None or self.client.is_closing():
            return
        if fault.limit_bytes is not None and self.passed + len(data) >= fault.limit_bytes:
            self.client.write(data[: fault.limit_bytes - self.passed])
            self.end(fault.limit_end)
            return
        self.passed += len(data)
        self.client.write(data)

    def _swallows(self) -> bool:
        self.dead = self.dead or self.proxy.fault.swallow
        return self.dead

    def end(self, how: str) -> None:
        """End both sides, with a reset or in good order."""
        self.proxy.links.discard(self)
        if self.connecting is not None and not self.connecting.done() and asyncio.current_task() is not self.connecting:
            self.connecting.cancel()
        for transport in (self.client, self.upstream):
            if transport is not None and not transport.is_closing():
                if how == RST:
                    sock = transport.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    transport.abort()
                else:
                    transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(RST if exc else FIN)


class Answers(asyncio.Protocol):
    """The side of the upstream."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def data_received(self, data: bytes) -> None:
        self.link.answered(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.link.dead:  # else the client never hears of it
            self.link.end(RST if exc else FIN)
