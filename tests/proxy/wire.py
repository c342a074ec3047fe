"""Raw bytes both ways: a client that sends what it is told, an upstream that records, a sidecar between them."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ratelimiter.config import loader
from ratelimiter.proxy.addresses import Listen
from ratelimiter.proxy.lifecycle import Server
from ratelimiter.proxy.listener import bind
from ratelimiter.proxy.pool import Target
from ratelimiter.proxy.proxy import Proxy
from ratelimiter.proxy.settings import ProxySettings
from ratelimiter.sidecar.judge import LimiterJudge
from ratelimiter.stores.memory import MemoryStore

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ratelimiter.proxy.exchange_record import ExchangeRecord
    from ratelimiter.proxy.interfaces import Judge

    Handler = Callable[["Seen", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]

PATIENCE_S = 10  # a loaded machine needs a moment
PLENTY = "1000000000/minute"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Message:
    """One message, as it came over the wire."""

    first_line: str
    lines: list[str]
    body: bytes = b""
    trailers: list[str] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)  # statuses of the informational responses before it
    complete: bool = True

    @property
    def status(self) -> int:
        return int(self.first_line.split(" ")[1])

    def values(self, name: str) -> list[str]:
        """The values of every field line called *name*."""
        pairs = [line.partition(":") for line in self.lines]
        return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]

    def value(self, name: str) -> str | None:
        """The value of the one field line called *name*."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None


@dataclass
class Seen(Message):
    """A request as the upstream saw it."""

    @property
    def request(self) -> str:
        """Method and target."""
        return self.first_line.rpartition(" ")[0]


class Upstream:
    """Records every request and answers it as its *handler* does; with `OK` if it has none.

    Attributes:
        seen: the requests that came in full.
        opened: connections that were ever made.
        open: connections that are open now.
    """

    def __init__(self, handler: Handler | None = None) -> None:
        self.handler = handler
        self.seen: list[Seen] = []
        self.opened = 0
        self.open = 0
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=2**20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.opened += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._one(reader, writer):
                    pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head[:-4].split("\r\n")
        seen = Seen(first, lines)
        if self.handler is not None:
            return await self.handler(seen, reader, writer)
        await read_body(seen, reader)
        self.seen.append(seen)
        writer.write(OK if not first.startswith("HEAD") else OK[:-2])
        return True


def answering(*parts: bytes, then_close: bool = True, record: list[Seen] | None = None) -> Handler:
    """A handler that reads the request and sends *parts*, each by itself."""

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await read_body(seen, reader)
        if record is not None:
            record.append(seen)
        for part in parts:
            writer.write(part)
            await writer.drain()
        return not then_close

    return handle


async def read_body(message: Message, reader: asyncio.StreamReader, *, bodiless: bool = False) -> None:
    """Read what *message* says follows it."""
    if bodiless:
        return
    if message.values("transfer-encoding"):
        pieces = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            pieces.append(await reader.readexactly(size))
            assert b"\r\n" == await reader.readexactly(2)
        message.body = b"".join(pieces)
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            message.trailers.append(line[:-2].decode())
    elif message.values("content-length"):
        message.body = await reader.readexactly(int(message.values("content-length")[0]))


class Client:
    """A connection to the sidecar."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self, *, head: bool = False) -> Message:
        """The next final response.

        Args:
            head: whether it answers a HEAD.
        """
        interim: list[int] = []
        while True:
            async with asyncio.timeout(PATIENCE_S):
                raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = raw[:-4].split("\r\n")
            message = Message(first, lines, interim=interim)
            if message.status >= 200 or message.status == 101:
                break
            interim.append(message.status)
        async with asyncio.timeout(PATIENCE_S):
            bodiless = head or message.status in (101, 204, 304)
            try:
                await read_body(message, self.reader, bodiless=bodiless)
                if not bodiless and not message.values("content-length") and not message.values("transfer-encoding"):
                    message.body = await self.reader.read()
            except (asyncio.IncompleteReadError, ConnectionError):
                message.complete = False
        return message

    async def closed(self) -> bytes:
        """Wait until the sidecar closes; whatever it still sent."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def exchange(self, raw: bytes, *, head: bool = False) -> Message:
        self.send(raw)
        return await self.response(head=head)


class Sidecar:
    """A sidecar in this process."""

    def __init__(self, port: int, service: Proxy, server: Server, gate: LimiterJudge) -> None:
        self.port = port
        self.service = service
        self.server = server
        self.gate = gate
        self.exchanges: list[ExchangeRecord] = []

    def exchanged(self, exchange: ExchangeRecord) -> None:
        self.exchanges.append(exchange)

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20, **options)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                await writer.wait_closed()


@asynccontextmanager
async def sidecar(
    target: Upstream | Target,
    *,
    limit: str | None = PLENTY,
    bounds: ProxySettings | None = None,
    tls: ssl.SSLContext | None = None,
    families: tuple[str, ...] = ("x-forwarded",),
    store: Any = None,
    listen: Listen | None = None,
    judge: Judge | None = None,
    via: bytes = b"",
    **settings: Any,
) -> AsyncIterator[Sidecar]:
    """A sidecar in front of *target*; *judge* instead of a limiter if there is one."""
    policy = loader.build(limit=limit, environ={}, **settings)
    gate = LimiterJudge(policy, MemoryStore() if store is None else store)
    if isinstance(target, Upstream):
        target = Target("127.0.0.1", target.port)
    loop = asyncio.get_running_loop()
    bounds = bounds or ProxySettings(lame_duck_ms=0)
    service = Proxy(target, judge or gate, gate, bounds, loop, trusts=gate.trusts, families=families, via=via)
    sock = bind(listen or Listen("127.0.0.1"))
    server = Server(service, [sock], tls)
    name = sock.getsockname()
    made = Sidecar(0 if isinstance(name, str) else name[1], service, server, gate)
    service.observer = made
    await server.start()
    try:
        yield made
    finally:
        at_once = asyncio.Event()
        at_once.set()
        await server.drain(at_once)
        await until(lambda: not len(service), "all clients are gone")


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until *condition* holds."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + PATIENCE_S
    while not condition():
        assert loop.time() < end_s, f"not within {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.002)
