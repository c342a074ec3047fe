"""The head of a request as HTTP/2 has it: pseudo-header fields, and what makes a request malformed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.service.grpc.frames import ErrorCode, StreamFault

if TYPE_CHECKING:
    from ratelimiter.service.grpc.hpack import Header

PSEUDO = (b":method", b":scheme", b":path", b":authority")
# RFC 9113 section 8.2.2: of a connection, which HTTP/2 has its own means for.
OF_CONNECTION = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_NAME = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_NOT_IN_VALUE = frozenset(b"\0\r\n")


class RequestHead(NamedTuple):
    """A request without its content."""

    method: bytes
    path: bytes  # the request target, query included
    headers: list[Header]  # names in lower case, without pseudo-headers
    length: int | None  # of the content, as far as it was told
    content_type: bytes
    timeout: bytes  # grpc-timeout, as it came
    encoding: bytes  # grpc-encoding


def read_head(fields: list[Header]) -> RequestHead:
    """Return the head that *fields* are.

    Raises:
        StreamFault: the request is malformed (section 8.1.1).
    """
    pseudo: dict[bytes, bytes] = {}
    headers: list[Header] = []
    for name, value in fields:
        if name[:1] == b":":
            if headers or name in pseudo or name not in PSEUDO:
                raise _malformed("a pseudo-header is unknown, is there twice, or stands behind a header")
            pseudo[name] = value
        else:
            _check(name, value)
            headers.append((name, value))
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if not (method and path and pseudo.get(b":scheme")):
        raise _malformed(":method, :scheme or :path is missing or empty")
    found = dict(headers)
    return RequestHead(
        method,
        path,
        headers,
        _length(headers),
        found.get(b"content-type", b""),
        found.get(b"grpc-timeout", b""),
        found.get(b"grpc-encoding", b""),
    )


def check_trailers(fields: list[Header]) -> None:
    """Refuse trailers that are malformed; what they say is of no account.

    Raises:
        StreamFault: a field must not be there (section 8.1).
    """
    for name, value in fields:
        _check(name, value)


def _check(name: bytes, value: bytes) -> None:
    if not name or not _NAME.issuperset(name):
        raise _malformed("a header's name is empty, in upper case or no token")
    if name in OF_CONNECTION or (name == b"te" and value != b"trailers"):
        raise _malformed(f"{name.decode()} means nothing in HTTP/2")
    if not _NOT_IN_VALUE.isdisjoint(value):
        raise _malformed(f"{name.decode()} holds a line break or a zero byte")


def _length(headers: list[Header]) -> int | None:
    told = {value for name, value in headers if name == b"content-length"}
    if not told:
        return None
    text = told.pop()
    if told or not text.isdigit() or len(text) > 15:
        raise _malformed("content-length is no number, or is two")
    return int(text)


def _malformed(issue: str) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, issue)
