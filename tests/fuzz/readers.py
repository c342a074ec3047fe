"""Two independent readers of HTTP/1.1, as the servers and clients around the proxy use them: h11 and llhttp."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import h11
import httptools

# llhttp refuses methods it does not know, and those of other protocols; h11 is the judge of these alone.
METHODS = frozenset(
    {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"PROPFIND", b"REPORT"}
)
HEAD_MAX = 1 << 20
DISPUTED = re.compile(rb"(?i)\n0+(?:;[^\n]*)?\r\n(?:[^\r\n]+\r\n)*(?:content-length|transfer-encoding):")

Header = tuple[bytes, bytes]


@dataclass
class Message:
    """One message as a reader read it.

    Attributes:
        start: method and target, or the status alone.
        staying: whether the connection is kept after it.
    """

    start: tuple[bytes, ...]
    version: bytes
    headers: list[Header]
    body: bytes = b""
    trailers: list[Header] = field(default_factory=list)
    complete: bool = False
    staying: bool = True

    def values(self, name: bytes) -> list[bytes]:
        """The values of the fields called *name*."""
        return [value for key, value in self.headers if key == name]

    @property
    def told(self) -> tuple[Any, ...]:
        """What two readers must agree on."""
        return (self.start, self.headers, self.body, self.trailers, self.complete)

    @property
    def bodiless(self) -> bool:
        """Whether it is a response that has no body, whatever it says."""
        return self.start[0].startswith(b"1") or self.start[0] in (b"204", b"304")

    @property
    def says_length(self) -> bool:
        """Whether it says how long its body is."""
        return bool(self.values(b"content-length") or self.values(b"transfer-encoding"))

    @property
    def outline(self) -> tuple[Any, ...]:
        """The same without the headers."""
        return (self.start, self.body, self.trailers, self.complete)


def disputed(raw: bytes) -> bool:
    """Whether *raw* may have trailers about framing: others refuse or ignore them, ours drops them."""
    return DISPUTED.search(raw) is not None


def _headers(headers: Any) -> list[Header]:
    return [(bytes(name).lower(), bytes(value).strip(b" \t")) for name, value in headers]


def requests_by_h11(raw: bytes) -> list[Message]:
    """The requests in *raw*; the last one may be incomplete. Reading stops at the first error."""
    read: list[Message] = []
    while raw:
        for _ in range(2):  # empty lines before a request (RFC 9112 section 2.2), which h11 does not know
            raw = raw.removeprefix(b"\r\n")
        message, raw, _ = _one_by_h11(h11.Connection(h11.SERVER, HEAD_MAX), raw)
        if message is not None:
            read.append(message)
        if message is None or not message.complete:
            break
    return read


def responses_by_h11(raw: bytes, method: bytes, *, ended: bool) -> tuple[list[Message], bytes]:
    """The responses in *raw* to one request, informational ones before the final one, and what is behind it.

    Args:
        raw: what the server sent.
        method: of the request.
        ended: whether the server closed the connection behind that.
    """
    connection = h11.Connection(h11.CLIENT, HEAD_MAX)
    connection.send(h11.Request(method=method, target="/x", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    read: list[Message] = []
    while True:
        message, raw, connection_ended = _one_by_h11(connection, raw, ended=ended)
        if message is not None:
            read.append(message)
        if message is None or connection_ended:
            return read, raw


def _one_by_h11(connection: Any, raw: bytes, *, ended: bool = False) -> tuple[Message | None, bytes, bool]:
    """A message, what is behind it, and whether it is a final one."""
    if raw:
        connection.receive_data(raw)
    if ended:
        connection.receive_data(b"")
    message: Message | None = None
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                message = Message((event.method, event.target), event.http_version, _headers(event.headers))
            elif isinstance(event, h11.InformationalResponse):
                start = (b"%d" % event.status_code,)
                message = Message(start, event.http_version, _headers(event.headers), complete=True)
                return message, b"", False
            elif isinstance(event, h11.Response):
                message = Message((b"%d" % event.status_code,), event.http_version, _headers(event.headers))
            elif isinstance(event, h11.Data) and message is not None:
                message.body += event.data
            elif isinstance(event, h11.EndOfMessage) and message is not None:
                message.trailers = _headers(event.headers)
                message.complete = True
                message.staying = connection.their_state is h11.DONE
                return message, connection.trailing_data[0], True
            else:
                return message, b"", True
    except h11.RemoteProtocolError:
        return message, b"", True


class _Collector:
    """Callbacks of llhttp."""

    def __init__(self) -> None:
        self.read: list[Message] = []
        self.parser: Any = None
        self.url = b""
        self.headers: list[Header] = []

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.begun = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.begun:
            self.read[-1].trailers.append((name.lower(), value.strip(b" \t")))
        else:
            self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.begun = True
        parser = self.parser
        asked = isinstance(parser, httptools.HttpRequestParser)
        start = (parser.get_method(), self.url) if asked else (b"%d" % parser.get_status_code(),)
        self.read.append(Message(start, parser.get_http_version().encode(), self.headers))

    def on_body(self, body: bytes) -> None:
        self.read[-1].body += body

    def on_message_complete(self) -> None:
        self.read[-1].complete = True
        self.read[-1].staying = self.parser.should_keep_alive()


def requests_by_llhttp(raw: bytes) -> list[Message]:
    """The requests in *raw*; the last one may be incomplete. Reading stops at the first error."""
    collector = _Collector()
    while raw:
        collector.parser = httptools.HttpRequestParser(collector)
        try:
            collector.parser.feed_data(raw)
        except httptools.HttpParserUpgrade as upgrade:  # to something that we do not speak either: read on
            raw = raw[upgrade.args[0] :]
        except httptools.HttpParserError:
            break
        else:
            break
    return collector.read


def responses_by_llhttp(raw: bytes, *, ended: bool) -> list[Message]:
    """The responses in *raw*, none of which may be one to HEAD; *ended* as above."""
    collector = _Collector()
    collector.parser = httptools.HttpResponseParser(collector)
    try:
        collector.parser.feed_data(raw)
    except (httptools.HttpParserUpgrade, httptools.HttpParserError):
        return collector.read
    last = collector.read[-1] if collector.read else None
    if ended and last and not last.says_length:
        last.complete = True  # of which the parser is not told by its binding
    return collector.read
