"""Goal: what we accept, everybody reads alike. Method: tables, and other people's parsers as the judges of ours."""

from __future__ import annotations

import contextlib
from typing import Any

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.proxy.head import PLAIN_POLICY, HeadError, parse_request, parse_response
from ratelimiter.proxy.header_policy import HeaderPolicy
from ratelimiter.proxy.settings import ProxySettings
from tests.proxy.inputs import HOST, get, head

BOUNDS = ProxySettings()
KNOWN = HeaderPolicy(reserved_response=frozenset({b"x-ours"}))


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


def edited(sound: bytes, at: int, gone: int, new: bytes) -> bytes:
    """*sound* with *gone* bytes at *at* replaced by *new*."""
    at %= len(sound)
    return sound[:at] + new + sound[at + gone :]


LINES = st.lists(
    st.sampled_from(
        [b"X: y", b"X:", b"x-y:\t z ", b"X_Y: z", b"!#$%&'*+.^_`|~: x", b"Connection: close, X", b"Upgrade: websocket",
         b"Connection: Upgrade", b"Expect: 100-continue", b"Accept: \xff\xfe", b"Cookie: a=b; c=\"d\""]
    ),
    max_size=4,
)  # fmt: skip
FRAMINGS = st.sampled_from([[], [], [b"Content-Length: 3"], [b"Content-Length: 0"], [b"Transfer-Encoding: chunked"]])
TARGETS = st.sampled_from([b"/", b"/x?y", b'/a/b;c=d?e=%20&f="', b"/%41/./x", b"//x", b"http://a.b:1/c?d"])
METHODS = st.sampled_from([b"GET", b"POST", b"OPTIONS", b"M-SEARCH"])
SOUND = st.builds(
    lambda method, target, minor, framing, lines: b"\r\n".join(
        [b"%s %s HTTP/1.%d" % (method, target, minor), HOST, *framing, *lines, b"", b""]
    ),
    METHODS, TARGETS, st.sampled_from([1, 1, 0]), FRAMINGS, LINES,
)  # fmt: skip
NEW = st.one_of(
    st.binary(max_size=2),
    st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"a", b"%2f", b"\r\n\r\n", b","]),
)
HEADS = st.one_of(SOUND, st.builds(edited, SOUND, st.integers(0, 300), st.integers(0, 3), NEW))


@given(raw=HEADS)
def test_what_we_accept_others_read_alike(raw: bytes) -> None:
    """Llhttp and h11 find the same method, the same target and the same fields in it; so nobody behind us who reads as
    they do is told something else.
    """
    try:
        ours = parse_request(raw, BOUNDS)
    except HeadError:
        return
    third = by_h11(raw)
    try:
        theirs = Llhttp(raw)
    except httptools.HttpParserInvalidMethodError:  # one that it does not know; we and h11 let every method pass
        return

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
            request = parse_request(raw, BOUNDS, PLAIN_POLICY, remembered)
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


@pytest.mark.parametrize(
    "host",
    [
        b"a",
        b"a.b:8080",
        b"127.0.0.1",
        b"[::1]",
        b"[2001:db8::1]:80",
        b"my_service",
        b"a.example:",
        b"a,b",
        b"a!$&'()*+;=~b",
        b"a%20b",
        b"[v1.fe80::a+en1]",
        b"",
    ],
)
def test_hosts(host: bytes) -> None:
    """Names, addresses and ports."""
    assert host == parse_request(head(b"Host: " + host), BOUNDS).fields.host


@pytest.mark.parametrize(
    "host", [b"a b", b"a%b", b"[v.1]", b"a/b", b"a?b", b"a#b", b"u@a", b"a:b", b"[::1", b"a:123456", b"\xff", b":80"]
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
    for line in [response.reason, *response.lines.split(b"\r\n")]:
        assert not any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in line)
        assert not line.lower().startswith(b"x-ours")
