"""One client's connection: requests come in, are judged, forwarded, and their responses passed back, one by one."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

from ratelimiter.clock import stopwatch_s
from ratelimiter.core.request import Request
from ratelimiter.proxy.body import BodyError, ChunkedBody, SizedBody, chunk, last_chunk
from ratelimiter.proxy.forwarding import Provenance, field_lines, has_body, trailer_lines
from ratelimiter.proxy.head import END, REMEMBERED_MAX, Fields, HeadError, RequestHead, check_beginning, parse_request
from ratelimiter.proxy.judging import JUDGE, PROXY, UPSTREAM, Exchanged, Verdict, tell
from ratelimiter.proxy.stepping import run
from ratelimiter.proxy.upstream import BUFFERED_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.dialect import Reply
    from ratelimiter.proxy.head import ResponseHead
    from ratelimiter.proxy.service import Service
    from ratelimiter.proxy.upstream import UpstreamConnection

log = logging.getLogger(__name__)

HELD_MAX = 65_536  # bytes that are read ahead of a request's turn, and discarded behind a last answer
EMPTY_LINES_MAX = 2  # before a request
BURST = 16  # pipelined requests answered in one go before others have theirs
NEVER_S = float("inf")

# What a connection waits for. Which deadline is running follows from it.
HEAD = "head"  # of the next request
PREVIEW = "preview"  # as much of its body as the judge wants to see
VERDICT = "verdict"
CONNECTION = "connection"  # to the upstream
BODY = "body"  # the rest of the request; its response may be under way already
RESPONSE = "response"  # the rest of it; the request is complete
TUNNEL = "tunnel"  # whatever either side sends
GOODBYE = "goodbye"  # everything is said: the client's side of the connection to close
NOTHING = "nothing"  # the connection is closed

READING_BODY = frozenset({PREVIEW, BODY})

# In place of what there is none of at present.
NO_REQUEST = RequestHead("", b"", Fields(b"1", frozenset()))
UNREADABLE = RequestHead("", b"", Fields(b"1", frozenset()))  # answered and told like a request, and forwarded nowhere
NO_VERDICT = Verdict(None, (), (), "")
NO_BODY = SizedBody(0)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, which nobody takes for a proper end


class ClientConnection(asyncio.Protocol):
    """One connection of a client.

    Args:
        service: what all connections have in common.
        scheme: of the listener: `http` or `https`.
    """

    __slots__ = (
        "_asked_s",
        "_begun",
        "_begun_s",
        "_body",
        "_body_s",
        "_bounds",
        "_buffer",
        "_chunking",
        "_connecting",
        "_due_s",
        "_empty_lines",
        "_fields",
        "_fields_forwarded",
        "_full",
        "_half_closed",
        "_keep",
        "_loop",
        "_open_ended",
        "_paused",
        "_preview",
        "_provenance",
        "_received",
        "_request",
        "_scheme",
        "_searched",
        "_sent",
        "_service",
        "_serving",
        "_source",
        "_stalled_s",
        "_started",
        "_state",
        "_status",
        "_transport",
        "_unread",
        "_upstream",
        "_upstream_s",
        "_verdict",
        "_wanted",
        "peer",
    )

    def __init__(self, service: Service, scheme: bytes) -> None:
        self._service = service
        self._bounds = service.bounds
        self._loop = service.loop
        self._scheme = scheme
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until it is connected
        self.peer: str | None = None
        self._provenance = Provenance(None, scheme, trusted=False)
        self._fields: Fields | None = None  # of the request before, and how the upstream was told of them
        self._fields_forwarded = b""

        self._state = HEAD
        self._buffer = b""  # what has come and is not read yet
        self._searched = 0  # how much of it holds no end of a head
        self._empty_lines = 0  # that came before the head that is waited for
        self._begun = True  # whether the deadline of a head is running: the first one's is from the beginning
        self._serving = False
        self._due_s = NEVER_S
        self._paused: set[str] = set()  # why nothing is read at present
        self._full = False  # whether the client takes in nothing more at present
        self._stalled_s = 0.0  # for how long
        self._half_closed = False  # whether the client has closed its side

        self._request = NO_REQUEST
        self._verdict = NO_VERDICT
        self._body: SizedBody | ChunkedBody = NO_BODY
        self._preview: bytearray | None = None  # content of it that was read for the judge and not sent on yet
        self._wanted = 0  # bytes of that
        self._upstream: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._started = False  # whether the final response has begun
        self._chunking = False  # whether it leaves in chunks
        self._open_ended = False  # whether it ends with the connection
        self._keep = False  # whether the connection is kept after it
        self._unread = False  # whether there was a head that could not be read, so that anything may follow
        self._status = 0
        self._source = PROXY
        self._received = 0
        self._sent = 0
        self._body_s = 0.0  # for how long a body has been read
        self._begun_s = 0.0
        self._asked_s = 0.0
        self._upstream_s = 0.0

    # --- Of asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is one
        """Take the client in, if there is room."""
        self._transport = transport
        peername = transport.get_extra_info("peername")
        self.peer = peername[0] if isinstance(peername, tuple) else None
        if not self._service.enter(self):
            self._state = NOTHING
            transport.abort()
            return
        trusted = self._service.trusts(self.peer)
        self._provenance = Provenance(self.peer, self._scheme, trusted, self._service.families)
        transport.set_write_buffer_limits(BUFFERED_MAX)
        self._due_s = self._loop.time() + self._bounds.head_timeout_ms / 1000

    def data_received(self, data: bytes) -> None:
        """Read on, or keep it until its turn."""
        state = self._state
        if state is HEAD:
            self._buffer = self._buffer + data if self._buffer else data
            self._serve()
        elif state is BODY:
            self._feed_body(data)
        elif state is PREVIEW:
            self._feed_preview(data)
        elif state is TUNNEL:
            self._due_s = self._loop.time() + self._bounds.tunnel_timeout_ms / 1000
            self._received += len(data)
            self._upstream.send(data, complete=False)  # type: ignore[union-attr]  # a tunnel has two ends
        elif state is GOODBYE:
            self._searched += len(data)
            if self._searched > HELD_MAX:
                self._transport.abort()
        else:
            self._buffer = self._buffer + data if self._buffer else data
            if len(self._buffer) > HELD_MAX:
                self._pause("ahead")

    def eof_received(self) -> bool:
        """The client has closed its side. That may be all of it, or it may still want its answer: that is only known
        when something is sent, so an answer has a moment to begin.
        """
        state = self._state
        self._half_closed = True
        if state is TUNNEL:
            self._upstream.send_eof()  # type: ignore[union-attr]
            # By far most have closed both ways; an upstream that does not answer in kind must not hold the tunnel.
            self._due_s = self._loop.time() + self._bounds.linger_ms / 1000
            return self._can_half_close()
        if state in (VERDICT, CONNECTION, RESPONSE) and self._can_half_close():
            if not self._started:
                self._due_s = min(self._due_s, self._loop.time() + self._bounds.half_close_ms / 1000)
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  # why is the client's affair
        """Let go of everything."""
        if self._state is NOTHING:
            return
        self._state = NOTHING
        self._service.leave(self)
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        if self._request is not NO_REQUEST:
            self._record()

    def pause_writing(self) -> None:
        """The client takes in less than comes: let the upstream wait."""
        self._full = True
        self._stalled_s = 0.0
        if self._upstream is not None:
            self._upstream.pause()

    def resume_writing(self) -> None:
        """Go on."""
        self._full = False
        if self._upstream is not None:
            self._upstream.resume()
        if self._state is HEAD and self._buffer:
            self._serve()

    # --- For the service

    def tick(self, now_s: float, passed_s: float) -> None:
        """See what is overdue."""
        if self._full:
            self._stalled_s += passed_s
            if self._stalled_s * 1000 > self._bounds.write_timeout_ms:
                self._transport.abort()
            return  # whatever else is due waits for the client, too
        if self._state in READING_BODY and not self._paused:
            self._body_s += passed_s
            if self._too_slow():
                self._overdue()
                return
        if now_s >= self._due_s:
            self._overdue()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._state is HEAD and not self._buffer

    def abort(self) -> None:
        """Close at once, whatever is under way: who follows it is told before this returns."""
        self._transport.abort()
        self.connection_lost(None)

    def retire(self) -> None:
        """Close if nothing is under way; else after the response that is."""
        if self.idle:
            self._close()
        self._keep = False

    # --- Reading requests

    def _serve(self) -> None:
        """Read requests as long as they are answered at once."""
        if self._serving:
            return
        self._serving = True
        served = 0
        while self._state is HEAD and self._buffer and not self._full:
            if served == BURST:
                self._loop.call_soon(self._serve)
                break
            if not self._read_head():
                break
            served += 1
        self._serving = False

    def _read_head(self) -> bool:
        """Read one head, and do with it what is to be done; False if it has not come in full yet."""
        data = self._buffer
        end = data.find(END, self._searched)
        if data[0] == 0x0D and not self._searched:
            data, end = self._without_empty_lines(data)
        try:
            if end < 0:
                self._wait_for_head(data)
                return False
            head, self._buffer = data[: end + 4], data[end + 4 :]
            self._searched = 0
            request = parse_request(head, self._bounds, self._service.dropped, self._fields)
        except HeadError as fault:
            self._refuse_head(fault)
            return True
        self._begin(request)
        asked = Request(request.method, request.target, request.fields.headers, self.peer)
        judge = self._service.judge
        if judge.looks_at_bodies:
            self._ask_with_body(asked, judge.body_wanted(asked))
        else:
            run(judge.judge(asked), self._judged)
        return True

    def _without_empty_lines(self, data: bytes) -> tuple[bytes, int]:
        # RFC 9112 section 2.2: some clients send one too many, behind a body.
        if not self._begun:
            self._empty_lines = 0
        while self._empty_lines < EMPTY_LINES_MAX and data.startswith(b"\r\n"):
            self._empty_lines += 1
            data = data[2:]
        return data, data.find(END)

    def _wait_for_head(self, data: bytes) -> None:
        self._buffer = data
        if data not in (b"", b"\r"):
            check_beginning(data, self._searched, self._bounds)
            self._searched = max(0, len(data) - len(END) + 1)
        if not self._begun:
            self._begun = True
            self._due_s = self._loop.time() + self._bounds.head_timeout_ms / 1000

    def _refuse_head(self, fault: HeadError) -> None:
        log.info("a request from %s is refused: %s", self.peer, fault)
        self._request = UNREADABLE
        self._started = False
        self._verdict = NO_VERDICT
        self._body = NO_BODY
        self._received = self._sent = 0
        self._upstream_s = 0.0
        self._begun_s = stopwatch_s()
        self._unread = True
        self._answer_error(fault.status, fault.subject, fault.issue, fault.headers, keep=False)

    def _begin(self, request: RequestHead) -> None:
        self._state = VERDICT
        self._due_s = NEVER_S
        self._request = request
        self._verdict = NO_VERDICT
        self._body = NO_BODY
        self._preview = None
        fields = request.fields
        if fields.has_body:
            self._body = ChunkedBody() if fields.chunked else SizedBody(fields.length or 0)
        self._started = self._chunking = self._open_ended = False
        self._status = 0
        self._received = self._sent = 0
        self._body_s = 0.0
        self._upstream_s = 0.0
        self._begun_s = stopwatch_s()

    def _ask_with_body(self, asked: Request, wanted: int) -> None:
        """Ask the judge about a request, once as much of its body as it wants is there."""
        fields = self._request.fields
        if not wanted or 0 < self._bounds.body_max < (fields.length or 0):  # which is too long whatever it holds
            run(self._service.judge.judge(asked), self._judged)
        elif self._body.done:
            run(self._service.judge.judge(asked._replace(body=b"")), self._judged)
        else:
            self._state = PREVIEW
            self._preview = bytearray()
            self._wanted = wanted
            data, self._buffer = self._buffer, b""
            if data:
                self._feed_preview(data)
                return
            self._due_s = self._loop.time() + self._bounds.body_timeout_ms / 1000
            if fields.expects:
                self._transport.write(CONTINUE)

    def _feed_preview(self, data: bytes) -> None:
        """Keep a part of the body, and ask the judge when it is enough."""
        content = self._read_body(data)
        if content is None:
            return
        preview = self._preview
        preview += content  # type: ignore[operator]  # there is one in this state
        body = self._body
        if body.done:
            self._buffer = body.rest
        elif len(preview) < self._wanted:
            self._due_s = self._loop.time() + self._bounds.body_timeout_ms / 1000
            return
        self._state = VERDICT
        self._due_s = NEVER_S
        request = self._request
        seen = bytes(preview[: self._wanted])
        asked = Request(request.method, request.target, request.fields.headers, self.peer, body=seen)
        run(self._service.judge.judge(asked), self._judged)

    def _judged(self, verdict: Verdict | BaseException) -> None:
        if self._state is not VERDICT:
            # The client is gone.
            if isinstance(verdict, Verdict) and verdict.follower is not None:
                tell(verdict.follower.ended)
            return
        if isinstance(verdict, BaseException):
            log.error("a request could not be judged", exc_info=verdict)
            self._fail(500, "could not be judged")
            return
        self._verdict = verdict
        if verdict.reply is not None:
            self._reply(verdict.reply, verdict, JUDGE)
        elif 0 < self._bounds.body_max < (self._request.fields.length or 0):
            self._fail(413, "has too long a body")
        else:
            self._forward()

    # --- Forwarding

    def _forward(self) -> None:
        connection = self._service.pool.take()
        if connection is not None:
            self._send_request(connection)
            return
        self._state = CONNECTION
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self._service.pool.connect()
        except (OSError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            log.warning("the upstream cannot be reached: %s", "no answer in time" if late else error)
            if self._state is CONNECTION:
                self._fail(504 if late else 502, "could not be brought to the upstream")
            return
        if self._state is CONNECTION:
            self._send_request(connection)
        else:
            self._service.pool.keep(connection)

    def _send_request(self, connection: UpstreamConnection) -> None:
        request = self._request
        self._upstream = connection
        self._asked_s = stopwatch_s()
        now_s = self._loop.time()
        head = self._upstream_head(request)
        body = self._body
        preview = self._preview
        if preview is not None:
            self._preview = None
            head += self._framed(bytes(preview))
        if body.done:
            self._state = RESPONSE
            self._due_s = now_s + self._bounds.upstream_timeout_ms / 1000
            if self._half_closed:
                self._due_s = min(self._due_s, now_s + self._bounds.half_close_ms / 1000)
            connection.send_head(self, head, request.method, request.upgrade, complete=True)
            return
        self._state = BODY
        self._due_s = now_s + self._bounds.body_timeout_ms / 1000
        data, self._buffer = self._buffer, b""
        if request.fields.expects and not data and preview is None:
            self._transport.write(CONTINUE)
        connection.send_head(self, head, request.method, b"", complete=False)
        self._resume("ahead")
        if data:
            self._feed_body(data)
        if self._half_closed and self._state is BODY:
            self._transport.abort()  # the rest of it will never come

    def _upstream_head(self, request: RequestHead) -> bytes:
        fields = request.fields
        if fields is not self._fields:
            self._fields_forwarded = self._forwarded(fields)
            self._fields = fields if len(fields.raw) <= REMEMBERED_MAX else None
        line = b"%s %s HTTP/1.1\r\n" % (request.method.encode(), request.target)
        of_verdict = field_lines(self._verdict.sent_on)
        if request.upgrade:
            of_verdict += b"Connection: Upgrade\r\nUpgrade: %s\r\n" % request.upgrade
        return b"%s%s%s\r\n" % (line, self._fields_forwarded, of_verdict)

    def _forwarded(self, fields: Fields) -> bytes:
        """The lines that the upstream gets of a request's *fields*."""
        host = fields.host
        lines = [
            b"Host: %s" % (host or self._service.pool.target.authority),
            *fields.lines,
            *self._provenance.lines(fields.headers, host),
        ]
        if fields.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif fields.length is not None:
            lines.append(b"Content-Length: %d" % fields.length)
        return b"\r\n".join(lines) + b"\r\n"

    def _feed_body(self, data: bytes) -> None:
        """Pass on a part of the request's body."""
        content = self._read_body(data)
        if content is None:
            return
        body = self._body
        self._due_s = self._loop.time()
        if body.done:
            self._buffer = body.rest
            self._state = RESPONSE
            self._due_s += self._bounds.upstream_timeout_ms / 1000
        else:
            self._due_s += self._bounds.body_timeout_ms / 1000
        framed = self._framed(content)
        self._upstream.send(framed, complete=body.done)  # type: ignore[union-attr]  # nothing is read on without one

    def _read_body(self, data: bytes) -> bytes | None:
        """What *data* holds of the body's content; None if it cannot be, which has been said then."""
        try:
            content = self._body.feed(data)
        except BodyError as fault:
            self._fail(400, str(fault))
            return None
        self._received += len(content)
        if self._bounds.body_max and self._received > self._bounds.body_max:
            self._fail(413, "has too long a body")
            return None
        return content

    def _framed(self, content: bytes) -> bytes:
        """*content*, the latest of the body, as the upstream gets it."""
        body = self._body
        if isinstance(body, ChunkedBody):
            content = chunk(content) if content else b""
            if body.done:
                content += last_chunk(trailer_lines(body.trailers, self._service.dropped))
        return content

    # --- Of the upstream: what comes of a request (a Receiver)

    def upstream_full(self) -> None:
        """Send no more for now."""
        self._pause("upstream")
        self._due_s = self._loop.time() + self._bounds.upstream_timeout_ms / 1000

    def upstream_ready(self) -> None:
        """Go on sending."""
        self._resume("upstream")
        if self._state is BODY:
            self._due_s = self._loop.time() + self._bounds.body_timeout_ms / 1000

    def informed(self, head: ResponseHead) -> None:
        """Pass an informational response on (RFC 9110 section 15.2); a 100 was sent already, by us."""
        if head.status != 100 and not self._request.fields.http_1_0:
            lines = b"".join([line + b"\r\n" for line in head.lines])
            self._transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n" % (head.status, head.reason, lines))

    def responded(self, head: ResponseHead, content: bytes, *, complete: bool) -> None:
        """Pass on the response's head and the first of its content."""
        request, verdict = self._request, self._verdict
        now_s = self._loop.time()
        self._upstream_s = stopwatch_s() - self._asked_s
        self._due_s = now_s + self._bounds.upstream_timeout_ms / 1000 if self._state is RESPONSE else self._due_s
        self._started = True
        self._status = head.status
        self._source = UPSTREAM
        if verdict.follower is not None:
            tell(verdict.follower.responded, head.status, head.headers)
        keep = self._keeps(request)
        last = b""
        if not has_body(request.method, head.status):
            if head.length is not None and head.status != 204:
                last = b"Content-Length: %d\r\n" % head.length
        elif head.length is not None:
            last = b"Content-Length: %d\r\n" % head.length
        elif request.fields.http_1_0:
            self._open_ended = True
            keep = False
        else:
            self._chunking = True
            last = b"Transfer-Encoding: chunked\r\n"
        self._keep = keep
        out = b"\r\n".join(
            [
                b"HTTP/1.1 %d %s" % (head.status, head.reason),
                *head.lines,
                b"%s%s%s\r\n" % (field_lines(verdict.headers), last, _connection(request, keep=keep)),
            ]
        )
        self._sent = len(content)
        if self._chunking:
            if content:
                out += chunk(content)
            if complete:
                out += last_chunk([])
        else:
            out += content
        self._transport.write(out)
        if complete:
            self._finish()

    def content(self, data: bytes) -> None:
        """Pass on content of the response, or anything that comes through a tunnel."""
        self._sent += len(data)
        if self._state is RESPONSE:
            self._due_s = self._loop.time() + self._bounds.upstream_timeout_ms / 1000
        elif self._state is TUNNEL and not self._half_closed:
            self._due_s = self._loop.time() + self._bounds.tunnel_timeout_ms / 1000
        self._transport.write(chunk(data) if self._chunking else data)

    def ended(self, trailers: list[bytes]) -> None:
        """Complete the response; a tunnel has lost its other end."""
        if self._state is TUNNEL:
            self._upstream = None
            self._close()
            return
        if self._chunking:
            self._transport.write(last_chunk(trailer_lines(trailers, self._service.pool.replaced)))
        self._finish()

    def switched(self, head: ResponseHead, data: bytes) -> None:
        """Become a tunnel (RFC 9110 section 7.8). What was judged was its handshake."""
        verdict = self._verdict
        self._state = TUNNEL
        self._due_s = self._loop.time() + self._bounds.tunnel_timeout_ms / 1000
        self._started = True
        self._keep = False
        self._status = head.status
        self._source = UPSTREAM
        self._upstream_s = stopwatch_s() - self._asked_s
        if verdict.follower is not None:
            tell(verdict.follower.responded, head.status, head.headers)
        out = [
            b"HTTP/1.1 101 %s" % head.reason,
            *head.lines,
            b"%sConnection: Upgrade\r\nUpgrade: %s\r\n\r\n" % (field_lines(verdict.headers), head.upgrade),
        ]
        self._transport.write(b"\r\n".join(out) + data)
        early, self._buffer = self._buffer, b""
        if early:
            self._upstream.send(early, complete=False)  # type: ignore[union-attr]
        self._resume("ahead")

    def upstream_failed(self, status: int, issue: str) -> None:
        """Say so, or, when the response has begun, make sure that nobody takes it for complete."""
        self._upstream = None
        log.warning("a request %s", issue)
        self._fail(status, issue)

    # --- Answering

    def _fail(self, status: int, issue: str) -> None:
        """Answer with an error; if an answer has begun, break it off."""
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        if self._started:
            self._break_off()
            return
        self._answer_error(status, "request", issue, self._request.fields.headers, keep=status != 400)

    def _answer_error(
        self, status: int, subject: str, issue: str, headers: Sequence[tuple[bytes, bytes]], *, keep: bool
    ) -> None:
        judged = None if self._verdict is NO_VERDICT else self._verdict
        reply, verdict = self._service.errors.error(status, (subject, issue), judged, headers)
        if judged is not None and judged.follower is not None:
            tell(judged.follower.responded, reply.status, reply.headers)
        self._reply(reply, verdict, PROXY, keep=keep)

    def _break_off(self) -> None:
        if self._open_ended:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self._transport.abort()

    def _reply(self, reply: Reply, verdict: Verdict, source: str, *, keep: bool = True) -> None:
        """Send *reply* in the upstream's place, with the fields that *verdict* adds."""
        request = self._request
        self._take_in_body()
        self._started = True
        self._status = reply.status
        self._source = source
        self._keep = keep and self._keeps(request)
        out = [
            self._service.head_of(reply, verdict.headers),
            _date_line(),
            _connection(request, keep=self._keep),
            b"\r\n",
        ]
        if request.method != "HEAD":
            out.append(reply.body)
            self._sent = len(reply.body)
        self._transport.write(b"".join(out))
        self._finish()

    def _take_in_body(self) -> None:
        """Drop a body that is not forwarded, as far as it has come."""
        body = self._body
        if not body.done and self._buffer and self._state is not BODY:
            try:
                body.feed(self._buffer)
            except BodyError:
                return
            self._buffer = body.rest

    def _keeps(self, request: RequestHead) -> bool:
        """Whether the connection stays open after the response to *request*."""
        return request.fields.keep_alive and self._body.done and not self._service.draining and not request.upgrade

    def _finish(self) -> None:
        """The response is complete: on to the next request, or to the end."""
        self._upstream = None
        if self._request is not NO_REQUEST:
            self._record()
        if not self._keep or (self._half_closed and not self._buffer):
            self._close()
            return
        self._state = HEAD
        self._begun = False
        self._due_s = self._loop.time() + self._bounds.idle_timeout_ms / 1000
        if self._paused:
            self._resume("ahead")
            self._resume("upstream")
        if self._buffer:
            self._serve()

    def _close(self) -> None:
        """Close, in such a way that what was written last arrives.

        A socket that is closed while something unread is in it sends a reset, which may overtake the answer and destroy
        it (RFC 9112 section 9.6). So a client that may still be sending is read on for a moment.
        """
        self._state = GOODBYE
        now_s = self._loop.time()
        if self._half_closed or not (self._buffer or self._unread or not self._body.done):
            self._due_s = now_s + self._bounds.write_timeout_ms / 1000
            self._transport.close()
            return
        self._due_s = now_s + self._bounds.linger_ms / 1000
        self._searched = len(self._buffer)
        self._buffer = b""
        for why in list(self._paused):
            self._resume(why)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _record(self) -> None:
        """Tell the follower and the observer."""
        request, self._request = self._request, NO_REQUEST
        if self._verdict.follower is not None:
            tell(self._verdict.follower.ended)
        observer = self._service.observer
        if observer is None:
            return
        duration_s = stopwatch_s() - self._begun_s
        # What a named tuple does by itself, without the call of a function in Python.
        told = tuple.__new__(
            Exchanged,
            (
                request.method,
                request.target,
                self._status if self._started else 0,
                self._source,
                self._received,
                self._sent,
                duration_s * 1000,
                self._upstream_s * 1000,
                self._verdict.request_id,
            ),
        )
        observer.exchanged(told)

    # --- Deadlines and back-pressure

    def _too_slow(self) -> bool:
        counted_s = self._body_s - self._bounds.body_grace_ms / 1000
        return counted_s > 0 and self._received < counted_s * self._bounds.body_rate_min

    def _overdue(self) -> None:
        state = self._state
        if state is HEAD and not self._buffer:
            self._close()
        elif state is HEAD:
            self._refuse_head(HeadError(408, "did not come in full in time"))
        elif state is PREVIEW or (state is BODY and "upstream" not in self._paused):
            self._fail(408, "has a body that did not come in time")
        elif state in (BODY, RESPONSE) and not self._half_closed:
            self._fail(504, "was not answered by the upstream in time")
        else:
            self._transport.abort()

    def _pause(self, why: str) -> None:
        if not self._paused and not self._transport.is_closing():
            self._transport.pause_reading()
        self._paused.add(why)

    def _resume(self, why: str) -> None:
        if why in self._paused:
            self._paused.discard(why)
            if not self._paused and not self._transport.is_closing():
                self._transport.resume_reading()

    def _can_half_close(self) -> bool:
        return self._scheme == b"http"  # TLS has no such thing


def _connection(request: RequestHead, *, keep: bool) -> bytes:
    # RFC 9112 section 9.3: staying is the default of 1.1, closing that of 1.0.
    if not keep:
        return b"Connection: close\r\n"
    return b"Connection: keep-alive\r\n" if request.fields.http_1_0 else b""


class _Date:
    """The Date of our own answers, written once a second."""

    second = 0
    line = b""


def _date_line() -> bytes:
    now = int(time.time())
    if now != _Date.second:
        _Date.second = now
        _Date.line = b"date: %s\r\n" % formatdate(now, usegmt=True).encode()
    return _Date.line
