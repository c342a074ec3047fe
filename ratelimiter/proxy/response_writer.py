"""Heads of responses as the client gets them: functions from values to bytes."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING

from ratelimiter.core.reply import REASON_PHRASES
from ratelimiter.proxy.forwarded import via_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ratelimiter.proxy.head import Fields, ResponseHead

    Header = tuple[bytes, bytes]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def status_line(status: int) -> bytes:
    """Return the first line of a response of our own."""
    return b"HTTP/1.1 %d %s\r\n" % (status, REASON_PHRASES.get(status, "").encode())


def field_lines(headers: Iterable[Header]) -> bytes:
    """Return *headers* as they are written, each with its line end."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def connection_line(fields: Fields, *, keep: bool) -> bytes:
    """Return the Connection line of the response to a request with *fields*; empty if the default says the same."""
    # RFC 9112 section 9.3: staying is the default of 1.1, closing that of 1.0.
    if not keep:
        return b"Connection: close\r\n"
    return b"Connection: keep-alive\r\n" if fields.http_1_0 else b""


def forwarded_head(
    head: ResponseHead, headers: Sequence[Header], framing: bytes, fields: Fields, via: bytes, *, keep: bool
) -> bytes:
    """Return the head of the upstream's response as the client gets it.

    Args:
        head: of the upstream's response.
        headers: added to it.
        framing: the line about its framing, if it has no Content-Length.
        fields: of the request.
        via: the name of this proxy; empty for no Via.
        keep: True if the connection stays open.
    """
    if via:
        framing += via_line(via, http_1_0=head.http_1_0)
    if not keep or fields.http_1_0:
        framing += connection_line(fields, keep=keep)
    # An upstream says much the same again and again, so what is written of its head is kept with it.
    beginning = head.beginning or _beginning(head)
    ours = b"".join([b"%s: %s\r\n" % header for header in headers])
    return b"%s%s%s%s\r\n" % (beginning, ours, head.size, framing)


def _beginning(head: ResponseHead) -> bytes:
    if head.length is not None and head.status != 204:  # RFC 9110 section 8.6
        head.size = b"Content-Length: %d\r\n" % head.length
    head.beginning = b"HTTP/1.1 %d %s%s" % (head.status, head.reason, head.lines)
    return head.beginning


def informational(head: ResponseHead) -> bytes:
    """Return an informational response as the client gets it."""
    return b"HTTP/1.1 %d %s%s\r\n" % (head.status, head.reason, head.lines)


def switching(head: ResponseHead, headers: Sequence[Header], via: bytes) -> bytes:
    """Return the 101 *head* of an upgrade as the client gets it, *headers* added to it."""
    ours = field_lines(headers)
    if via:
        ours += via_line(via, http_1_0=head.http_1_0)
    return b"HTTP/1.1 101 %s%s%sConnection: Upgrade\r\nUpgrade: %s\r\n\r\n" % (
        head.reason,
        head.lines,
        ours,
        head.upgrade,
    )


class _Date:
    """The Date of our own answers, written once a second."""

    second = 0
    line = b""


def date_line() -> bytes:
    """Return the Date line of a response of our own (RFC 9110 section 6.6.1)."""
    now = int(time.time())
    if now != _Date.second:
        _Date.second = now
        _Date.line = b"date: %s\r\n" % formatdate(now, usegmt=True).encode()
    return _Date.line
