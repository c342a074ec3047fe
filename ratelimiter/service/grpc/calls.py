"""gRPC over HTTP/2: calls, their deadlines and statuses, and the methods that answer them."""

from __future__ import annotations

import asyncio
import logging
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from ratelimiter.service.grpc import hpack
from ratelimiter.service.grpc.connection import BODY_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from ratelimiter.service.grpc.hpack import Header
    from ratelimiter.service.grpc.stream import Stream

log = logging.getLogger(__name__)

PREFIX_BYTES = 5  # of a message: its compressed flag and its length
MESSAGE_CHARACTERS_MAX = 512  # of what a status says


class Status(IntEnum):
    """Results of a call that a server of ours tells."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class CallError(Exception):
    """A call that fails.

    Attributes:
        status: never OK.
        message: for people.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Call:
    """One call.

    Attributes:
        message: of the request, as it came.
        headers: metadata, names in lower case.
        peer: address of the caller; None on a unix socket.
        due_s: when the caller gives up, on the event loop's clock; None if it never said.
    """

    __slots__ = ("due_s", "headers", "message", "peer")

    def __init__(self, message: bytes, headers: list[Header], peer: str | None, due_s: float | None) -> None:
        self.message = message
        self.headers = headers
        self.peer = peer
        self.due_s = due_s


class Method(Protocol):
    """Answers a call with one message. It runs in no task unless it makes one, and is never cancelled."""

    def __call__(self, call: Call, /) -> Coroutine[Any, Any, bytes]:
        """Return the answer.

        Raises:
            CallError: the call fails.
        """


class Answers:
    """The answers to a call that may have many, until it ends.

    Args:
        stream: of the call.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.over = False  # True if the client has left
        stream.connection.begin(stream, _HEAD)

    def tell(self, message: bytes) -> None:
        """Send one more."""
        if not self.over:
            self._stream.connection.send(self._stream, prefixed(message))

    def end(self, status: Status = Status.OK, message: str = "") -> None:
        """End the call."""
        if not self.over:
            self.over = True
            self._stream.connection.end(self._stream, hpack.encode(_of_status(status, message)))


class StreamingMethod(Protocol):
    """Answers a call with any number of messages."""

    def __call__(self, call: Call, answers: Answers, /) -> Callable[[], None]:
        """Begin to answer; return what is to be called when the client leaves.

        Raises:
            CallError: the call fails.
        """


def prefixed(message: bytes) -> bytes:
    """Return *message* as it travels."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _of_status(status: Status, message: str) -> list[Header]:
    told = [(b"grpc-status", b"%d" % status)]
    if message:
        told.append((b"grpc-message", _percent_encoded(message[:MESSAGE_CHARACTERS_MAX])))
    return told


