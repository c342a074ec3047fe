"""One request and its response: judged, forwarded or answered in the upstream's place, and recorded.

More than 400 lines, because it is one state machine: each transition changes the same deadline, and a cut would cost
calls on the hot path (tests/benchmarks/proxy_path.py). `response_writer` writes heads, `request_body` reads bodies.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from ratelimiter.clock import stopwatch_s
from ratelimiter.core.request import Request
from ratelimiter.proxy import max_forwards
from ratelimiter.proxy.body import chunk, has_body, last_chunk
from ratelimiter.proxy.eager import run
from ratelimiter.proxy.exchange_record import JUDGE, PROXY, UPSTREAM, ExchangeRecord
from ratelimiter.proxy.head import PLAIN_POLICY, Fields, HeadError, RequestHead
from ratelimiter.proxy.header_policy import trailer_lines
from ratelimiter.proxy.interfaces import AHEAD, UPSTREAM_FULL, Verdict, notify
from ratelimiter.proxy.pool import CrowdedError
from ratelimiter.proxy.request_body import RequestBody, RequestBodyError
from ratelimiter.proxy.response_writer import (
    CHUNKED,
    CONTINUE,
    connection_line,
    date_line,
    field_lines,
    forwarded_head,
    informational,
    switching,
)
from ratelimiter.proxy.settings import ASK, LEAVE, STAY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.reply import Reply
    from ratelimiter.proxy.head import ResponseHead
    from ratelimiter.proxy.interfaces import BodyObserver, Client
    from ratelimiter.proxy.proxy import Proxy
    from ratelimiter.proxy.upstream_connection import UpstreamConnection

    Header = tuple[bytes, bytes]

log = logging.getLogger(__name__)

NEVER_S = float("inf")

new = tuple.__new__  # what a named tuple does by itself, without the call of a function in Python

# What an exchange waits for. Which deadline is running follows from it.
PREVIEW = "preview"  # as much of the request's body as the judge wants to see
VERDICT = "verdict"
CONNECTION = "connection"  # to the upstream
BODY = "body"  # the rest of the request; its response may be under way already
RESPONSE = "response"  # the rest of it; the request is complete
TUNNEL = "tunnel"  # whatever either side sends
OVER = "over"  # nothing more

READING = frozenset({PREVIEW, BODY, TUNNEL})  # what comes from the client is this exchange's, and wanted now
READING_BODY = frozenset({PREVIEW, BODY})
ANSWER_DUE = frozenset({VERDICT, CONNECTION, RESPONSE})

UNREADABLE = RequestHead("", b"", Fields(b"1", PLAIN_POLICY))  # answered and told like a request, and forwarded nowhere
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 section 9.2.2

NO_VERDICT = Verdict(None, (), (), "")  # before there is one


class Exchange:
    """One request on a client's connection, and what comes of it: a ResponseReceiver.

    Args:
        client: the connection.
        request: its head.

    Attributes:
        state: what it waits for.
    """

    __slots__ = (
        "_asked_s",
        "_begun_s",
        "_body_observer",
        "_chunking",
        "_client",
        "_client_asked_s",
        "_complete",
        "_connecting",
        "_due_s",
        "_keep",
        "_left",
        "_open_ended",
        "_proxy",
        "_request",
        "_sent",
        "_sent_again",
        "_source",
        "_started",
        "_status",
        "_tunnelled",
        "_upload",
        "_upstream",
        "_upstream_s",
        "_upstream_timeout_ms",
        "_verdict",
        "state",
    )

    def __init__(self, client: Client, proxy: Proxy, request: RequestHead) -> None:
        self._client = client
        self._proxy = proxy
        self._request = request
        self.state = VERDICT
        self._due_s = NEVER_S
        self._verdict = NO_VERDICT
        fields = request.fields
        self._upload = RequestBody(fields, proxy.settings) if fields.has_body else None
        self._upstream: UpstreamConnection | None = None
        self._started = False  # True if the final response has begun
        self._chunking = False  # True if it leaves in chunks
        self._open_ended = False  # True if it ends with the connection
        self._complete = False  # True if the response came to its proper end
        self._left = False  # True if it did not because the client left
        self._keep = False  # True if the connection is kept after it
        self._body_observer: BodyObserver | None = None  # gets the response's content, too
        self._client_asked_s = -NEVER_S  # when it was asked if it is still there
        self._sent_again = False  # True if the request went out twice
        self._tunnelled = 0  # bytes that came for the tunnel
        self._sent = 0  # bytes of the response's content
        self._upstream_s = 0.0  # that the upstream took
        settings = proxy.settings
        self._upstream_timeout_ms = settings.upstream_timeout_ms
        if settings.upstream_timeouts:
            self._upstream_timeout_ms = settings.timeout_ms_of(request.method, request.target)
        self._begun_s = stopwatch_s()

    # --- Of the client's connection

    def ask(self) -> None:
        """Ask the judge, once as much of the body as it wants is there, and do as it says."""
        request = self._request
        asked = new(
            Request, (request.method, request.target, request.fields.headers, self._client.peer, "", None, None)
        )
        judge = self._proxy.judge
        if judge.looks_at_bodies:
            self._ask_with_body(asked, judge.body_wanted(asked))
        else:
            run(judge.judge(asked), self._judged)

    def refuse(self, fault: HeadError) -> None:
        """Answer a head that could not be read."""
        self._answer_error(fault.status, fault.subject, fault.issue, fault.headers, keep=False)

    def data_received(self, data: bytes) -> None:
        """Take in what is for this exchange; only while its state is one of `READING`."""
        if self.state is BODY:
            self._feed_body(data)
        elif self.state is PREVIEW:
            self._feed_preview(data)
        else:
            self._due_s = stopwatch_s() + self._proxy.settings.tunnel_timeout_ms / 1000
            self._tunnelled += len(data)
            self._upstream.send(data, complete=False)  # type: ignore[union-attr]  # a tunnel has two ends

    def eof_received(self, *, unread: bool = False) -> bool:
        """Return True if the client may still want its response, although it has closed its side.

        Only a client that is sent something shows whether it has closed the other side, too: with a reset. So before
        the response begins it is sent a 100 (Continue), which any client of HTTP/1.1 takes (RFC 9110 section 15.2). In
        the middle of a response nothing can be sent that would not be part of it: a client that closes then has left.

        Args:
            unread: True if the rest of the request may be unread, because reading is paused.
        """
        settings = self._proxy.settings
        if settings.half_closed == LEAVE:
            return False
        if self.state is TUNNEL:
            self._upstream.send_eof()  # type: ignore[union-attr]
            if settings.half_closed == ASK:
                # By far most have closed both ways; an upstream that does not answer in kind must not hold the tunnel.
                self._due_s = stopwatch_s() + settings.half_close_ms / 1000
            return True
        if self.state not in ANSWER_DUE and not unread:
            return False
        if self._started:
            return settings.half_closed == STAY
        self._ask_client(stopwatch_s())
        return True

    def _ask_client(self, now_s: float) -> None:
        """Make a client that has closed its side show if it has left."""
        interval_s = self._proxy.settings.half_close_ms / 1000
        if self._started or self._proxy.settings.half_closed != ASK or now_s - self._client_asked_s < interval_s:
            return
        self._client_asked_s = now_s
        if self._request.fields.http_1_0:
            self._due_s = min(self._due_s, now_s + interval_s)
        else:
            self._client.write(CONTINUE)

    def pause_writing(self) -> None:
        """Pause the upstream: the client reads more slowly than data comes."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume_writing(self) -> None:
        """Go on."""
        if self._upstream is not None:
            self._upstream.resume()

    def tick(self, now_s: float, passed_s: float) -> None:
        """See what is overdue."""
        if self._client.half_closed:
            self._ask_client(now_s)
        # A reading that is paused is not the client's fault.
        slow = (
            self._upload is not None
            and self.state in READING_BODY
            and not self._client.paused
            and self._upload.too_slow(passed_s)
        )
        if slow or now_s >= self._due_s:
            self._overdue()

    def retire(self) -> None:
        """Let the connection close behind the response."""
        self._keep = False

    def abandon(self) -> None:
        """Let go of everything, as the client is gone: by itself, or because its response was broken off."""
        if self.state is CONNECTION:
            self._connecting.cancel()
        state, self.state = self.state, OVER
        upstream, self._upstream = self._upstream, None
        self._left = upstream is not None or not self._started
        if upstream is not None:
            follower = self._verdict.follower
            drained = state is RESPONSE and follower is not None and follower.drains
            if drained and self._proxy.drains.begin(upstream, follower, self._body_observer):  # type: ignore[arg-type]
                self._record(followed=True)
                return
            upstream.close()
        self._record()

    @property
    def unread(self) -> bool:
        """True if the client may still be sending a part of the request."""
        return self._request is UNREADABLE or (self._upload is not None and not self._upload.done)

    # --- Judging

    def _ask_with_body(self, asked: Request, wanted: int) -> None:
        upload, client, settings = self._upload, self._client, self._proxy.settings
        fields = self._request.fields
        if not wanted or 0 < settings.body_max < (fields.length or 0):  # which is too long whatever it holds
            run(self._proxy.judge.judge(asked), self._judged)
        elif upload is None:
            run(self._proxy.judge.judge(asked._replace(body=b"")), self._judged)
        else:
            self.state = PREVIEW
            upload.begin_preview(wanted)
            data = client.take()
            if data:
                self._feed_preview(data)
                return
            self._due_s = stopwatch_s() + settings.body_timeout_ms / 1000
            if fields.expects:
                client.write(CONTINUE)

    def _feed_preview(self, data: bytes) -> None:
        """Keep a part of the body, and ask the judge when it is enough."""
        content = self._read_body(data)
        if content is None:
            return
        seen = self._upload.seen(content)  # type: ignore[union-attr]  # there is one in this state
        if seen is None:
            self._due_s = stopwatch_s() + self._proxy.settings.body_timeout_ms / 1000
            return
        self.state = VERDICT
        self._due_s = NEVER_S
        request, client = self._request, self._client
        asked = Request(request.method, request.target, request.fields.headers, client.peer, body=seen)
        run(self._proxy.judge.judge(asked), self._judged)

    def _judged(self, verdict: Verdict | BaseException) -> None:
        if self.state is not VERDICT:
            # The client is gone.
            if isinstance(verdict, Verdict) and verdict.follower is not None:
                notify(verdict.follower.ended, False, True)
            return
        if isinstance(verdict, BaseException):
            log.error("a request could not be judged", exc_info=verdict)
            self._fail(500, "could not be judged")
            return
        self._verdict = verdict
        if verdict.reply is not None:
            self._reply(verdict.reply, verdict, JUDGE)
            return
        if self._upload is not None and 0 < self._proxy.settings.body_max < (self._request.fields.length or 0):
            self._fail(413, "has too long a body")
            return
        if self._request.method in max_forwards.METHODS and max_forwards.left(self._request) == 0:
            self._reply(max_forwards.answer(self._request), verdict, PROXY)
            return
        connection = self._proxy.pool.take(resendable=self._resendable)
        if connection is not None:
            self._send_request(connection)
            return
        self._begin_connecting()

    # --- Forwarding

    @property
    def _resendable(self) -> bool:
        """Return True if the request may be sent twice: it is idempotent, and no body is sent."""
        return self._upload is None and self._request.method in IDEMPOTENT

    def _begin_connecting(self) -> None:
        self.state = CONNECTION
        self._due_s = NEVER_S  # the pool has its own deadline
        self._connecting = self._proxy.loop.create_task(self._connect())

    async def _connect(self) -> None:
        pool = self._proxy.pool
        try:
            connection = await pool.connect()
        except (OSError, TimeoutError, CrowdedError) as fault:
            status, why = _explained(fault)
            if self.state is CONNECTION:
                self._note_fault("found no connection to the upstream", status, why)
                self._fail(status, "could not be brought to the upstream")
            return
        if self.state is CONNECTION:
            self._send_request(connection)
        else:
            pool.keep(connection)

    def _send_request(self, connection: UpstreamConnection) -> None:
        request, upload, client, settings = self._request, self._upload, self._client, self._proxy.settings
        self._upstream = connection
        head = self._upstream_head(request)
        self._asked_s = now_s = stopwatch_s()
        if upload is None:
            self._await_response(now_s)
            connection.send_head(self, head, request, complete=True)
            return
        preview, upload.preview = upload.preview, None
        if preview is not None:
            head += upload.framed(bytes(preview), request.fields.policy.dropped)
        if upload.done:
            self._await_response(now_s)
            connection.send_head(self, head, request, complete=True)
            return
        self.state = BODY
        self._due_s = now_s + settings.body_timeout_ms / 1000
        data = client.take()
        if request.fields.expects and not data and preview is None:
            client.write(CONTINUE)
        connection.send_head(self, head, request, complete=False)
        client.resume(AHEAD)
        if data:
            self._feed_body(data)
        if client.half_closed and self.state is BODY:
            client.abort()  # the rest of it will never come

    def _await_response(self, now_s: float) -> None:
        self.state = RESPONSE
        self._due_s = now_s + self._upstream_timeout_ms / 1000
        if self._client.half_closed:
            self._ask_client(now_s)

    def _upstream_head(self, request: RequestHead) -> bytes:
        method, target, fields = request.method.encode(), request.target, self._client.forwarded(request.fields)
        if request.method in max_forwards.METHODS and (number := max_forwards.left(request)) is not None:
            fields = max_forwards.counted_down(fields, number)
        sent_on = self._verdict.sent_on
        more = field_lines(sent_on) if sent_on else b""
        if request.upgrade:
            more += b"Connection: Upgrade\r\nUpgrade: %s\r\n" % request.upgrade
        return b"%s %s HTTP/1.1\r\n%s%s\r\n" % (method, target, fields, more)

    def _feed_body(self, data: bytes) -> None:
        """Pass on a part of the request's body."""
        content = self._read_body(data)
        if content is None:
            return
        upload: RequestBody = self._upload  # type: ignore[assignment]  # there is one in this state
        settings = self._proxy.settings
        timeout_ms = settings.body_timeout_ms
        if upload.done:
            self.state = RESPONSE
            timeout_ms = self._upstream_timeout_ms
        self._due_s = stopwatch_s() + timeout_ms / 1000
        framed = upload.framed(content, self._request.fields.policy.dropped)
        self._upstream.send(framed, complete=upload.done)  # type: ignore[union-attr]  # nothing is read on without one

    def _read_body(self, data: bytes) -> bytes | None:
        """Return the content of the body in *data*; None if it cannot be forwarded, after the error was sent."""
        upload: RequestBody = self._upload  # type: ignore[assignment]  # only called with a body
        try:
            content = upload.feed(data)
        except RequestBodyError as fault:
            self._fail(fault.status, str(fault))
            return None
        if upload.done:
            self._client.put_back(upload.rest)
        return content

    # --- Of the upstream: what comes of the request (a ResponseReceiver)

    def upstream_full(self) -> None:
        """Send no more for now."""
        self._client.pause(UPSTREAM_FULL)
        self._due_s = stopwatch_s() + self._upstream_timeout_ms / 1000

    def upstream_ready(self) -> None:
        """Go on sending."""
        self._client.resume(UPSTREAM_FULL)
        if self.state is BODY:
            self._due_s = stopwatch_s() + self._proxy.settings.body_timeout_ms / 1000

    def informed(self, head: ResponseHead) -> None:
        """Pass an informational response on (RFC 9110 section 15.2); a 100 was sent already, by us."""
        if self.state is RESPONSE:  # the upstream is not silent
            self._due_s = stopwatch_s() + self._upstream_timeout_ms / 1000
        if head.status != 100 and not self._request.fields.http_1_0:
            self._client.write(informational(head))

    def responded(self, head: ResponseHead, content: bytes, *, complete: bool) -> None:
        """Pass on the response's head and the first of its content."""
        request = self._request
        self._begin_response(head)
        self._sent = len(content)
        if content and self._body_observer is not None:
            self._observe(content)
        if self.state is RESPONSE and not complete:
            self._due_s = self._asked_s + self._upstream_s + self._upstream_timeout_ms / 1000
        line = b""
        if head.length is None and has_body(request.method, head.status):
            if request.fields.http_1_0:
                self._open_ended = True
            else:
                self._chunking = True
                line = CHUNKED
                content = (chunk(content) if content else b"") + (last_chunk([]) if complete else b"")
        self._keep = keep = self._keeps()
        headers = self._verdict.headers
        if head.status == 429:  # the service limits, too, and it is its limit that is met
            headers = [header for header in headers if header[0].lower() not in request.fields.policy.figures]
        self._client.write(forwarded_head(head, headers, line, request.fields, self._proxy.via, keep=keep) + content)
        if complete:
            self._finish()

    def content(self, data: bytes) -> None:
        """Pass on content of the response, or anything that comes through a tunnel."""
        self._sent += len(data)
        settings = self._proxy.settings
        if self.state is RESPONSE:
            self._due_s = stopwatch_s() + self._upstream_timeout_ms / 1000
        elif self.state is TUNNEL and not self._client.half_closed:
            self._due_s = stopwatch_s() + settings.tunnel_timeout_ms / 1000
        if self._body_observer is not None:
            self._observe(data)
        self._client.write(chunk(data) if self._chunking else data)

    def ended(self, trailers: list[bytes]) -> None:
        """Complete the response; a tunnel has lost its other end."""
        if self.state is TUNNEL:
            self._upstream = None
            self._client.close(unread=False)
            return
        if self._chunking:
            self._client.write(last_chunk(trailer_lines(trailers, self._request.fields.policy.reserved_response)))
        self._finish()

    def switched(self, head: ResponseHead, data: bytes) -> None:
        """Become a tunnel (RFC 9110 section 7.8). What was judged was its handshake."""
        client = self._client
        self.state = TUNNEL
        self._begin_response(head)
        self._due_s = stopwatch_s() + self._proxy.settings.tunnel_timeout_ms / 1000
        self._body_observer = None  # what comes through a tunnel is no content
        client.write(switching(head, self._verdict.headers, self._proxy.via) + data)
        early = client.take()
        if early:
            self._upstream.send(early, complete=False)  # type: ignore[union-attr]
        client.resume(AHEAD)

    def unanswered(self) -> None:
        """Send the request once more on a new connection, if it may be; else fail."""
        self._upstream = None
        if self.state is not RESPONSE or not self._resendable or self._sent_again:
            self.upstream_failed(502, "was not answered by the upstream")
            return
        self._sent_again = True
        self._begin_connecting()

    def upstream_failed(self, status: int, issue: str) -> None:
        """Answer with an error; if the response has begun, cut it so that no client takes it for complete."""
        self._upstream = None
        self._note_fault(issue, status)
        self._fail(status, issue)

    def _note_fault(self, issue: str, status: int, why: object = "") -> None:
        """Log a fault of the upstream: one line, which the request id joins with the access log."""
        request, proxy = self._request, self._proxy
        told = f"the response was broken off after {self._sent} bytes" if self._started else f"answered {status}"
        log.warning(
            "%s %s %s; %s (upstream %s, request id %s)",
            request.method,
            request.target.partition(b"?")[0].decode("latin-1"),
            f"{issue}: {why}" if why else issue,
            told,
            proxy.pool.target.authority.decode(),
            self._verdict.request_id or "none",
        )

    # --- Answering

    def _begin_response(self, head: ResponseHead) -> None:
        self._started = True
        self._status = head.status
        self._source = UPSTREAM
        self._upstream_s = stopwatch_s() - self._asked_s
        follower = self._verdict.follower
        if follower is not None:
            self._body_observer = notify(follower.responded, head.status, head.headers)

    def _observe(self, content: bytes) -> None:
        """Show a piece of the response's content to its observer; one that fails sees no more."""
        try:
            self._body_observer(content)  # type: ignore[misc]  # there is one
        except Exception:
            log.exception("an observer of a response's body failed")
            self._body_observer = None

    def _fail(self, status: int, issue: str) -> None:
        """Answer with an error; if an answer has begun, break it off."""
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        if self._started:
            self._client.break_off(reset=self._open_ended)
            return
        self._answer_error(status, "request", issue, self._request.fields.headers, keep=status != 400)

    def _answer_error(self, status: int, subject: str, issue: str, headers: Sequence[Header], *, keep: bool) -> None:
        judged = None if self._verdict is NO_VERDICT else self._verdict
        reply, verdict = self._proxy.errors.error(status, (subject, issue), judged, headers)
        if judged is not None and judged.follower is not None:
            notify(judged.follower.responded, reply.status, reply.headers)
        self._reply(reply, verdict, PROXY, keep=keep)

    def _reply(self, reply: Reply, verdict: Verdict, source: str, *, keep: bool = True) -> None:
        """Send *reply* in the upstream's place, with the fields that *verdict* adds."""
        request, client, upload = self._request, self._client, self._upload
        if upload is not None and not upload.done and self.state is not BODY:
            client.put_back(upload.drop(client.take()))
        self._started = True
        self._status = reply.status
        self._source = source
        self._keep = keep and self._keeps()
        body = reply.body if request.method != "HEAD" else b""
        self._sent = len(body)
        head = self._proxy.head_of(reply, verdict.headers)
        client.write(b"%s%s%s\r\n%s" % (head, date_line(), connection_line(request.fields, keep=self._keep), body))
        self._finish()

    def _keeps(self) -> bool:
        """Return True if the connection stays open after the response."""
        request, upload = self._request, self._upload
        return (
            request.fields.keep_alive
            and (upload is None or upload.done)
            and not self._proxy.draining
            and not request.upgrade
            and not self._open_ended
        )

    def _finish(self) -> None:
        """End the exchange: the response is complete."""
        self._upstream = None
        self.state = OVER
        self._complete = True
        self._record()
        self._client.finished(keep=self._keep, unread=self.unread)

    def _record(self, *, followed: bool = False) -> None:
        """Tell the observer and, unless its response is *followed* to the end elsewhere, the follower."""
        verdict = self._verdict
        if verdict.follower is not None and not followed:
            notify(verdict.follower.ended, self._complete, self._left)
        observer = self._proxy.observer
        if observer is None:
            return
        request, upload, started = self._request, self._upload, self._started
        told = new(
            ExchangeRecord,
            (
                request.method,
                request.target,
                self._status if started else 0,
                self._source if started else PROXY,
                self._tunnelled if upload is None else upload.received,
                self._sent,
                (stopwatch_s() - self._begun_s) * 1000,
                self._upstream_s * 1000,
                verdict.request_id,
                self._client.peer,
                request.fields.headers,
                verdict.decision,
            ),
        )
        observer.exchanged(told)

    # --- Deadlines

    def _overdue(self) -> None:
        state = self.state
        if state is PREVIEW or (state is BODY and UPSTREAM_FULL not in self._client.paused):
            self._fail(408, "has a body that did not come in time")
        elif state in (BODY, RESPONSE) and not (self._client.half_closed and self._request.fields.http_1_0):
            issue = f"was not answered by the upstream within {self._upstream_timeout_ms} ms"
            self._note_fault(issue, 504)
            self._fail(504, issue)
        else:
            self._client.abort()


def _explained(fault: Exception) -> tuple[int, object]:
    """Return the status and the words for the fault that kept a request from the upstream."""
    if isinstance(fault, CrowdedError):
        return 503, "all connections that there may be are in use (proxy: upstream_connections_max)"
    if isinstance(fault, TimeoutError):
        return 504, "no answer in time"
    # Without a file descriptor it is us who cannot.
    return 503 if getattr(fault, "errno", 0) in (errno.EMFILE, errno.ENFILE) else 502, fault
