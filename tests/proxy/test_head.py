"""Goal: what we accept, everybody reads alike. Method: tables, and other people's parsers as the judges of ours."""

from __future__ import annotations

import contextlib
from typing import Any

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.proxy.bounds import Bounds
from ratelimiter.proxy.head import WRITTEN_ANEW, HeadError, Roles, parse_request, parse_response, roles
from tests.proxy.inputs import HOST, get, head

BOUNDS = Bounds()
KNOWN: Roles = roles(frozenset({b"x-ours"}))


class Llhttp:
    """What llhttp reads of a request's head."""

    def __init__(self, raw: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.target = b""
        parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(httptools.HttpParserUpgrade):
            parser.feed_data(raw)
        self.method = parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def by_h11(raw: bytes) -> Any:
    """What h11 reads of it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    return connection.next_event()


NAMES = st.sampled_from(
    [
        b"Host",
        b"host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"X",
        b"X-Y",
        b"X_Y",
        b"Expect",
        b"!#$%&'*+.^_`|~",
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [b"api.example", b"a:1", b"[::1]:80", b"3", b"0", b"3, 3", b"chunked", b"gzip, chunked", b"close", b"x"]
    ),
    st.binary(max_size=6),
)
LINES = st.lists(
    st.tuples(
        NAMES,
        st.sampled_from([b":", b": ", b":\t", b" :", b""]),
        VALUES,
        st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]),
    ),
    max_size=5,
).map(lambda lines: b"".join(b"".join(line) for line in lines))
TARGETS = st.one_of(
    st.sampled_from([b"/", b"/x?y", b"*", b"http://a/b", b"/%41", b"//x", b"/x#y", b"x", b"/\xc3\xa9", b"/a b"]),
    st.binary(max_size=6).map(lambda tail: b"/" + tail),
)
METHODS = st.sampled_from([b"GET", b"POST", b"OPTIONS", b"get", b"CONNECT", b"M-SEARCH", b"G(T"])
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1"])
HEADS = st.builds(
    lambda method, target, version, host, lines: b"%s %s %s\r\n%s%s\r\n" % (method, target, version, host, lines),
    METHODS, TARGETS, VERSIONS, st.sampled_from([b"Host: api.example\r\n", b""]), LINES,
)  # fmt: skip


@given(raw=HEADS)
def test_what_we_accept_others_read_alike(raw: bytes) -> None:
    """Llhttp and h11 find the same method, the same target and the same fields in it; so nobody behind us who reads as
    they do is told something else.
    """
    try:
        ours = parse_request(raw, BOUNDS)
    except HeadError:
        return
    theirs, third = Llhttp(raw), by_h11(raw)

    assert ours.method.encode() == theirs.method == third.method
    assert theirs.target == third.target
    sent_host = dict(theirs.headers).get(b"host")
    as_sent = [(name, sent_host if name == b"host" else value) for name, value in ours.fields.headers]
    stripped = [(name, value.strip(b" \t")) for name, value in theirs.headers]
    assert as_sent == stripped
    assert stripped == [(bytes(name), bytes(value)) for name, value in third.headers]


@given(raw=HEADS, before=HEADS)
def test_remembered_fields_change_nothing(raw: bytes, before: bytes) -> None:
    """A head is read the same whatever was read before it on the connection."""

    def read(remembered: Any) -> Any:
        try:
            request = parse_request(raw, BOUNDS, WRITTEN_ANEW, remembered)
        except HeadError as fault:
            return fault.status, fault.issue
        fields = request.fields
        return request.method, request.target, request.upgrade, [getattr(fields, name) for name in fields.__slots__]

    try:
        remembered = parse_request(before, BOUNDS).fields
    except HeadError:
        remembered = None
    assert read(None) == read(remembered)
    with contextlib.suppress(HeadError):
        assert read(None) == read(parse_request(raw, BOUNDS).fields)


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ((b"Connection: close",), False),
        ((b"Connection: Keep-Alive",), True),
        ((b"Connection: x, CLOSE",), False),
        ((b"Connection: x", b"Connection: close"), False),
        ((), True),
    ],
)
def test_staying(lines: tuple[bytes, ...], kept: bool) -> None:
    """RFC 9112 section 9.3."""
    assert kept == parse_request(head(HOST, *lines), BOUNDS).fields.keep_alive
    old = head(HOST, *lines).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert (kept and bool(lines)) == parse_request(old, BOUNDS).fields.keep_alive


@pytest.mark.parametrize(
    ("raw", "upgrade"),
    [
        (get(b"/", b"Connection: Upgrade", b"Upgrade: websocket"), b"websocket"),
        (get(b"/", b"Connection: keep-alive, upgrade", b"Upgrade: WebSocket"), b"websocket"),
        (get(b"/", b"Upgrade: websocket"), b""),
        (get(b"/", b"Connection: Upgrade", b"Upgrade: h2c"), b""),
        (get(b"/", b"Connection: Upgrade", b"Upgrade: websocket, h2c"), b""),
        (get(b"/", b"Connection: Upgrade", b"Upgrade: websocket", method=b"POST"), b""),
        (get(b"/", b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 3"), b""),
        (get(b"/", b"Connection: Upgrade", b"Upgrade: websocket").replace(b"/1.1", b"/1.0"), b""),
    ],
)
def test_upgrades(raw: bytes, upgrade: bytes) -> None:
    """Only to what may be a tunnel, only by a GET without a body."""
    assert upgrade == parse_request(raw, BOUNDS).upgrade


@pytest.mark.parametrize("host", [b"a", b"a.b:8080", b"127.0.0.1", b"[::1]", b"[2001:db8::1]:80", b"my_service"])
def test_hosts(host: bytes) -> None:
    """Names, addresses and ports."""
    assert host == parse_request(head(b"Host: " + host), BOUNDS).fields.host


@pytest.mark.parametrize(
    "host", [b"a,b", b"a b", b"a/b", b"a?b", b"a#b", b"u@a", b"a:b", b"[::1", b"a:123456", b"\xff", b":80"]
)
def test_no_hosts(host: bytes) -> None:
    """Anything else."""
    with pytest.raises(HeadError, match="Host"):
        parse_request(head(b"Host: " + host), BOUNDS)


@given(value=st.binary(max_size=10), name=st.sampled_from([b"X", b"Content-Length", b"Transfer-Encoding", b"X-Ours"]))
def test_a_response_says_nothing_between_the_lines(name: bytes, value: bytes) -> None:
    """What is passed on of a head has no control character in it, and none of the fields that are ours to say."""
    try:
        response = parse_response(b"HTTP/1.1 200 %s\r\n%s: %s\r\n\r\n" % (value, name, value), BOUNDS, KNOWN)
    except HeadError:
        return
    for line in [response.reason, *response.lines]:
        assert not any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in line)
        assert not line.lower().startswith(b"x-ours")