def _percent_encoded(text: str) -> bytes:
    """Return *text* as gRPC writes it in a header: printable ASCII but the percent sign, and escapes."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in text.encode()
    )


_HEAD = hpack.encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
_OK = hpack.encode([(b"grpc-status", b"0")])
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
TIMEOUT_DIGITS_MAX = 8


def read_timeout_s(text: bytes) -> float:
    """Return the seconds that a `grpc-timeout` of *text* gives.

    Raises:
        CallError: it is not one.
    """
    digits, unit = text[:-1], _UNITS_S.get(text[-1:])
    if unit is None or not digits.isdigit() or len(digits) > TIMEOUT_DIGITS_MAX:
        raise CallError(Status.INTERNAL, "grpc-timeout is not 1 to 8 digits and one of H, M, S, m, u, n")
    return int(digits) * unit


class Server:
    """The application of HTTP/2 connections that is a gRPC server.

    Args:
        methods: by path, such as `/grpc.health.v1.Health/Check`.
        streaming: likewise, those with more than one answer.
        loop: that it runs on.
        done: is told the path, the status and the seconds of each call. Must be quick and must not raise.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        streaming: Mapping[str, StreamingMethod],
        loop: asyncio.AbstractEventLoop,
        *,
        done: Callable[[str, Status, float], None] | None = None,
    ) -> None:
        self._methods = {path.encode(): (path, method) for path, method in methods.items()}
        self._streaming = {path.encode(): (path, method) for path, method in streaming.items()}
        self.loop = loop
        self._done = done
        self._timeouts: dict[bytes, float] = {}

    def requested(self, stream: Stream) -> None:
        """Answer a request; see `Application`."""
        head = stream.head
        if not head.content_type.startswith(b"application/grpc") or head.method != b"POST":
            _refuse_plainly(stream)
            return
        try:
            found = self._methods.get(head.path)
            call = self._call(stream)
            if found is None:
                self._stream(stream, call)
                return
        except CallError as fault:
            self._fail(stream, head.path.decode("latin-1") if head.path in self._methods else "", fault)
            return
        _Running(self, stream, found[0]).run(found[1](call))

    def oversized(self, stream: Stream) -> None:
        """Refuse a request; see `Application`."""
        fault = CallError(Status.RESOURCE_EXHAUSTED, f"the message is larger than {BODY_BYTES_MAX} bytes")
        self._fail(stream, "", fault)

    def _call(self, stream: Stream) -> Call:
        head, body = stream.head, bytes(stream.body)
        due_s = None
        if head.timeout:
            timeout_s = self._timeouts.get(head.timeout)
            if timeout_s is None:
                timeout_s = read_timeout_s(head.timeout)
                if len(self._timeouts) >= 64:  # a proxy has one, other clients as many as there are microseconds
                    self._timeouts.clear()
                self._timeouts[head.timeout] = timeout_s
            due_s = stream.opened_s + timeout_s
        if head.encoding not in (b"", b"identity"):
            raise CallError(Status.UNIMPLEMENTED, "messages must not be compressed")
        if (
            body[:1] != b"\0"
            or len(body) < PREFIX_BYTES
            or int.from_bytes(body[1:5], "big") != len(body) - PREFIX_BYTES
        ):
            if body[:1] == b"\x01":
                raise CallError(Status.UNIMPLEMENTED, "messages must not be compressed")
            raise CallError(Status.INTERNAL, "the request is not exactly one message")
        return Call(body[PREFIX_BYTES:], head.headers, stream.connection.peer, due_s)

    def _stream(self, stream: Stream, call: Call) -> None:
        found = self._streaming.get(stream.head.path)
        if found is None:
            raise CallError(Status.UNIMPLEMENTED, "there is no such method")
        path, method = found
        answers = Answers(stream)
        left = method(call, answers)

        def gone() -> None:
            answers.over = True
            left()
            stream.connection.end(stream, b"")
            self.tell(path, Status.CANCELLED, stream)

        stream.gone = gone

    def succeed(self, stream: Stream, path: str, message: bytes) -> None:
        """Answer with *message*."""
        stream.connection.answer(stream, _HEAD, b"\0" + len(message).to_bytes(4, "big") + message, _OK)
        if self._done is not None:
            self._done(path, Status.OK, self.loop.time() - stream.opened_s)

    def _fail(self, stream: Stream, path: str, fault: CallError) -> None:
        told = [(b":status", b"200"), (b"content-type", b"application/grpc"), *_of_status(fault.status, fault.message)]
        if fault.status is Status.UNIMPLEMENTED:
            told.append((b"grpc-accept-encoding", b"identity"))
        stream.connection.answer(stream, hpack.encode(told), b"", b"")
        self.tell(path, fault.status, stream)

    def fail(self, stream: Stream, path: str, error: BaseException) -> None:
        """Answer with what *error* means to the caller."""
        if not isinstance(error, CallError):
            log.error("a call of %s fails", path, exc_info=error)
            error = CallError(Status.INTERNAL, "the call failed")
        self._fail(stream, path, error)

    def tell(self, path: str, status: Status, stream: Stream) -> None:
        """Tell of a call that is over; its path is empty if it is no method's."""
        if self._done is not None:
            self._done(path, status, self.loop.time() - stream.opened_s)


class _Running:
    """A call that is being answered: its coroutine, run without a task, as most answers are there at once."""

    __slots__ = ("_path", "_server", "_stream")

    def __init__(self, server: Server, stream: Stream, path: str) -> None:
        self._server = server
        self._stream = stream
        self._path = path

    def run(self, answering: Coroutine[Any, Any, bytes]) -> None:
        try:
            awaited = answering.send(None)
        except StopIteration as end:
            self._server.succeed(self._stream, self._path, end.value)
        except (Exception, asyncio.CancelledError) as error:
            self._server.fail(self._stream, self._path, error)
        else:
            if awaited is None:  # asyncio.sleep(0)
                self._server.loop.call_soon(self.run, answering)
                return
            # By this mark asyncio tells a future that was awaited from one that was yielded by mistake.
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(lambda _: self.run(answering))


def _refuse_plainly(stream: Stream) -> None:
    """Answer a request that is not gRPC, as a browser or curl sends it."""
    if stream.head.method != b"POST":
        status, text = b"405", b"this port speaks gRPC, whose method is POST"
    else:
        status, text = b"415", b"this port speaks gRPC, whose content-type is application/grpc"
    told = [(b":status", status), (b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
    if status == b"405":
        told.append((b"allow", b"POST"))
    body = b"" if stream.head.method == b"HEAD" else text
    stream.connection.answer(stream, hpack.encode(told), body, b"")
