"""Connections to the upstream: kept, checked before they are used again, and given up at the first surprise."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections import deque
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ratelimiter.clock import stopwatch_s
from ratelimiter.proxy.body import BodyError, ChunkedBody, OpenBody, SizedBody
from ratelimiter.proxy.forwarded import has_body
from ratelimiter.proxy.happy_eyeballs import Dialer
from ratelimiter.proxy.head import END, REMEMBERED_MAX, HeadError, parse_response, roles
from ratelimiter.proxy.timeouts import Sweep

if TYPE_CHECKING:
    import ssl

    from ratelimiter.proxy.head import ResponseHead, Roles
    from ratelimiter.proxy.settings import Bounds

INFORMATIONAL_MAX = 20  # 1xx responses before the final one; more is no answer
BUFFERED_MAX = 65_536  # bytes waiting to be sent before the other side is paused
PROBED_AFTER_S = 0.05  # of idleness: what has just been used is alive, or the event loop knows better already


class CrowdedError(Exception):
    """All connections to the upstream that there may be are in use, and none was given back in time."""


class Target(NamedTuple):
    """Where requests go."""

    host: str = ""
    port: int = 0
    path: str = ""  # of a unix socket, instead
    tls: ssl.SSLContext | None = None

    @property
    def authority(self) -> bytes:
        """What a request without a Host is given as one."""
        if self.path:
            return b"localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()


class Receiver(Protocol):
    """Gets a response as it comes."""

    def informed(self, head: ResponseHead) -> None:
        """An informational response came; the final one is still to come."""

    def responded(self, head: ResponseHead, content: bytes, *, complete: bool) -> None:
        """The final response began, with the first of its content."""

    def switched(self, head: ResponseHead, data: bytes) -> None:
        """The upstream agreed to the upgrade; from now on everything goes through unread."""

    def content(self, data: bytes) -> None:
        """More content came; after an upgrade, whatever came."""

    def ended(self, trailers: list[bytes]) -> None:
        """The response is complete."""

    def upstream_failed(self, status: int, issue: str) -> None:
        """There will be no response, or no more of it; *status* is what a client is told who has been told nothing."""

    def upstream_full(self) -> None:
        """Send no more for now."""

    def upstream_ready(self) -> None:
        """Go on sending."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to the upstream, for one request at a time."""

    __slots__ = (
        "_body",
        "_bounds",
        "_buffer",
        "_head",
        "_head_read",
        "_head_roles",
        "_head_text",
        "_informational",
        "_method",
        "_paused",
        "_poll",
        "_pool",
        "_receiver",
        "_sent_all",
        "_transport",
        "_tunnel",
        "_upgrade",
        "idle_since_s",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._bounds = pool.bounds
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._receiver: Receiver | None = None
        self._method = ""
        self._upgrade = b""
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._head_text = b""  # of the one read last, if it was no longer than `REMEMBERED_MAX`
        self._head_read: ResponseHead = None  # type: ignore[assignment]  # until there is a text
        self._head_roles: Roles | None = None  # by which it was read
        self._body: SizedBody | ChunkedBody | OpenBody = SizedBody(0)
        self._informational = 0
        self._sent_all = False  # of the request
        self._tunnel = False
        self._paused = False
        self.idle_since_s = 0.0

    # --- For the pool

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is one
        """Keep the transport; of asyncio."""
        self._transport = transport
        transport.set_write_buffer_limits(BUFFERED_MAX)
        socket = transport.get_extra_info("socket")
        if socket is not None:
            self._poll = select.poll()
            self._poll.register(socket.fileno(), select.POLLIN | select.POLLRDHUP)

    @property
    def closed(self) -> bool:
        """Whether it is no more, or not yet, a connection."""
        return self._transport is None

    def untouched(self) -> bool:
        """Whether the other side has neither sent nor closed, as the kernel knows it: asked before a request leaves,
        because after that it could not be sent again.
        """
        return self._poll is None or not self._poll.poll(0)

    def close(self) -> None:
        """Give the connection up, whatever is under way."""
        self._receiver = None
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()

    # --- For the client's connection

    def send_head(self, receiver: Receiver, head: bytes, method: str, upgrade: bytes, *, complete: bool) -> None:
        """Begin a request.

        Args:
            receiver: who gets the response.
            head: as it is sent; a body that has come already may follow.
            method: of the request, on which depends whether its response has a body.
            upgrade: what the request asks the connection to become; empty for nothing.
            complete: whether no more of the request follows.
        """
        self._receiver = receiver
        self._method = method
        self._upgrade = upgrade
        self._buffer = b""
        self._head = None
        self._informational = 0
        self._sent_all = complete
        self._transport.write(head)  # type: ignore[union-attr]  # it is connected

    def send(self, data: bytes, *, complete: bool) -> None:
        """Go on with the request, or with the tunnel."""
        self._sent_all = complete
        if data:
            self._transport.write(data)  # type: ignore[union-attr]

    def send_eof(self) -> None:
        """Say that the tunnel's other side has closed."""
        transport = self._transport
        if transport is not None and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()

    def pause(self) -> None:
        """Read no more for now."""
        transport = self._transport
        if transport is not None and not self._paused and not transport.is_closing():
            self._paused = True
            transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        transport = self._transport
        if transport is not None and self._paused and not transport.is_closing():
            self._paused = False
            transport.resume_reading()

    # --- Of asyncio

    def data_received(self, data: bytes) -> None:
        """Read a part of a response."""
        receiver = self._receiver
        if receiver is None:
            self.close()  # nobody has asked: whatever this is, it must not be taken for the next answer
            return
        if self._tunnel:
            receiver.content(data)
        elif self._head is None:
            self._read_head(receiver, self._buffer + data if self._buffer else data)
        else:
            self._read_content(receiver, data)

    def eof_received(self) -> bool:
        """Tell a tunnel's end to the other side; in any other case the transport closes."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """See whether that was the response's proper end."""
        self._pool.forget(self)
        receiver, self._receiver = self._receiver, None
        self._transport = None
        if receiver is None:
            return
        if self._tunnel:
            receiver.ended([])
        elif self._head is None:
            receiver.upstream_failed(502, "was not answered by the upstream")
        elif isinstance(self._body, OpenBody) and error is None:
            receiver.ended([])
        else:
            receiver.upstream_failed(502, "was not answered in full by the upstream")

    def pause_writing(self) -> None:
        """Pass it on."""
        if self._receiver is not None:
            self._receiver.upstream_full()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self._receiver is not None:
            self._receiver.upstream_ready()

    # --- Reading

    def _read_head(self, receiver: Receiver, data: bytes) -> None:
        while True:
            end = data.find(END)
            if end < 0:
                self._buffer = data
                if len(data) > self._bounds.head_max:
                    self._fail("is answered by the upstream with too long a head")
                return
            try:
                head = self._parsed(data[: end + 4])
            except HeadError as fault:
                self._fail(f"has an answer of the upstream that {fault.issue}")
                return
            data = data[end + 4 :]
            if head.status >= 200:
                break
            if head.status == 101:
                self._switch(receiver, head, data)
                return
            self._informational += 1
            if self._informational > INFORMATIONAL_MAX:
                self._fail("is answered by the upstream with nothing but informational responses")
                return
            receiver.informed(head)
        self._head = head
        self._buffer = b""
        if head.length and head.length == len(data) and has_body(self._method, head.status):
            # Most responses: in one piece, so there is no body to be fed.
            self._release(surplus=False)
            receiver.responded(head, data, complete=True)
        else:
            self._begin_content(receiver, head, data)

    def _parsed(self, text: bytes) -> ResponseHead:
        """The head that is written so. Within a second, what an upstream says over and over is the same to the byte, so
        one that was read last is known again: a fifth of what a request costs (tests/benchmarks/proxy_path.py).

        Raises:
            HeadError: it is none.
        """
        known = self._pool.roles
        if text == self._head_text and known is self._head_roles:
            return self._head_read
        head = parse_response(text, self._bounds, known)
        if len(text) <= REMEMBERED_MAX:
            self._head_text, self._head_read, self._head_roles = text, head, known
        return head

    def _begin_content(self, receiver: Receiver, head: ResponseHead, data: bytes) -> None:
        body = self._body = self._body_of(head)
        try:
            content = body.feed(data) if data else b""
        except BodyError as fault:
            self._fail(f"has an answer of the upstream that {fault}")
            return
        if not body.done:
            receiver.responded(head, content, complete=False)
            return
        trailers = body.trailers
        self._release(surplus=bool(body.rest))
        receiver.responded(head, content, complete=not trailers)
        if trailers:
            receiver.ended(trailers)

    def _body_of(self, head: ResponseHead) -> SizedBody | ChunkedBody | OpenBody:
        # RFC 9112 section 6.3
        if not has_body(self._method, head.status):
            return SizedBody(0)
        if head.chunked:
            return ChunkedBody()
        return OpenBody() if head.length is None else SizedBody(head.length)

    def _switch(self, receiver: Receiver, head: ResponseHead, data: bytes) -> None:
        # RFC 9110 section 7.8: only to what was asked for.
        if not self._upgrade or head.upgrade != self._upgrade:
            self._fail("is answered by the upstream with an upgrade that nobody asked for")
            return
        self._tunnel = True
        receiver.switched(head, data)

    def _read_content(self, receiver: Receiver, data: bytes) -> None:
        body = self._body
        try:
            content = body.feed(data)
        except BodyError as fault:
            self._fail(f"has an answer of the upstream that {fault}")
            return
        if content:
            receiver.content(content)
        if body.done:
            self._release(surplus=bool(body.rest))
            receiver.ended(body.trailers)

    def _release(self, *, surplus: bool) -> None:
        """The response is complete: keep the connection if nothing at all speaks against it."""
        self._receiver = None
        head = self._head
        if surplus or head is None or not head.keep_alive or not self._sent_all:
            self.close()
        else:
            if self._paused:
                self.resume()
            self._pool.keep(self)

    def _fail(self, issue: str) -> None:
        receiver = self._receiver
        self.close()
        if receiver is not None:
            receiver.upstream_failed(502, issue)


class Pool:
    """The connections to one upstream; the one used last is used next.

    Args:
        target: where the upstream is.
        bounds: on times and sizes.
        replaced: lower-case names of response fields that are ours to say.
        loop: the event loop.
    """

    def __init__(
        self, target: Target, bounds: Bounds, replaced: frozenset[bytes], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.target = target
        self.bounds = bounds
        self.say(replaced)
        self._loop = loop
        self._idle: list[UpstreamConnection] = []
        self._all: set[UpstreamConnection] = set()
        self._opening = 0  # that are not among these yet
        self._line: deque[asyncio.Future[UpstreamConnection | None]] = deque()  # who waits for one, or for room
        self._dialer = None if target.path or _is_address(target.host) else Dialer(target.host, target.port, loop)
        self._sweep = Sweep(loop, min(1.0, bounds.upstream_idle_ms / 4000))
        self._swept = False

    def __len__(self) -> int:
        """Connections open now."""
        return len(self._all)

    @property
    def waiting(self) -> int:
        """Requests in line for a connection now."""
        return len(self._line)

    def say(self, replaced: frozenset[bytes]) -> None:
        """Name the response fields that are ours to say, from now on."""
        self.replaced = replaced
        self.roles = roles(replaced)

    def take(self) -> UpstreamConnection | None:
        """A connection that is open and idle; None if there is none."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if stopwatch_s() - connection.idle_since_s < PROBED_AFTER_S or connection.untouched():
                return connection
            connection.close()
        return None

    async def connect(self) -> UpstreamConnection:
        """A connection when there was none idle: a new one, or, if there may be no more, the next that is given back.

        Raises:
            OSError: the upstream cannot be reached.
            TimeoutError: it does not answer.
            CrowdedError: none was given back in time.
        """
        waiting = False
        try:
            async with asyncio.timeout(self.bounds.connect_timeout_ms / 1000):
                if len(self._all) + self._opening < self.bounds.upstream_connections_max:
                    self._opening += 1
                else:
                    waiting = True
                    connection = await self._turn()
                    waiting = False
                    if connection is not None:
                        return connection
                return await self._open()
        except TimeoutError:
            if waiting:
                raise CrowdedError from None
            raise

    async def _turn(self) -> UpstreamConnection | None:
        """Wait in line for a connection; None if one may be opened, which counts as opening already."""
        turn: asyncio.Future[UpstreamConnection | None] = self._loop.create_future()
        self._line.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):
                    self._line.remove(turn)  # near its head: who came first gives up first
            elif (connection := turn.result()) is not None:  # it has come, but too late
                self.keep(connection)
            else:
                self._opening -= 1
                self._let_open()
            raise

    def _next_in_line(self) -> asyncio.Future[UpstreamConnection | None] | None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():  # by giving up
                return turn
        return None

    def _let_open(self) -> None:
        """There may be one more connection: the first in line opens it."""
        turn = self._next_in_line()
        if turn is not None:
            self._opening += 1
            turn.set_result(None)

    async def _open(self) -> UpstreamConnection:
        """A new connection, which was counted as opening."""
        target, loop = self.target, self._loop
        made = False
        try:
            if target.path:
                _, connection = await loop.create_unix_connection(
                    lambda: UpstreamConnection(self), target.path, ssl=target.tls
                )
            elif self._dialer is None:
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self), target.host, target.port, ssl=target.tls
                )
            else:
                name = None if target.tls is None else target.host
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self),
                    sock=await self._dialer.dial(),
                    ssl=target.tls,
                    server_hostname=name,
                )
            if connection.closed:
                msg = "closed at once"
                raise ConnectionResetError(msg)
            self._all.add(connection)
            made = True
        finally:
            self._opening -= 1
            if not made:
                self._let_open()
        return connection

    def keep(self, connection: UpstreamConnection) -> None:
        """Take back a connection whose response is complete."""
        turn = self._next_in_line() if self._line else None
        if turn is not None:
            turn.set_result(connection)
            return
        connection.idle_since_s = stopwatch_s()
        self._idle.append(connection)
        if not self._swept:
            self._swept = True
            self._sweep.add(self)

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection is closed."""
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        if connection in self._all:
            self._all.discard(connection)
            self._let_open()

    def tick(self, now_s: float, passed_s: float) -> None:  # noqa: ARG002  # as Sweep calls it
        """Close what has been idle for too long: the upstream would, at a moment of its own choosing."""
        oldest_s = now_s - self.bounds.upstream_idle_ms / 1000
        for connection in [one for one in self._idle if one.idle_since_s < oldest_s]:
            connection.close()
        if not self._idle:
            self._swept = False
            self._sweep.discard(self)

    def close(self) -> None:
        """Close every connection."""
        self._idle.clear()
        for connection in list(self._all):
            connection.close()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
