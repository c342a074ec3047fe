"""Max-Forwards of TRACE and OPTIONS: the proxy counts it down, and answers itself at zero (RFC 9110 section 7.6.2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ratelimiter.core.reply import Reply

if TYPE_CHECKING:
    from ratelimiter.proxy.head import RequestHead

METHODS = frozenset({"TRACE", "OPTIONS"})  # of any other method the field says nothing
ALLOWED = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE"
# Section 9.3.8: what is echoed holds no credential, so it holds only fields that never are one.
ECHOED = frozenset({b"host", b"max-forwards", b"via", b"user-agent", b"accept", b"content-length"})

_LINE = re.compile(rb"(?im)^max-forwards:[ \t]*[0-9]+[ \t]*\r\n")


def left(request: RequestHead) -> int | None:
    """Return the number of times that *request* may still be forwarded; None if there is no limit."""
    if request.method not in METHODS:
        return None
    values = [value for name, value in request.fields.headers if name == b"max-forwards"]
    return int(values[0]) if len(values) == 1 and re.fullmatch(rb"[0-9]{1,9}", values[0]) else None


def counted_down(lines: bytes, number: int) -> bytes:
    """Return the field *lines* of a request that may be forwarded *number* times, one less."""
    return _LINE.sub(b"Max-Forwards: %d\r\n" % (number - 1), lines)


def answer(request: RequestHead) -> Reply:
    """Return the answer of the final recipient, which this proxy is: to OPTIONS its methods, to TRACE the request."""
    if request.method == "OPTIONS":
        return Reply(200, [(b"allow", ALLOWED), (b"content-length", b"0")], b"")
    fields = [b"%s: %s\r\n" % header for header in request.fields.headers if header[0] in ECHOED]
    body = b"TRACE %s HTTP/1.1\r\n%s\r\n" % (request.target, b"".join(fields))
    return Reply(200, [(b"content-type", b"message/http"), (b"content-length", b"%d" % len(body))], body)
