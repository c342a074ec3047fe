"""A connection of ours without a socket, and the other end of it: bytes by hand, or the library h2."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import hpack

from ratelimiter.service.grpc import frames
from ratelimiter.service.grpc.calls import Call, CallError, Server, Status
from ratelimiter.service.grpc.connection import Connection
from ratelimiter.service.grpc.health import CHECK, WATCH, Health

if TYPE_CHECKING:
    from collections.abc import Iterable

ECHO, FAIL, WAIT, YIELD, BREAK = (f"/test.Echo/{name}" for name in ("Echo", "Fail", "Wait", "Yield", "Break"))


class MemoryTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = self.aborted = self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written += data

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("192.0.2.7", 4711) if name == "peername" else default

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Peer:
    """A server connection that answers `ECHO`, and its client's raw bytes."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport = MemoryTransport()
        self.connections: set[Connection] = set()
        self.calls: list[Call] = []
        self.held: list[asyncio.Future[bytes]] = []
        self.told: list[tuple[str, Status]] = []
        self.health = Health(["test.Echo"])
        methods = {ECHO: self._echo, FAIL: self._fail, WAIT: self._wait, CHECK: self.health.check}
        methods |= {YIELD: self._yield, BREAK: self._break}
        self.server = Server(methods, {WATCH: self.health.watch}, self.loop, done=self._done)
        self.connection = Connection(self.server, self.loop, self.connections)
        self.connection.connection_made(self.transport)
        self.encoder = hpack.Encoder()

    async def _echo(self, call: Call) -> bytes:
        self.calls.append(call)
        return call.message

    async def _fail(self, call: Call) -> bytes:
        raise CallError(Status.UNAVAILABLE, "100 % of “stores” are out\n")

    async def _yield(self, call: Call) -> bytes:
        await asyncio.sleep(0)
        return call.message

    async def _break(self, call: Call) -> bytes:
        raise KeyError

    async def _wait(self, call: Call) -> bytes:
        self.calls.append(call)
        future: asyncio.Future[bytes] = self.loop.create_future()
        self.held.append(future)
        return await future

    def _done(self, path: str, status: Status, _seconds: float) -> None:
        self.told.append((path, status))

    def feed(self, *parts: bytes) -> None:
        """Let the server read."""
        self.connection.data_received(b"".join(parts))

    def open(self, *settings: tuple[frames.Setting, int]) -> None:
        """Send preface and SETTINGS."""
        self.feed(frames.PREFACE, frames.settings(dict(settings)))

    def head(self, path: str = ECHO, *more: tuple[str, str], method: str = "POST") -> bytes:
        """A header block of a call."""
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "limiter")]
        fields += [("content-type", "application/grpc"), ("te", "trailers"), *more]
        return self.encoder.encode(fields)

    def headers(self, stream: int, path: str = ECHO, *more: tuple[str, str], flags: int = frames.END_HEADERS) -> bytes:
        """A HEADERS frame of a call."""
        return frames.frame(frames.HEADERS, flags, stream, self.head(path, *more))

    def written(self) -> list[tuple[int, int, int, bytes]]:
        """Type, flags, stream and payload of each frame that the server has written since it was asked last."""
        data, found, at = bytes(self.transport.written), [], 0
        self.transport.written.clear()
        while at < len(data):
            high, low, kind, flags, stream = frames.HEAD.unpack_from(data, at)
            at += frames.HEAD_BYTES
            length = high << 8 | low
            found.append((kind, flags, stream, data[at : at + length]))
            at += length
        return found

    def ends(self) -> frames.ErrorCode | None:
        """The reason of the GOAWAY that the server has written last."""
        codes = [int.from_bytes(payload[4:8], "big") for kind, _, _, payload in self.written() if kind == frames.GOAWAY]
        return frames.ErrorCode(codes[-1]) if codes else None

    def resets(self) -> list[tuple[int, frames.ErrorCode]]:
        """Stream and reason of each RST_STREAM since the server was asked last."""
        return [
            (stream, frames.ErrorCode(int.from_bytes(payload, "big")))
            for kind, _, stream, payload in self.written()
            if kind == frames.RST_STREAM
        ]


class H2Client:
    """The library h2 as the client of a `Peer`: it complains of whatever a server must not do."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []

    def call(self, path: str, message: bytes, *more: tuple[str, str], end: bool = True) -> int:
        """Begin a call, at most as much of it as there is room for."""
        stream = self.h2.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "limiter")]
        self.h2.send_headers(stream, [*fields, ("content-type", "application/grpc"), ("te", "trailers"), *more])
        if end:
            self.h2.send_data(stream, message, end_stream=True)
        return stream

    def turn(self, pieces: Iterable[bytes] | None = None) -> None:
        """Exchange what both have to say until neither has."""
        while True:
            sent = [self.h2.data_to_send()] if pieces is None else list(pieces)
            pieces = None
            for piece in sent:
                if piece and not self.peer.transport.closed:
                    self.peer.feed(piece)
            answered = bytes(self.peer.transport.written)
            self.peer.transport.written.clear()
            if answered:
                self.events += self.h2.receive_data(answered)
            elif not any(sent):
                return

    def body(self, stream: int) -> bytes:
        """The content of a response so far."""
        return b"".join(
            event.data
            for event in self.events
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream and event.data is not None
        )

    def trailers(self, stream: int) -> dict[str, str]:
        """The trailers of a response; those of a response that has nothing else are its head."""
        kinds = h2.events.TrailersReceived | h2.events.ResponseReceived
        found = [event for event in self.events if isinstance(event, kinds) and event.stream_id == stream]
        return dict(found[-1].headers or ()) if found else {}  # type: ignore[arg-type]  # decoded, as was asked
