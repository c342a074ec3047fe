"""One client's connection: heads are read from it one by one, each begins an exchange, and the last answer arrives.

More than 400 lines, because it is the one owner of the read buffer and of the transport's state.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import struct
from typing import TYPE_CHECKING

from ratelimiter.clock import stopwatch_s
from ratelimiter.core.request import MalformedRequest
from ratelimiter.proxy.exchange import NEVER_S, READING, UNREADABLE, Exchange
from ratelimiter.proxy.forwarded import Provenance, via_line
from ratelimiter.proxy.head import END, REMEMBERED_MAX, Fields, HeadError, check_beginning, parse_request
from ratelimiter.proxy.interfaces import AHEAD, UPSTREAM_FULL
from ratelimiter.proxy.lingering import Lingering
from ratelimiter.proxy.upstream_connection import BUFFERED_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.proxy.head import RequestHead
    from ratelimiter.proxy.proxy import Proxy

log = logging.getLogger(__name__)

HELD_MAX = 65_536  # bytes that are read ahead of a request's turn
EMPTY_LINES_MAX = 2  # before a request
BURST = 16  # pipelined requests answered in one go before others have theirs

# What a connection is at.
HEAD = "head"  # the head of the next request is waited for
EXCHANGE = "exchange"  # a request is under way
GOODBYE = "goodbye"  # everything is said: the client's side of the connection to close
NOTHING = "nothing"  # the connection is closed

AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, which no client takes for a proper end


def _unconnected(data: bytes) -> None:
    raise NotImplementedError(data)  # nothing is written before there is a transport


class ClientConnection(asyncio.Protocol):
    """One connection of a client.

    Args:
        proxy: what all connections have in common.
        scheme: of the listener: `http` or `https`.
        client: the client's address, if a trusted peer has said it; else it is the socket's.

    Attributes:
        peer: the client's address; None on a unix socket.
        buffer: what has come and is not read yet.
        paused: why nothing is read at present.
        half_closed: True if the client has closed its side.
    """

    __slots__ = (
        "_begun",
        "_due_s",
        "_empty_lines",
        "_exchange",
        "_fields",
        "_fields_forwarded",
        "_full",
        "_head",
        "_head_read",
        "_lingering",
        "_poll",
        "_provenance",
        "_scheme",
        "_searched",
        "_serving",
        "_settings",
        "_stalled_s",
        "_state",
        "buffer",
        "half_closed",
        "paused",
        "peer",
        "proxy",
        "transport",
        "write",
    )

    def __init__(self, proxy: Proxy, scheme: bytes, client: str | None = None) -> None:
        self.proxy = proxy
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until it is connected
        self.peer: str | None = client
        self.write: Callable[[bytes], None] = _unconnected
        self.buffer = b""
        self.paused: set[str] = set()
        self.half_closed = False
        self._settings = proxy.settings
        self._scheme = scheme
        self._provenance = Provenance(None, scheme, trusted=False)
        self._fields: Fields | None = None  # of the last request forwarded, and how the upstream was told of them
        self._fields_forwarded = b""
        self._head = b""  # the one that was read last, if it was no longer than `REMEMBERED_MAX`
        self._head_read = UNREADABLE
        self._state = HEAD
        self._exchange: Exchange | None = None  # that is under way
        self._searched = 0  # how much of the buffer holds no end of a head
        self._poll: select.poll | None = None  # asks the kernel if the client is there
        self._lingering: Lingering | None = None  # in the end, if the client may still be sending
        self._empty_lines = 0  # that came before the head that is waited for
        self._begun = True  # True if the deadline of a head is running: the first one's is from the beginning
        self._serving = False
        self._due_s = NEVER_S
        self._full = False  # True if the client takes in nothing more at present
        self._stalled_s = 0.0  # for how long

    # --- Of asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is one
        """Take the client in, if there is room."""
        self.transport = transport
        self.write = transport.write
        if self.peer is None:
            peername = transport.get_extra_info("peername")
            self.peer = peername[0] if isinstance(peername, tuple) else None
        proxy = self.proxy
        if not proxy.enter(self):
            self._state = NOTHING
            transport.abort()
            return
        self._provenance = Provenance(self.peer, self._scheme, proxy.trusts(self.peer), proxy.families)
        transport.set_write_buffer_limits(BUFFERED_MAX)
        self._due_s = stopwatch_s() + self._settings.head_timeout_ms / 1000

    def data_received(self, data: bytes) -> None:
        """Read on, or keep it until its turn."""
        state = self._state
        if state is HEAD:
            self.buffer = self.buffer + data if self.buffer else data
            self._serve()
        elif state is EXCHANGE:
            exchange = self._exchange
            if exchange.state in READING:  # type: ignore[union-attr]  # there is one in this state
                exchange.data_received(data)  # type: ignore[union-attr]
                return
            self.buffer = self.buffer + data if self.buffer else data
            if len(self.buffer) > HELD_MAX:
                self.pause(AHEAD)
        elif state is GOODBYE and self._lingering is not None:
            self._lingering.discard(len(data))

    def eof_received(self) -> bool:
        """Take note that the client has closed its side; return True if the connection stays open for its response."""
        self.half_closed = True
        exchange = self._exchange
        if exchange is None:
            return False
        # TLS has no connection that is half open.
        if self._scheme == b"http" and exchange.eof_received():
            return True
        self.abort()  # a response under way would only fill the buffers of a client that has left
        return False

    def _has_left(self) -> bool:
        """Return True if the client has left unnoticed: nothing is read after its FIN, nor while reading is paused."""
        if self._poll is None:
            sock = self.transport.get_extra_info("socket")
            if sock is None:
                return False
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLRDHUP)
        events = self._poll.poll(0)
        if not events:
            return False
        if events[0][1] & (select.POLLHUP | select.POLLERR):
            return True
        if self.half_closed:
            return False
        exchange = self._exchange
        return self._scheme != b"http" or not exchange.eof_received(unread=True)  # type: ignore[union-attr]

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  # why is the client's affair
        """Let go of everything."""
        if self._state is NOTHING:
            return
        self._state = NOTHING
        self.proxy.leave(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()

    def pause_writing(self) -> None:
        """Pause the upstream: the client reads more slowly than data comes."""
        self._full = True
        self._stalled_s = 0.0
        if self._exchange is not None:
            self._exchange.pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._full = False
        if self._exchange is not None:
            self._exchange.resume_writing()
        if self._state is HEAD and self.buffer:
            self._serve()

    # --- For the proxy

    def tick(self, now_s: float, passed_s: float) -> None:
        """Act on deadlines, and on a client that has left."""
        if self._state is EXCHANGE and (self.half_closed or self.paused) and self._has_left():
            self.abort()
            return
        if self._full:
            self._stalled_s += passed_s
            if self._stalled_s * 1000 > self._settings.write_timeout_ms:
                # Without a reset the kernel would go on offering it what is unsent, and keep that for minutes.
                self.break_off(reset=True)
            return  # whatever else is due waits for the client, too
        if self._state is EXCHANGE:
            self._exchange.tick(now_s, passed_s)  # type: ignore[union-attr]  # there is one in this state
        elif self._lingering is not None:
            if self._lingering.overdue(now_s, passed_s):
                self.transport.abort()
        elif now_s >= self._due_s:
            self._overdue()

    @property
    def idle(self) -> bool:
        """True if no request is in flight."""
        return self._state is HEAD and not self.buffer

    def abort(self) -> None:
        """Close at once, whatever is in flight; its follower is notified before this returns."""
        self.transport.abort()
        self.connection_lost(None)

    def retire(self) -> None:
        """Close if nothing is under way; else after the response that is."""
        if self.idle:
            self.close(unread=False)
        elif self._exchange is not None:
            self._exchange.retire()

    # --- Reading requests

    def _serve(self) -> None:
        """Read requests as long as they are answered at once."""
        if self._serving:
            return
        self._serving = True
        served = 0
        while self._state is HEAD and self.buffer and not self._full:
            if served == BURST:
                self.proxy.loop.call_soon(self._serve)
                break
            if not self._read_head():
                break
            served += 1
        self._serving = False

    def _read_head(self) -> bool:
        """Read one head, and do with it what is to be done; False if it has not come in full yet."""
        data, policy = self.buffer, self.proxy.header_policy()
        end = data.find(END, self._searched)
        if data[0] == 0x0D and not self._searched:
            data, end = self._without_empty_lines(data)
        try:
            if end < 0:
                self._wait_for_head(data)
                return False
            head, self.buffer = data[: end + 4], data[end + 4 :]
            self._searched = 0
            if head == self._head and self._head_read.fields.policy is policy:
                request = self._head_read
            else:
                request = parse_request(head, self._settings, policy, self._head_read.fields)
                if not request.plain:
                    request = self._unequivocal(request)
                elif len(head) <= REMEMBERED_MAX:
                    self._head, self._head_read = head, request
        except HeadError as fault:
            self._refuse_head(fault)
            return True
        self._state = EXCHANGE
        exchange = self._exchange = Exchange(self, self.proxy, request)
        exchange.ask()
        return True

    def _unequivocal(self, request: RequestHead) -> RequestHead:
        """Return *request* with the target that the judge wants forwarded, as servers may read its path differently.

        Raises:
            HeadError: the judge wants none forwarded.
        """
        judge = self.proxy.judge
        if judge.looks_at_paths:
            try:
                request.target = judge.forwarded_target(request.method, request.target)
            except MalformedRequest as fault:
                error = HeadError(400, fault.issue, fault.field)
                error.headers = request.fields.headers
                raise error from None
        return request

    def _without_empty_lines(self, data: bytes) -> tuple[bytes, int]:
        # RFC 9112 section 2.2: some clients send one too many, behind a body.
        if not self._begun:
            self._empty_lines = 0
        while self._empty_lines < EMPTY_LINES_MAX and data.startswith(b"\r\n"):
            self._empty_lines += 1
            data = data[2:]
        return data, data.find(END)

    def _wait_for_head(self, data: bytes) -> None:
        self.buffer = data
        if data not in (b"", b"\r"):
            check_beginning(data, self._searched, self._settings)
            self._searched = max(0, len(data) - len(END) + 1)
        if not self._begun:
            self._begun = True
            self._due_s = stopwatch_s() + self._settings.head_timeout_ms / 1000

    def _refuse_head(self, fault: HeadError) -> None:
        log.debug("a request from %s is refused: %s", self.peer, fault)
        self._state = EXCHANGE
        exchange = self._exchange = Exchange(self, self.proxy, UNREADABLE)
        exchange.refuse(fault)

    # --- For the exchange

    def take(self) -> bytes:
        """Return the bytes that were read and not used, and forget them."""
        data, self.buffer = self.buffer, b""
        return data

    def put_back(self, data: bytes) -> None:
        """Keep *data*, which belongs to the next request."""
        self.buffer = data

    def forwarded(self, fields: Fields) -> bytes:
        """Return the field lines that the upstream gets for a request's *fields*."""
        if fields is not self._fields:
            self._fields_forwarded = self._lines(fields)
            self._fields = fields if len(fields.raw) <= REMEMBERED_MAX else None
        return self._fields_forwarded

    def _lines(self, fields: Fields) -> bytes:
        host = fields.host
        given = bool(host) or any(name == b"host" for name, _ in fields.headers)
        lines = [
            b"Host: %s" % (host if given else self.proxy.pool.target.authority),
            *fields.lines,
            *self._provenance.lines(fields.headers, host),
        ]
        if fields.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif fields.length is not None:
            lines.append(b"Content-Length: %d" % fields.length)
        via = via_line(self.proxy.via, http_1_0=fields.http_1_0) if self.proxy.via else b""
        return b"\r\n".join(lines) + b"\r\n" + via

    def finished(self, *, keep: bool, unread: bool) -> None:
        """End the exchange: go on to the next request if the connection is kept, else close."""
        self._exchange = None
        if not keep or (self.half_closed and not self.buffer):
            self.close(unread=unread)
            return
        self._state = HEAD
        self._begun = False
        self._due_s = stopwatch_s() + self._settings.idle_timeout_ms / 1000
        if self.paused:
            self.resume(AHEAD)
            self.resume(UPSTREAM_FULL)
        if self.buffer:
            self._serve()

    def close(self, *, unread: bool) -> None:
        """Close so that what was written last arrives; see `ratelimiter.proxy.lingering`.

        Args:
            unread: True if the client may still be sending.
        """
        self._state = GOODBYE
        now_s = stopwatch_s()
        if self.half_closed or not (self.buffer or unread):
            self._due_s = now_s + self._settings.write_timeout_ms / 1000
            self.transport.close()
            return
        self.buffer = b""
        self._lingering = Lingering(self.transport, self._settings, self.proxy.loop, now_s)
        for why in list(self.paused):
            self.resume(why)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def break_off(self, *, reset: bool) -> None:
        """Close at once; with a *reset* if the client would take anything else for the response's proper end."""
        if reset:
            sock = self.transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self.transport.abort()

    def pause(self, why: str) -> None:
        """Read nothing more until `resume` is called for the same reason."""
        if not self.paused and not self.transport.is_closing():
            self.transport.pause_reading()
        self.paused.add(why)

    def resume(self, why: str) -> None:
        """Read on, unless there is another reason not to."""
        if why in self.paused:
            self.paused.discard(why)
            if not self.paused and not self.transport.is_closing():
                self.transport.resume_reading()

    # --- Deadlines

    def _overdue(self) -> None:
        if self._state is not HEAD:
            self.transport.abort()
        elif self.buffer:
            self._refuse_head(HeadError(408, "did not come in full in time"))
        else:
            self.close(unread=False)
