"""One request and its response on an HTTP/2 connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ratelimiter.service.grpc.request_head import RequestHead


class Application(Protocol):
    """Answers requests. Each is to be answered once, by `Connection.answer` or `Connection.end`, also if it is gone."""

    def requested(self, stream: Stream) -> None:
        """Answer a request that has come in full, now or later. Must not raise."""

    def oversized(self, stream: Stream) -> None:
        """Answer, at once, a request whose content is larger than `BODY_BYTES_MAX`. Must not raise."""


class Connected(Protocol):
    """The connection as an application sees it."""

    peer: str | None  # address of the client; None on a unix socket

    def answer(self, stream: Stream, head: bytes, body: bytes, trailers: bytes) -> None:
        """Send a whole response: blocks of headers and trailers, made by `hpack.encode`, and the content between.
        Without trailers the content is the end.
        """

    def begin(self, stream: Stream, head: bytes) -> None:
        """Send the head of a response that goes on."""

    def send(self, stream: Stream, body: bytes) -> None:
        """Send more of a response that was begun."""

    def end(self, stream: Stream, trailers: bytes) -> None:
        """End a response that was begun; empty trailers end it without any."""


class Stream:
    """A request, and as much of its response as the peer has not yet room for.

    Attributes:
        connection: that it belongs to.
        id: its number.
        head: of the request.
        body: its content so far.
        ended: True once the content is there in full.
        working: True from when the application has the request until it has answered it.
        gone: is called if the peer gives up a request that the application has not answered, or the connection is lost.
        opened_s: when it came, on the event loop's clock.
        receive_window: bytes that the peer may send.
        send_window: bytes that the peer has room for; below zero if it has taken back some.
        pending: of the response, what waits for room.
        trailers: that follow what is pending; None if more is to come.
        glitches: frames that brought it no further.
        blocked_s: when it began to wait for room.
    """

    __slots__ = (
        "blocked_s",
        "body",
        "connection",
        "ended",
        "glitches",
        "gone",
        "head",
        "id",
        "opened_s",
        "pending",
        "receive_window",
        "send_window",
        "trailers",
        "working",
    )

    def __init__(
        self, connection: Connected, number: int, head: RequestHead, *, now_s: float, receives: int, sends: int
    ) -> None:
        self.connection = connection
        self.id = number
        self.head = head
        self.body: bytes | bytearray = b""
        self.ended = False
        self.working = False
        self.glitches = 0
        self.gone = _ignore
        self.opened_s = now_s
        self.receive_window = receives
        self.send_window = sends
        self.pending = b""
        self.trailers: bytes | None = None
        self.blocked_s = 0.0


def _ignore() -> None:
    """Do nothing: most answers are on their way before a client can cancel."""
