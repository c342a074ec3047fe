"""Fields of a query, of a form and of cookies, read so that the limiter and the application see the same."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from ratelimiter.core.request import MalformedRequest

FIELDS_MAX = 1000  # of one request; real forms have dozens

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NAME = re.compile(rb';[ \t]*name=(?:"((?:[^"\\\r\n])*)"|([^\s";,\\]+))(?=[ \t]*(?:;|$))', re.IGNORECASE)
_BOUNDARY = re.compile(rb';[ \t]*boundary=(?:"([^"\\\r\n]{1,70})"|([^\s";,]{1,70}))[ \t]*(?:;|$)', re.IGNORECASE)


class FormFields(dict[bytes, list[bytes]]):
    """Values by name, in order, each as often as it was sent."""

    def add(self, name: bytes, value: bytes) -> None:
        """Add a value."""
        self.setdefault(name, []).append(value)


def read_urlencoded(text: bytes, where: str) -> FormFields:
    """Read `a=1&b=2`, percent-encoded, with `+` for a space.

    Args:
        text: a query, or the body of a form.
        where: named in the error: `query` or `body`.

    Raises:
        MalformedRequest: servers read it differently: there is a broken escape; or it has too many fields.
    """
    if text.count(b"&") >= FIELDS_MAX:
        raise MalformedRequest(where, f"has more than {FIELDS_MAX} fields")
    if _BROKEN_ESCAPE.search(text):
        raise MalformedRequest(where, "has a percent sign without two hexadecimal digits")
    fields = FormFields()
    for pair in text.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            fields.add(_decoded(name), _decoded(value))
            # Some servers part pairs at a semicolon, too: what they would read counts as another value of its name.
            for also in pair.split(b";")[1:]:
                name, equals, value = also.partition(b"=")
                if equals:
                    fields.add(_decoded(name), _decoded(value))
    return fields


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" ")) if b"%" in text or b"+" in text else text


def read_multipart(body: bytes, content_type: bytes) -> FormFields:
    """Read the fields of a `multipart/form-data` body (RFC 7578); files are left out.

    Raises:
        MalformedRequest: it has no boundary, or a part without a name or with two; or it has too many parts.
    """
    found = _BOUNDARY.findall(content_type)
    if len(found) != 1:
        raise MalformedRequest("content-type", "must name one boundary")
    parts = (b"\r\n" + body).split(b"\r\n--" + (found[0][0] or found[0][1]))
    if len(parts) > FIELDS_MAX:
        raise MalformedRequest("body", f"has more than {FIELDS_MAX} fields")
    fields = FormFields()
    for part in parts[1:]:
        if part.startswith(b"--"):
            break
        head, blank, value = part.partition(b"\r\n\r\n")
        dispositions = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition:")]
        if not blank or len(dispositions) != 1:
            raise MalformedRequest("body", "has a part without one Content-Disposition")
        if b"filename" in dispositions[0].lower():
            continue
        names = _NAME.findall(dispositions[0])
        if len(names) != 1 or b"name*" in dispositions[0].lower():
            raise MalformedRequest("body", "has a part without one name")
        fields.add(names[0][0] or names[0][1], value)
    return fields


def read_cookies(lines: list[bytes]) -> FormFields:
    """Read the cookies of `Cookie` header lines (RFC 6265 section 5.4); a pair of quotes around a value is taken off.

    Raises:
        MalformedRequest: there are too many.
    """
    pairs = b";".join(lines).split(b";")
    if len(pairs) > FIELDS_MAX:
        raise MalformedRequest("cookie", f"has more than {FIELDS_MAX} cookies")
    cookies = FormFields()
    for pair in pairs:
        name, equals, value = pair.partition(b"=")
        if equals:
            value = value.strip()
            if len(value) > 1 and value[:1] == value[-1:] == b'"':
                value = value[1:-1]
            cookies.add(name.strip(), value)
    return cookies
