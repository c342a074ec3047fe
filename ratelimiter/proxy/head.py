"""The head of a request or a response, read strictly: what RFC 9112 does not spell out is refused, not repaired.

A head is matched as a whole against its grammar, which has no leniencies: lines end in CRLF, no line is folded, no
control character stands anywhere, a field's name is a token and its colon follows at once. What is left to decide is
meaning: how the body is framed, which host the message is for, what is said about the connection. Both kinds of heads
share the grammar, so they share this file, although it is longer than 400 lines.
"""

from __future__ import annotations

import re
from copy import copy
from typing import TYPE_CHECKING

from ratelimiter.proxy import response_faults
from ratelimiter.proxy.header_policy import OF_CONNECTION, OF_FRAMING, UPGRADES, HeaderPolicy, options_of, without
from ratelimiter.proxy.settings import PASS, REFUSE

if TYPE_CHECKING:
    from ratelimiter.proxy.settings import ProxySettings

    Header = tuple[bytes, bytes]

END = b"\r\n\r\n"

# RFC 9110 section 5.6.2 and 5.5; RFC 9112 sections 3 and 4. Possessive, so that matching is linear.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_FIELDS = rb"((?:" + _TOKEN + rb":[\t -~\x80-\xff]*+\r\n)*+)\r\n"
_CHARACTERS = rb"[A-Za-z0-9\-._~!$&'()*+,;=:@]"
_METHOD = rb"[A-Z][A-Z\-]{0,31}"  # as in a policy file; every registered one is written so
_REQUEST_LINE = re.compile(rb"(" + _METHOD + rb") ([!-~]++) HTTP/1\.([0-9])\r\n")
_REQUEST_FIELDS = re.compile(rb"[0-9]\r\n" + _FIELDS)
_RESPONSE = re.compile(
    rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: ([\t -~\x80-\xff]*+))?"
    rb"(\r\n(?:" + _TOKEN + rb":[\t -~\x80-\xff]*+\r\n)*+)\r\n"
)

# What is said of a request line that is no such thing: the first that matches.
_REQUEST_LINE_FAULTS = tuple(
    (re.compile(pattern), status, issue)
    for pattern, status, issue in (
        (rb"\x16\x03", 400, "is encrypted, which this port is not for"),
        (rb"(?:" + _METHOD + rb") [!-~]+ HTTP/1\.[0-9]$", 400, "has a malformed header line"),
        (rb"(?:" + _METHOD + rb") [!-~]+ HTTP/[0-9]\.[0-9]$", 505, "is not of HTTP/1.1"),
        (rb"[A-Za-z\-]+ [!-~]+$", 400, "has no protocol version"),
        (rb"[!-~]* [ -~]* HTTP/", 400, "has a malformed method or target"),
        (rb"", 400, "does not begin with a request line"),
    )
)
# What no continuation can make good: a control character, or a CR or LF without the other.
_HOPELESS = re.compile(rb"[^\t\r\n -~\x80-\xff]|(?<!\r)\n|\r(?!\n|\Z)")

# RFC 3986 section 3.2.2, RFC 9112 section 3.2: a name may have any of these and escapes, a port no digits.
_HOST = re.compile(
    rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=\-]|%[0-9A-Fa-f]{2})++"
    rb"|\[(?:[0-9A-Fa-f:.]+|v[0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:\-]+)\])(?::[0-9]{0,5})?|"
)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_UNKNOWN_CODING = re.compile(_TOKEN + rb"(?:[ \t]*,[ \t]*chunked)?", re.IGNORECASE)
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]*)(.*)")
# A target that is its own canonical form unless it holds a dot segment: by far most are.
_PLAIN_TARGET = re.compile(rb"/(?:" + _CHARACTERS + rb"++/)*+" + _CHARACTERS + rb"*+(?:\?[!-\"$-~]*+)?")

REMEMBERED_MAX = 2048  # bytes of a head, or of its fields, that a connection may remember to know them again


PLAIN_POLICY = HeaderPolicy()  # of a judge that reserves nothing


class HeadError(ValueError):
    """A head that is not forwarded.

    Attributes:
        status: what the client is told; of a response it is 502, always.
        issue: what is wrong, a predicate in words fit for the client; never anything that was sent.
        subject: of what it is said: `request`, `path` or `response`.
        headers: of the request, as far as they could be read.
    """

    def __init__(self, status: int, issue: str, subject: str = "request") -> None:
        super().__init__(f"{subject} {issue}")
        self.status = status
        self.issue = issue
        self.subject = subject
        self.headers: list[Header] = []


