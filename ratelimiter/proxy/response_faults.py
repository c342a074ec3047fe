"""Diagnosis of a response's head that cannot be forwarded: which line, which header, which bound; never a value."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ratelimiter.proxy.settings import ProxySettings

_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] [1-9][0-9]{2}(?: [\t -~\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t -~\x80-\xff]*")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")


def too_long(size: int, settings: ProxySettings) -> str:
    """Return the fault of a head of at least *size* bytes."""
    return f"has a head of {size} bytes or more; proxy: head_max allows {settings.head_max}"


def diagnosed(head: bytes) -> str:
    """Return the fault of a *head* that does not follow RFC 9112."""
    status, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if not _STATUS_LINE.fullmatch(status):
        return "has a malformed status line"
    last = "the status line"
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is not None:
            last = match[1].decode()
        elif line[:1] in (b" ", b"\t"):
            return f"folds the header {last} over two lines"
        elif b"\n" in line or b"\r" in line:
            return f"has a line break that is not CRLF in or after {_named(line) or last}"
        elif (name := _named(line)) and re.match(rb"[ \t]+:", line[len(name) :]):
            return f"has white space before the colon of the header {name}"
        else:
            return f"has a malformed line: {'the header ' + name if (name := _named(line)) else 'after ' + last}"
    return "has a malformed head"


def _named(line: bytes) -> str:
    match = _NAME.match(line)
    return match[0].decode() if match else ""
