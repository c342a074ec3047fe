"""The server's end of an HTTP/2 connection (RFC 9113): frames in, responses out, and bounds for all a peer may do.

One class, and longer than other files: the frames of a connection act on one another, and every call passes here.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, cast

from ratelimiter.service.grpc import frames, hpack
from ratelimiter.service.grpc.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    HEAD,
    HEAD_BYTES,
    HEADERS,
    PREFACE,
    STREAM_MASK,
    WINDOW_MAX,
    ConnectionFault,
    ErrorCode,
    Setting,
    StreamFault,
)
from ratelimiter.service.grpc.glitches import GlitchBudget
from ratelimiter.service.grpc.request_head import check_trailers, read_head
from ratelimiter.service.grpc.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.service.grpc.hpack import Header
    from ratelimiter.service.grpc.request_head import RequestHead
    from ratelimiter.service.grpc.stream import Application

STREAMS_MAX = 1000  # requests at a time; those that were given up count until they are done
BODY_BYTES_MAX = 1_048_576  # of one request
# A stream's window is never moved: a content that does not fit is refused. The rest is for padding.
STREAM_WINDOW = BODY_BYTES_MAX + 65_536
CONNECTION_WINDOW = 4_194_304  # bytes of requests that are held at a time
WINDOW_TOLD = 32_768  # bytes of that window that were freed and not yet told
LIST_BYTES_MAX = 32_768  # of the headers of one request, uncompressed
BLOCK_BYTES_MAX = 65_536  # of the same, as they come
CONTINUATIONS_MAX = 16
HEADS_MAX = 64  # heads of requests that are remembered; a proxy sends the same one again and again
HEAD_REMEMBERED_MAX = 512  # bytes of one as it comes
RESET_MAX = 256  # numbers of streams that we have ended and the peer may not know of yet
FREE_GLITCHES = 4  # small frames, and window updates, of one stream; a thousand calls begin at once with some of each
SMALL = 256  # bytes; a frame of content that is smaller and not the last is a glitch

PREFACE_TIMEOUT_S = 10.0  # to begin, or to end a frame that was begun, or a header block
BODY_TIMEOUT_S = 30.0  # for the content of one request
SEND_TIMEOUT_S = 30.0  # for a peer without room for a response
IDLE_TIMEOUT_S = 600.0  # without a request
DRAIN_TIMEOUT_S = 5.0  # for the peer to answer the PING behind the first GOAWAY
DRAIN_PING = b"draining"

ALL = END_HEADERS | END_STREAM

OPENING = frames.settings(
    {
        Setting.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
        Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        Setting.MAX_HEADER_LIST_SIZE: LIST_BYTES_MAX,
    }
) + frames.window_update(0, CONNECTION_WINDOW - frames.WINDOW)

_OF_HTTP_1 = re.compile(rb"(?!PRI)[A-Z]{3,7} [/*h]")
HTTP_1 = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 38\r\nConnection: close\r\n\r\n"
HTTP_1 += b"this port speaks gRPC: HTTP/2, no less"

TOO_LARGE = hpack.encode([(b":status", b"431"), (b"content-length", b"0")])

log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """One client.

    Args:
        application: answers the requests.
        loop: that it runs on.
        connections: where it is as long as it is open.
    """

    transport: asyncio.Transport

    def __init__(self, application: Application, loop: asyncio.AbstractEventLoop, connections: set[Connection]) -> None:
        self.peer: str | None = None
        self._application = application
        self._loop = loop
        self._connections = connections
        self._buffer = b""
        self._begun = False  # True once the preface has come
        self._told_settings = False  # True once the peer's first SETTINGS has come
        self._closed = False
        self._paused = False
        self._out: list[bytes] = []
        self._flushing = False  # True if a flush is about to come
        self._streams: dict[int, Stream] = {}
        self._blocked: dict[int, Stream] = {}
        self._orphans = 0  # requests that were given up and are still worked on
        self._last_id = 0
        self._reset: dict[int, None] = {}
        self._decoder = hpack.Decoder(list_bytes_max=LIST_BYTES_MAX)
        self._heads: dict[bytes, RequestHead] = {}
        self._heads_made = 0  # for which state of the decoder
        self._block = bytearray()
        self._block_of = 0  # the stream whose header block is not complete
        self._block_flags = 0
        self._block_frames = 0
        self._receive_window = CONNECTION_WINDOW
        self._unsaid = 0
        self._send_window = frames.WINDOW
        self._stream_window = frames.WINDOW  # the peer's, for streams that are to be opened
        self._lead = b""  # of the next header block: that we keep no table, which a peer with a smaller one must hear
        self._table_given_up = False
        self._draining_after: int | None = None  # the last stream that is answered, once we drain
        self._draining_s = 0.0
        self._waiting_s: float | None = None  # since when a frame, a block or the preface is not complete
        self._quiet_s = 0.0  # since when there is no request
        self._stuck_s: float | None = None  # since when the peer does not read
        self._by_type: tuple[Callable[[int, int, bytes], None], ...] = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst_stream,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    # --- The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; see `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)  # of uvloop, which does not derive it
        address = transport.get_extra_info("peername")
        self.peer = address[0] if isinstance(address, tuple) else None
        self._connections.add(self)
        now_s = self._loop.time()
        self._glitches = GlitchBudget(now_s)
        self._waiting_s = self._quiet_s = now_s

    def connection_lost(self, _: Exception | None) -> None:
        """End; see `asyncio.Protocol`."""
        self._close()
        self._connections.discard(self)

    def pause_writing(self) -> None:
        """Read nothing from a peer that does not read: its acknowledgements would be ours to keep."""
        self._paused = True
        self._stuck_s = self._loop.time()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        self._paused, self._stuck_s = False, None
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        """Hang up: a client that sends no more reads no more."""
        return False

    def data_received(self, data: bytes) -> None:
        """Read frames; see `asyncio.Protocol`."""
        if self._closed:
            return
        if self._buffer:
            data = self._buffer + data
        self._flushing = True
        try:
            at = 0
            if not self._begun:
                at = self._begin(data)
            if self._begun:
                at = self._read(data, at)
            self._buffer = data[at:]
            if not self._buffer and not self._block_of and self._begun:
                self._waiting_s = None
            elif at or self._waiting_s is None:
                self._waiting_s = self._loop.time()
        except ConnectionFault as fault:
            self._fail(fault)
        except Exception:
            log.exception("a connection from %s fails", self.peer)
            self._fail(ConnectionFault(ErrorCode.INTERNAL_ERROR, ""))
        self._flushing = False
        self._flush()

    def _begin(self, data: bytes) -> int:
        """Return where the frames begin; 0 if the preface has not come in full."""
        if not PREFACE.startswith(data[: len(PREFACE)]):
            if _OF_HTTP_1.match(data):
                self._out.append(HTTP_1)
                self._shut()
                return 0
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the connection preface is not that of HTTP/2")
        if len(data) < len(PREFACE):
            return 0
        self._begun = True
        self._out.append(OPENING)  # not before: an HTTP/1 client could not read the answer behind it
        return len(PREFACE)

    def _read(self, data: bytes, at: int) -> int:
        """Act on every frame of *data* that is there in full; return where the first is that is not."""
        end = len(data)
        unpack, by_type, last = HEAD.unpack_from, self._by_type, CONTINUATION
        while end - at >= HEAD_BYTES and not self._closed:
            high, low, kind, flags, stream = unpack(data, at)
            stream &= STREAM_MASK
            length = high << 8 | low
            if length > FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, above {FRAME_BYTES}")
            stop = at + HEAD_BYTES + length
            if stop > end:
                break
            payload = data[at + HEAD_BYTES : stop]
            at = stop
            if self._block_of and kind != CONTINUATION:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "another frame within a header block")
            if not self._told_settings and kind != frames.SETTINGS:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            try:
                if kind <= last:
                    by_type[kind](flags, stream, payload)
                else:
                    self._glitch()  # section 4.1: of an unknown type; ignored
            except StreamFault as fault:
                self._reset_stream(stream, fault.code)
        return at

    # --- Requests

    def _on_headers(self, flags: int, stream: int, payload: bytes) -> None:
        if not stream & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS of stream {stream}, which no client opens")
        if flags & frames.PADDED:
            payload = frames.without_padding(flags, payload)
        fault = None
        if flags & frames.WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS is shorter than its priority")
            if int.from_bytes(payload[:4], "big") & STREAM_MASK == stream:
                fault = StreamFault(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._on_block(flags, stream, payload)
        else:
            self._block[:] = payload
            self._block_of, self._block_flags, self._block_frames = stream, flags, 0
        if fault is not None:
            raise fault

    def _on_continuation(self, flags: int, stream: int, payload: bytes) -> None:
        if not self._block_of or stream != self._block_of:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of no header block")
        self._block += payload
        self._block_frames += 1
        if len(self._block) > BLOCK_BYTES_MAX or self._block_frames > CONTINUATIONS_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large, or in too many frames")
        if flags & END_HEADERS:
            block = bytes(self._block)
            self._block.clear()
            self._block_of = 0
            self._on_block(self._block_flags, stream, block)

    def _on_block(self, flags: int, number: int, block: bytes) -> None:
        """Open a stream, or read the trailers of one."""
        if number <= self._last_id:
            self._on_trailers(flags, number, block)
            return
        self._last_id = number
        before = self._decoder.changes
        if before != self._heads_made:
            self._heads.clear()
            self._heads_made = before
        head = self._heads.get(block)
        if head is None:
            fields = self._decoded(block)
            if fields is None:
                self._glitch()
                self._out.append(frames.frame(HEADERS, ALL, number, self._lead + TOO_LARGE))
                self._lead = b""
                raise StreamFault(ErrorCode.NO_ERROR, "the headers are too large")
            head = read_head(fields)
            if self._decoder.changes == before and len(block) <= HEAD_REMEMBERED_MAX:
                if len(self._heads) >= HEADS_MAX:
                    self._heads.clear()
                self._heads[block] = head
        if self._draining_after is not None and number > self._draining_after:
            self._reset[number] = None
            return  # section 6.8: the peer will send it again elsewhere
        if len(self._streams) + self._orphans >= STREAMS_MAX:
            raise StreamFault(ErrorCode.REFUSED_STREAM, "too many streams")
        stream = Stream(self, number, head, now_s=self._loop.time(), receives=STREAM_WINDOW, sends=self._stream_window)
        self._streams[number] = stream
        if head.length is not None and head.length > BODY_BYTES_MAX:
            stream.working = True
            self._application.oversized(stream)
        elif flags & END_STREAM:
            self._on_end(stream)

    def _on_trailers(self, flags: int, number: int, block: bytes) -> None:
        fields = self._decoded(block)
        stream = self._streams.get(number)
        if stream is None:
            if number in self._reset:
                return
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"HEADERS of stream {number}, which is closed")
        if stream.ended:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS behind the end of the request")
        if not flags & END_STREAM:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "HEADERS in the midst of a request")
        check_trailers(fields or [])
        self._on_end(stream)

    def _decoded(self, block: bytes) -> list[Header] | None:
        try:
            return self._decoder.decode(block)
        except hpack.HpackError as fault:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(fault)) from None

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:  # noqa: PLR0912  # section 6.1, check by check
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the window of the connection")
        stream = self._streams.get(number)
        if stream is None or stream.ended:
            self._free(size)
            if not number or number > self._last_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"DATA of stream {number}, which is not open")
            if number in self._reset:
                return
            raise StreamFault(ErrorCode.STREAM_CLOSED, "DATA behind the end of the request")
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the window of the stream")
        data = frames.without_padding(flags, payload) if flags & frames.PADDED else payload
        if len(data) < size:
            self._free(size - len(data))
        if not flags & END_STREAM and len(data) < SMALL:
            self._glitch_of(stream)
        if stream.body:
            if not isinstance(stream.body, bytearray):
                stream.body = bytearray(stream.body)
            stream.body += data
        else:
            stream.body = data
        if stream.working:  # it was answered before it had come in full
            return
        if len(stream.body) > BODY_BYTES_MAX:
            stream.working = True
            self._application.oversized(stream)
        elif flags & END_STREAM:
            self._on_end(stream)

    def _on_end(self, stream: Stream) -> None:
        stream.ended = True
        if stream.head.length is not None and stream.head.length != len(stream.body):
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "content-length is not the length of the content")
        if not stream.working:
            stream.working = True
            self._application.requested(stream)

    def _free(self, size: int) -> None:
        """Give back room for *size* bytes of requests."""
        self._unsaid += size
        if self._unsaid >= WINDOW_TOLD:
            self._receive_window += self._unsaid
            self._out.append(frames.window_update(0, self._unsaid))
            self._unsaid = 0

    # --- Other frames

    def _on_priority(self, _: int, stream: int, payload: bytes) -> None:
        self._glitch()
        if not stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(payload) != 5:
            raise StreamFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 bytes")
        if int.from_bytes(payload[:4], "big") & STREAM_MASK == stream:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")

    def _on_rst_stream(self, _: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        if not number or number > self._last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM of stream {number}, which was never opened")
        self._glitch()
        stream = self._streams.get(number)
        if stream is not None:
            self._forget(stream)
        self._reset.pop(number, None)

    def _on_settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledges with a payload")
            if not self._told_settings:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame acknowledges SETTINGS")
            return
        self._told_settings = True
        self._glitch()
        read = frames.read_settings(payload)
        self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        for name, value in read:
            if name == Setting.HEADER_TABLE_SIZE and value < hpack.TABLE_BYTES and not self._table_given_up:
                self._table_given_up = True
                self._lead = hpack.NO_TABLE
            elif name == Setting.INITIAL_WINDOW_SIZE:
                self._on_stream_window(value)

    def _on_stream_window(self, size: int) -> None:
        grown, self._stream_window = size - self._stream_window, size
        for stream in self._streams.values():
            stream.send_window += grown
            if stream.send_window > WINDOW_MAX:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the window of a stream is too large")
        self._send_pending()

    def _on_push_promise(self, _: int, __: int, ___: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client promises a push")

    def _on_ping(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        if not flags & frames.ACK:
            self._glitch()
            self._out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == DRAIN_PING and self._draining_after is not None:
            self._leave()

    def _on_goaway(self, _: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY of a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 bytes")
        self._glitch()

    def _on_window_update(self, _: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        increment = int.from_bytes(payload, "big") & WINDOW_MAX
        if not number:
            self._glitch()
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
            self._send_window += increment
            if self._send_window > WINDOW_MAX:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the window of the connection is too large")
            self._send_pending()
            return
        if number > self._last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE of stream {number}, which was never opened")
        stream = self._streams.get(number)
        if stream is None:
            self._glitch()
            return
        self._glitch_of(stream)
        if not increment:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        stream.send_window += increment
        if stream.send_window > WINDOW_MAX:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "the window of the stream is too large")
        if number in self._blocked:
            self._send_stream(stream)

    # --- Responses

    def answer(self, stream: Stream, head: bytes, body: bytes, trailers: bytes) -> None:
        """Send a whole response; see `Connected`."""
        number, size = stream.id, len(body)
        if not self._answerable(stream):
            return
        if self._lead:
            head, self._lead = self._lead + head, b""
        out = self._out
        out.append(HEAD.pack(0, len(head), HEADERS, END_HEADERS if body or trailers else ALL, number))
        out.append(head)
        if size <= stream.send_window and size <= self._send_window and size <= FRAME_BYTES:
            if size:
                self._send_window -= size
                out.append(HEAD.pack(size >> 8, size & 0xFF, DATA, 0 if trailers else END_STREAM, number))
                out.append(body)
            if trailers:
                out.append(HEAD.pack(0, len(trailers), HEADERS, ALL, number))
                out.append(trailers)
            self._finished(stream)
        else:
            stream.pending, stream.trailers = body, trailers
            self._send_stream(stream)
        if not self._flushing:
            self._flush_soon()

    def begin(self, stream: Stream, head: bytes) -> None:
        """Send the head of a response that goes on; see `Connected`."""
        if stream.id in self._streams:
            self._out.append(frames.frame(HEADERS, END_HEADERS, stream.id, self._lead + head))
            self._lead = b""
            self._flush_soon()

    def send(self, stream: Stream, body: bytes) -> None:
        """Send more of a response that was begun; see `Connected`."""
        if stream.id in self._streams:
            stream.pending += body
            self._send_stream(stream)
            self._flush_soon()

    def end(self, stream: Stream, trailers: bytes) -> None:
        """End a response that was begun; see `Connected`."""
        if self._answerable(stream):
            stream.trailers = trailers
            self._send_stream(stream)
            self._flush_soon()

    def _answerable(self, stream: Stream) -> bool:
        """Return True if the peer still waits for *stream*, which the application is done with."""
        stream.working = False
        if stream.id in self._streams:
            return True
        if not self._closed:
            self._orphans -= 1
        return False

    def _send_stream(self, stream: Stream) -> None:
        """Send what the peer has room for, and the end if it is reached."""
        while stream.pending:
            room = min(stream.send_window, self._send_window, FRAME_BYTES)
            if room <= 0:
                if stream.id not in self._blocked:
                    stream.blocked_s = self._loop.time()
                    self._blocked[stream.id] = stream
                return
            part, stream.pending = stream.pending[:room], stream.pending[room:]
            stream.send_window -= len(part)
            self._send_window -= len(part)
            last = not stream.pending and stream.trailers == b""
            self._out.append(frames.frame(DATA, END_STREAM if last else 0, stream.id, part))
        self._blocked.pop(stream.id, None)
        if stream.trailers is None:
            return
        if stream.trailers:
            self._out.append(frames.frame(HEADERS, ALL, stream.id, stream.trailers))
        self._finished(stream)

    def _send_pending(self) -> None:
        for stream in list(self._blocked.values()):
            if self._send_window <= 0:
                break
            self._send_stream(stream)

    def _finished(self, stream: Stream) -> None:
        """Forget a stream whose response is written in full."""
        self._glitches.answered()
        if not stream.ended:  # section 8.1: the peer need not send the rest
            self._reset_stream(stream.id, ErrorCode.NO_ERROR)
            return
        del self._streams[stream.id]
        self._free(len(stream.body))
        if not self._streams:
            self._rest()

    def _rest(self) -> None:
        """Note that no request is in flight; close if the connection drains."""
        self._quiet_s = self._loop.time()
        if self._draining_after is not None and self._draining_after != frames.STREAM_MAX:
            self._shut()

    def _reset_stream(self, number: int, code: ErrorCode) -> None:
        """End a stream from our side."""
        self._out.append(frames.reset(number, code))
        self._reset[number] = None
        if len(self._reset) > RESET_MAX:
            del self._reset[next(iter(self._reset))]
        stream = self._streams.get(number)
        if stream is not None:
            self._forget(stream)
        if code != ErrorCode.NO_ERROR:  # a peer that provokes resets is one that resets (CVE-2025-8671)
            self._glitch()

    def _forget(self, stream: Stream) -> None:
        """Drop a stream that ended before its request or its response was complete."""
        del self._streams[stream.id]
        self._blocked.pop(stream.id, None)
        self._free(len(stream.body))
        if stream.working:
            self._orphans += 1
            stream.gone()
        if not self._streams:
            self._rest()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_late)

    def _flush_late(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        if self._out:
            if not self.transport.is_closing():
                self.transport.write(b"".join(self._out))
            self._out.clear()
        if self._closed and not self.transport.is_closing():
            self.transport.close()

    # --- The end

    def _glitch(self) -> None:
        self._glitches.spend(self._loop.time())

    def _glitch_of(self, stream: Stream) -> None:
        stream.glitches += 1
        if stream.glitches > FREE_GLITCHES:
            self._glitch()

    def _fail(self, fault: ConnectionFault) -> None:
        log.info("the connection from %s is closed: %s (%s)", self.peer, fault, fault.code.name)
        if not self._closed:
            self._out.append(frames.goaway(self._last_id, fault.code, str(fault)))
        self._close()

    def _shut(self) -> None:
        """Close once everything is sent."""
        self._close()
        self._flush_soon()

    def _close(self) -> None:
        """Cancel the calls in flight; the next flush closes the transport."""
        if self._closed:
            return
        self._closed = True
        streams, self._streams, self._blocked = self._streams, {}, {}
        for stream in streams.values():
            if stream.working:
                stream.gone()

    def drain(self) -> None:
        """Take no new requests, finish those that came, and close.

        The first GOAWAY names no last request, as requests are on their way. When the peer has answered the PING behind
        it, it knows, and the second GOAWAY names the last request that is answered (section 6.8).
        """
        if self._closed or self._draining_after is not None:
            return
        self._draining_after = frames.STREAM_MAX
        self._draining_s = self._loop.time()
        told = frames.goaway(frames.STREAM_MAX, ErrorCode.NO_ERROR, "draining")
        self._out.append(told + frames.frame(frames.PING, 0, 0, DRAIN_PING))
        self._flush_soon()

    def _leave(self) -> None:
        if self._draining_after == frames.STREAM_MAX:
            self._draining_after = self._last_id
            self._out.append(frames.goaway(self._last_id, ErrorCode.NO_ERROR, "draining"))
            if not self._streams:
                self._shut()

    def abort(self) -> None:
        """Close at once."""
        self._close()
        self.transport.abort()

    def tick(self, now_s: float) -> None:
        """Act on what is overdue; to be called about once a second."""
        if self._closed:
            return
        if self._stuck_s is not None and now_s - self._stuck_s > SEND_TIMEOUT_S:
            self.abort()
            return
        if self._waiting_s is not None and now_s - self._waiting_s > PREFACE_TIMEOUT_S:
            self._fail(ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame did not come in full in time"))
        elif not self._streams and now_s - self._quiet_s > IDLE_TIMEOUT_S:
            self.drain()
        if self._draining_after == frames.STREAM_MAX and now_s - self._draining_s > DRAIN_TIMEOUT_S:
            self._leave()
        try:
            for stream in list(self._streams.values()):
                late = not stream.ended and now_s - stream.opened_s > BODY_TIMEOUT_S
                stuck = stream.id in self._blocked and now_s - stream.blocked_s > SEND_TIMEOUT_S
                if late or stuck:
                    self._reset_stream(stream.id, ErrorCode.CANCEL)
        except ConnectionFault as fault:
            self._fail(fault)
        self._flush_soon()