class Fields:
    """The header fields of a request, and what they say. Clients send much the same ones again and again."""

    __slots__ = (
        "chunked",
        "expects",
        "has_body",
        "headers",
        "host",
        "http_1_0",
        "keep_alive",
        "length",
        "lines",
        "policy",
        "raw",
        "upgrade",
    )

    def __init__(self, raw: bytes, policy: HeaderPolicy) -> None:
        self.raw = raw  # as they came, the minor version before them
        self.policy = policy
        self.http_1_0 = raw.startswith(b"0")
        self.headers: list[Header] = []  # all that came, in order; names in lower case
        self.lines: list[bytes] = []  # of them, as written, those that are forwarded unchanged
        self.host = b""
        self.length: int | None = None  # of the body; None when nothing was said
        self.chunked = False
        self.has_body = False
        self.keep_alive = not self.http_1_0
        self.expects = False  # 100-continue
        self.upgrade = b""  # what the connection shall become; empty for nothing


class RequestHead:
    """A request as it is judged and forwarded."""

    __slots__ = ("fields", "method", "plain", "target", "upgrade")

    def __init__(self, method: str, target: bytes, fields: Fields, *, plain: bool = True) -> None:
        self.method = method
        self.target = target  # path and query, as the upstream gets them
        self.plain = plain  # True if all servers read the path alike
        self.fields = fields
        self.upgrade = fields.upgrade if method == "GET" else b""


class ResponseHead:
    """A response as it is passed on."""

    __slots__ = (
        "beginning",
        "chunked",
        "http_1_0",
        "keep_alive",
        "length",
        "lines",
        "raw",
        "reason",
        "size",
        "status",
        "upgrade",
    )

    def __init__(self, status: int, reason: bytes, raw: bytes, *, http_1_0: bool) -> None:
        self.status = status
        self.reason = reason
        self.raw = raw  # all field lines, as they came, and the line end before them
        self.http_1_0 = http_1_0
        self.lines = raw  # of them, those that are passed on; the line end before them, too
        self.length: int | None = None  # of the body; None when nothing was said
        self.chunked = False
        self.keep_alive = not http_1_0
        self.upgrade = b""
        self.beginning = b""  # as it is written, up to what differs between requests; empty until that is asked for
        self.size = b""  # the line with the length as it is written; as empty

    @property
    def headers(self) -> list[Header]:
        """All fields, in order, names in lower case."""
        pairs = [line.partition(b":") for line in self.raw.split(b"\r\n")[1:-1]]
        return [(name.lower(), value.strip(b" \t")) for name, _, value in pairs]


def check_beginning(data: bytes, since: int, settings: ProxySettings) -> None:
    """Refuse the beginning of a head that no continuation can make good, rather than wait for it.

    Args:
        data: what has come, at least one byte.
        since: how much of it was looked at before.
        settings: on sizes.

    Raises:
        HeadError: so it is.
    """
    line, newline, _ = data.partition(b"\r\n")
    if len(line) > settings.target_max + 64:  # a method and a version have room in that
        raise HeadError(414, "has too long a target")
    if len(data) > settings.head_max:
        raise HeadError(431, "has too long a head")
    if newline and not re.fullmatch(rb"(?:" + _METHOD + rb") [!-~]+ HTTP/1\.[0-9]", line):
        raise _request_line_fault(line)
    if _HOPELESS.search(data, max(0, since - 1)) or data[0] <= 0x20:
        raise _request_line_fault(line) if not newline else HeadError(400, "has a malformed header line")


def _request_line_fault(line: bytes) -> HeadError:
    for pattern, status, issue in _REQUEST_LINE_FAULTS:
        if pattern.match(line):
            return HeadError(status, issue)
    raise AssertionError  # the last pattern matches everything


def parse_request(
    head: bytes,
    settings: ProxySettings,
    policy: HeaderPolicy = PLAIN_POLICY,
    before: Fields | None = None,
) -> RequestHead:
    """Read a request's head.

    Args:
        head: from the request line to the empty line, both included.
        settings: on sizes and counts.
        policy: which fields are forwarded.
        before: fields that were read before, to be taken over if they are the same to the byte.

    Raises:
        HeadError: it is not what RFC 9112 wants, is out of bounds, or can be read in two ways.
    """
    match = _REQUEST_LINE.match(head)
    if match is None or len(head) > settings.head_max:
        line = head.partition(b"\r\n")[0]
        if len(line) > settings.target_max:
            raise HeadError(414, "has too long a target")
        raise HeadError(431, "has too long a head") if match else _request_line_fault(line)
    raw = head[match.start(3) :]
    fields = before
    if fields is None or fields.raw != raw or fields.policy is not policy:
        fields = _read_fields(raw, settings, policy)
    try:
        return _with_target(match[1].decode(), match[2], fields, settings)
    except HeadError as fault:
        fault.headers = fields.headers
        raise


