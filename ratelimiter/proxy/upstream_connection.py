"""One connection to the upstream: it carries one request at a time, and is given up at the first surprise."""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Protocol

from ratelimiter.clock import stopwatch_s
from ratelimiter.proxy import response_faults
from ratelimiter.proxy.body import BodyError, ChunkedBody, OpenBody, SizedBody, has_body
from ratelimiter.proxy.head import END, PLAIN_POLICY, REMEMBERED_MAX, HeadError, RequestHead, parse_response

if TYPE_CHECKING:
    from ratelimiter.proxy.head import ResponseHead
    from ratelimiter.proxy.interfaces import ResponseReceiver
    from ratelimiter.proxy.settings import ProxySettings

INFORMATIONAL_MAX = 20  # 1xx responses before the final one; more is no answer
BUFFERED_MAX = 65_536  # bytes waiting to be sent before the other side is paused


class Keeper(Protocol):
    """The pool of a connection, as the connection sees it."""

    settings: ProxySettings

    def keep(self, connection: UpstreamConnection) -> None:
        """Take back a connection whose response is complete."""

    def forget(self, connection: UpstreamConnection, *, by_upstream: bool = False) -> None:
        """Take note that the connection is closed; *by_upstream*: not by us."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to the upstream, for one request at a time."""

    __slots__ = (
        "_body",
        "_buffer",
        "_head",
        "_head_policy",
        "_head_read",
        "_head_text",
        "_informational",
        "_method",
        "_paused",
        "_policy",
        "_poll",
        "_pool",
        "_receiver",
        "_sent_all",
        "_settings",
        "_transport",
        "_tunnel",
        "_upgrade",
        "_used",
        "born_s",
        "idle_since_s",
    )

    def __init__(self, pool: Keeper) -> None:
        self._pool = pool
        self._settings = pool.settings
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._receiver: ResponseReceiver | None = None
        self._method = ""
        self._upgrade = b""
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._head_text = b""  # of the one read last, if it was no longer than `REMEMBERED_MAX`
        self._head_read: ResponseHead = None  # type: ignore[assignment]  # until there is a text
        self._head_policy = PLAIN_POLICY  # by which it was read
        self._policy = PLAIN_POLICY  # of the request that is under way
        self._body: SizedBody | ChunkedBody | OpenBody = SizedBody(0)
        self._informational = 0
        self._sent_all = False  # of the request
        self._tunnel = False
        self._paused = False
        self._used = False  # True if the request under way is not the first
        self.idle_since_s = 0.0
        self.born_s = stopwatch_s()

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
        """True if the connection is closed, or was never made."""
        return self._transport is None

    def untouched(self) -> bool:
        """Return True if the upstream has neither sent nor closed, as the kernel knows it. Called before a request is
        sent, because afterwards it could not be sent again.
        """
        return self._poll is None or not self._poll.poll(0)

    def close(self) -> None:
        """Give the connection up, whatever is under way."""
        self._receiver = None
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()

    # --- For the client's connection

    def send_head(self, receiver: ResponseReceiver, head: bytes, request: RequestHead, *, complete: bool) -> None:
        """Begin a request.

        Args:
            receiver: gets the response.
            head: as it is sent; a body that has come already may follow.
            request: what was asked: on its method depends whether the response has a body, on its fields what of the
                response is passed on.
            complete: True if no more of the request follows.
        """
        self._receiver = receiver
        self._method = request.method
        self._upgrade = request.upgrade
        self._policy = request.fields.policy
        self._buffer = b""
        self._head = None
        self._informational = 0
        self._sent_all = complete
        self._transport.write(head)  # type: ignore[union-attr]  # it is connected

    def redirect(self, receiver: ResponseReceiver) -> None:
        """Bring the rest of the response to *receiver*, read on without pause."""
        self._receiver = receiver
        self.resume()

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
            self.close()  # no request is in flight: these bytes must not be taken for the next answer
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
        self._pool.forget(self, by_upstream=True)
        receiver, self._receiver = self._receiver, None
        self._transport = None
        if receiver is None:
            return
        if self._tunnel:
            receiver.ended([])
        elif self._head is None:
            if self._used and not self._buffer and not self._informational:
                receiver.unanswered()
            else:
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

    def _read_head(self, receiver: ResponseReceiver, data: bytes) -> None:
        while True:
            end = data.find(END)
            if end < 0:
                self._buffer = data
                if len(data) > self._settings.head_max:
                    self._fail(
                        f"has an answer of the upstream that {response_faults.too_long(len(data), self._settings)}"
                    )
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
        """Return the response head of *text*. An upstream repeats the same head to the byte within a second, so
        the last one is remembered: a fifth of what a request costs (tests/benchmarks/proxy_path.py).

        Raises:
            HeadError: it is none.
        """
        policy = self._policy
        if text == self._head_text and policy is self._head_policy:
            return self._head_read
        head = parse_response(text, self._settings, policy)
        if len(text) <= REMEMBERED_MAX:
            self._head_text, self._head_read, self._head_policy = text, head, policy
        return head

    def _begin_content(self, receiver: ResponseReceiver, head: ResponseHead, data: bytes) -> None:
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

    def _switch(self, receiver: ResponseReceiver, head: ResponseHead, data: bytes) -> None:
        # RFC 9110 section 7.8: only to what was asked for.
        if not self._upgrade or head.upgrade != self._upgrade:
            self._fail("is answered by the upstream with an upgrade that the request did not ask for")
            return
        self._tunnel = True
        receiver.switched(head, data)

    def _read_content(self, receiver: ResponseReceiver, data: bytes) -> None:
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
        """End a complete response: keep the connection if nothing at all speaks against it."""
        self._receiver = None
        self._used = True
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