def _read_fields(raw: bytes, settings: ProxySettings, policy: HeaderPolicy) -> Fields:
    match = _REQUEST_FIELDS.fullmatch(raw)
    if match is None:
        raise HeadError(400, "has a malformed header line")
    fields = Fields(raw, policy)
    headers = fields.headers
    lines = fields.lines
    dropped = policy.dropped
    special: list[Header] = []
    for line in match[1][:-2].split(b"\r\n") if match[1] else ():
        name, _, value = line.partition(b":")
        header = (name.lower(), value.strip(b" \t"))
        headers.append(header)
        name = header[0]
        if name in dropped:
            if name in OF_FRAMING:
                special.append(header)
        elif b"_" not in name or settings.underscore_headers == PASS:
            # CGI and WSGI read it as its twin with hyphens.
            if b"_" not in name or name.replace(b"_", b"-") not in dropped:
                lines.append(line)
        elif settings.underscore_headers == REFUSE:
            raise HeadError(400, "has a header field with an underscore in its name")
    try:
        if len(headers) > settings.fields_max:
            raise HeadError(431, "has too many header fields")
        _read_request_fields(fields, special)
    except HeadError as fault:
        fault.headers = headers
        raise
    return fields


def _read_request_fields(fields: Fields, special: list[Header]) -> None:
    """Read from the fields how the body is framed and what the connection is to become."""
    coding: bytes | None = None
    length: bytes | None = None
    options: list[bytes] = []
    upgrade = b""
    host: bytes | None = None
    for name, value in special:
        if name == b"host":
            if host is not None:
                raise HeadError(400, "has more than one Host")
            host = value
        elif name == b"content-length":
            if length is not None:
                raise HeadError(400, "has more than one Content-Length")
            if not _LENGTH.fullmatch(value):
                raise HeadError(400, "has a Content-Length that is no number of bytes")
            length = value
        elif name == b"transfer-encoding":
            if coding is not None:
                raise HeadError(400, "has more than one Transfer-Encoding")
            coding = value.lower()
        elif name == b"connection":
            options += options_of(value)
        elif name == b"upgrade":
            upgrade = value.lower()
        elif name == b"expect":
            # Any other expectation is none that we could meet, and may be ignored (RFC 9110 section 10.1.1).
            fields.expects = value.lower() == b"100-continue" and not fields.http_1_0
    _read_host(fields, host)
    _read_framing(fields, coding, length)
    if options:
        _read_options(fields, options, upgrade)


def _read_host(fields: Fields, host: bytes | None) -> None:
    # RFC 9112 section 3.2
    if host is None:
        if not fields.http_1_0:
            raise HeadError(400, "has no Host")
    elif not _HOST.fullmatch(host):
        raise HeadError(400, "has a Host that is no host and port")
    else:
        fields.host = host


def _read_framing(fields: Fields, coding: bytes | None, length: bytes | None) -> None:
    # RFC 9112 section 6.3: what two readers could frame differently is how requests are smuggled.
    if coding is not None:
        if length is not None:
            raise HeadError(400, "has both Content-Length and Transfer-Encoding")
        if fields.http_1_0:
            raise HeadError(400, "is of HTTP/1.0 and has a Transfer-Encoding")
        if coding != b"chunked":
            known = b"chunked" in coding and coding.count(b"chunked") != 1
            status = 501 if _UNKNOWN_CODING.fullmatch(coding) and not known else 400
            raise HeadError(status, "has a Transfer-Encoding other than chunked")
        fields.chunked = fields.has_body = True
    elif length is not None:
        fields.length = int(length)
        fields.has_body = fields.length > 0


def _read_options(fields: Fields, options: list[bytes], upgrade: bytes) -> None:
    if b"close" in options:
        fields.keep_alive = False
    elif fields.http_1_0 and b"keep-alive" in options:
        fields.keep_alive = True
    if upgrade in UPGRADES and b"upgrade" in options and not (fields.http_1_0 or fields.has_body):
        fields.upgrade = upgrade
    fields.lines = without(fields.lines, options)


def _with_target(method: str, target: bytes, fields: Fields, settings: ProxySettings) -> RequestHead:
    """Return the request, its target in origin form (RFC 9112 section 3.2) and otherwise as it came.

    Also with what the RFC does not know and browsers send: `[`, `]`, `|`, `^`, `{`, `}`, `"`, a lone `%`.
    """
    if method == "CONNECT":
        raise HeadError(405, "asks for a tunnel")
    if len(target) > settings.target_max:
        raise HeadError(414, "has too long a target")
    if _PLAIN_TARGET.fullmatch(target) and b"/." not in target:
        return RequestHead(method, target, fields)
    if b"#" in target:
        raise HeadError(400, "has a fragment in its target")
    if target == b"*":
        if method != "OPTIONS":
            raise HeadError(400, "has a target that is for OPTIONS only")
        return RequestHead(method, target, fields)
    if not target.startswith(b"/"):
        target, fields = _without_authority(target, fields)
    if b"\\" in target.partition(b"?")[0]:
        raise HeadError(400, "has a character that must be percent-encoded", "path")
    return RequestHead(method, target, fields, plain=False)


def _without_authority(target: bytes, fields: Fields) -> tuple[bytes, Fields]:
    """Return a target in absolute form as one in origin form, and the fields with its authority as their Host
    (RFC 9112 section 3.2.2).
    """
    match = _ABSOLUTE.fullmatch(target)
    if match is None or not _HOST.fullmatch(match[1]):
        raise HeadError(400, "has a target that is neither a path nor an http URL")
    fields = copy(fields)
    fields.raw = b""  # like none that may come
    fields.host = match[1]
    fields.headers = [(name, match[1] if name == b"host" else value) for name, value in fields.headers]
    rest: bytes = match[2]
    return rest if rest.startswith(b"/") else b"/" + rest, fields


def parse_response(head: bytes, settings: ProxySettings, policy: HeaderPolicy) -> ResponseHead:
    """Read a response's head.

    Args:
        head: from the status line to the empty line, both included.
        settings: on sizes and counts.
        policy: which fields are passed on.

    Raises:
        HeadError: it is not what RFC 9112 wants, is out of bounds, or can be read in two ways.
    """
    match = _RESPONSE.fullmatch(head)
    if len(head) > settings.head_max:
        raise HeadError(502, response_faults.too_long(len(head), settings), "response")
    if match is None:
        raise HeadError(502, response_faults.diagnosed(head), "response")
    minor, status, reason, raw = match.groups()
    if (number := raw.count(b"\r\n") - 1) > settings.fields_max:
        issue = f"has {number} header fields; proxy: fields_max allows {settings.fields_max}"
        raise HeadError(502, issue, "response")
    response = ResponseHead(int(status), reason or b"", raw, http_1_0=minor == b"0")
    # What is between the fields that are not just passed on, and of each its name and value.
    pieces = (policy.roles if status != b"429" else policy.refusal_roles).split(raw)
    if len(pieces) > 1:
        response.lines = b"".join(pieces[::3])
        _read_response_fields(response, pieces)
    return response


def _read_response_fields(response: ResponseHead, pieces: list[bytes]) -> None:
    """Read from the fields how the body is framed and what becomes of the connection (RFC 9112 section 6.3)."""
    options: list[bytes] = []
    for at in range(1, len(pieces), 3):
        name, value = pieces[at].lower(), pieces[at + 1].strip(b" \t")
        if name == b"content-length":
            if response.length is not None:
                raise HeadError(502, "has more than one Content-Length", "response")
            if not _LENGTH.fullmatch(value):
                raise HeadError(502, "has a Content-Length that is not one number of bytes", "response")
            response.length = int(value)
        elif name == b"transfer-encoding":
            if response.chunked or value.lower() != b"chunked" or response.http_1_0:
                twice = response.chunked or value.lower().count(b"chunked") > 1
                issue = "has more than one Transfer-Encoding" if twice else "has a Transfer-Encoding other than chunked"
                raise HeadError(502, "has a Transfer-Encoding in HTTP/1.0" if response.http_1_0 else issue, "response")
            response.chunked = True
        elif name == b"connection":
            if value != b"keep-alive" or response.http_1_0:  # which changes nothing
                options += options_of(value)
        elif name == b"upgrade":
            response.upgrade = value.lower()
    if response.chunked and response.length is not None:
        raise HeadError(502, "has both Content-Length and Transfer-Encoding", "response")
    if options:
        response.keep_alive = b"close" not in options and (not response.http_1_0 or b"keep-alive" in options)
        if len(options) > 1 or options[0] not in OF_CONNECTION:
            kept = without(response.lines.split(b"\r\n")[1:-1], options)
            response.lines = b"\r\n".join([b"", *kept, b""]) if kept else b"\r\n"
