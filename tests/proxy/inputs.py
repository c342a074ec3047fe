"""What clients send that they should not, and what becomes of it: numbers are those of our table of bad inputs."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One input on a connection of its own."""

    number: int
    what: str
    raw: bytes
    statuses: tuple[int, ...]  # of the responses, in order
    closed: bool  # whether the connection is closed after them; if not, it is tried
    seen: tuple[str, ...] = ()  # method and target of each request that the upstream saw


def get(target: bytes = b"/x", *fields: bytes, method: bytes = b"GET") -> bytes:
    """A request without a body."""
    lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: api.example", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(*fields: bytes, body: bytes = b"") -> bytes:
    """A request with whatever framing *fields* give it."""
    return get(b"/x", *fields, method=b"POST") + body


def sized(value: bytes, body: bytes = b"abc") -> bytes:
    return post(b"Content-Length:" + value, body=body)


def coded(value: bytes, body: bytes = b"3\r\nabc\r\n0\r\n\r\n") -> bytes:
    return post(b"Transfer-Encoding:" + value, body=body)


def chunked(body: bytes) -> bytes:
    return coded(b" chunked", body)


def head(*lines: bytes) -> bytes:
    """A GET whose head is *lines*, joined as they should be."""
    return b"GET /x HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"


HOST = b"Host: api.example"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: api.example\r\n\r\n"
PASSED = ((200,), False)


def _refused(number: int, what: str, raw: bytes, status: int = 400) -> Row:
    return Row(number, what, raw, (status,), closed=True)


def _passed(number: int, what: str, raw: bytes, seen: str = "GET /x") -> Row:
    return Row(number, what, raw, (200,), closed=False, seen=(seen,))


FRAMING = [
    _refused(
        1, "length and chunks",
        post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    ),
    _refused(
        1, "chunks and length",
        post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n" + SMUGGLED),
    ),
    _refused(2, "two lengths", post(b"Content-Length: 3", b"Content-Length: 50", body=b"abc" + SMUGGLED)),
    _refused(3, "one length twice", post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc")),
    _refused(4, "a list of lengths", sized(b" 3, 3")),
    _refused(5, "a signed length", sized(b" +3")),
    _refused(6, "a hexadecimal length", sized(b" 0x3")),
    _refused(7, "an underscore in the length", sized(b" 1_0")),
    _refused(8, "a negative length", sized(b" -1")),
    _refused(9, "an empty length", sized(b"")),
    _refused(10, "a length of 20 digits", sized(b" 99999999999999999999")),
    _refused(11, "a space before the colon", post(b"Content-Length : 3", body=b"abc")),
    _refused(12, "an unknown coding", coded(b" xchunked"), 501),
    _refused(13, "a coding behind a comma", coded(b" ,chunked")),
    _refused(14, "chunked twice", coded(b" chunked, chunked")),
    _refused(14, "chunked twice, on two lines", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    _refused(15, "compressed chunks", coded(b" gzip, chunked"), 501),
    _refused(16, "chunks within identity", coded(b" chunked, identity")),
    _refused(17, "a vertical tab in the coding", coded(b" \x0bchunked")),
    _refused(18, "chunks in HTTP/1.0", coded(b" chunked").replace(b"HTTP/1.1", b"HTTP/1.0")),
    _refused(19, "a chunk size with 0x", chunked(b"0x3\r\nabc\r\n0\r\n\r\n")),
    _refused(20, "a signed chunk size", chunked(b"+3\r\nabc\r\n0\r\n\r\n")),
    _refused(21, "an underscore in the chunk size", chunked(b"1_0\r\nabc\r\n0\r\n\r\n")),
    _refused(22, "a chunk size of 17 digits", chunked(b"10000000000000003\r\nabc\r\n0\r\n\r\n")),
    _refused(23, "a bare LF behind the chunk size", chunked(b"3\nabc\r\n0\r\n\r\n")),
    _refused(23, "a bare LF behind the chunk", chunked(b"3\r\nabc\n0\r\n\r\n")),
    _refused(24, "a chunk longer than its size", chunked(b"3\r\nabcd\r\n0\r\n\r\n")),
    _refused(25, "a CR inside a chunk extension", chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n")),
    _refused(26, "a chunk extension of 100 kB", chunked(b"3;" + b"a" * 100_000 + b"\r\nabc\r\n0\r\n\r\n")),
    _refused(27, "an empty chunk size", chunked(b"\r\nabc\r\n0\r\n\r\n")),
    Row(
        28, "a length among the trailers",
        chunked(b"3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n"), *PASSED, ("POST /x",),
    ),
    Row(29, "a GET with a body", get(b"/x", b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED, *PASSED, ("GET /x",)),
    _refused(30, "a negative chunk size", chunked(b"-1\r\nabc\r\n0\r\n\r\n")),
]  # fmt: skip

HEADS = [
    _refused(31, "bare LFs", b"GET /x HTTP/1.1\nHost: api.example\n\n"),
    _refused(31, "one bare LF", b"GET /x HTTP/1.1\r\nHost: api.example\nX: y\r\n\r\n"),
    _refused(32, "a bare CR", head(HOST, b"X: a\rb")),
    _refused(33, "a folded line", head(HOST, b"X: a\r\n b")),
    _refused(34, "a NUL", head(HOST, b"X: a\x00b")),
    _refused(35, "a space before the first field", b"GET /x HTTP/1.1\r\n Host: api.example\r\n\r\n"),
    _refused(36, "a line without a colon", head(HOST, b"nonsense")),
    _refused(37, "an empty name", head(HOST, b": x")),
    _refused(38, "a name with a space", head(HOST, b"X Y: z")),
    _refused(39, "a name with a byte above 127", head(HOST, b"X\x85: y")),
    _passed(40, "a value of bytes above 127", head(HOST, b"X: \xff\xfe")),
    _refused(41, "a control character", head(HOST, b"X: a\x07b")),
    _refused(42, "no Host", b"GET /x HTTP/1.1\r\nX: y\r\n\r\n"),
    _refused(43, "two Hosts", head(HOST, b"Host: evil.example")),
    _refused(44, "a Host with a path", head(b"Host: api.example/x")),
    _refused(44, "a Host with user information", head(b"Host: user@api.example")),
    _passed(44, "an empty Host", head(b"Host:")),
    _refused(45, "200 fields", head(HOST, *[b"X-%d: y" % n for n in range(200)]), 431),
    _refused(46, "a field of 70 kB", head(HOST, b"X: " + b"y" * 70_000), 431),
    _refused(47, "a head of 1 MB", head(HOST, *[b"X-%d: %s" % (n, b"y" * 10_000) for n in range(100)]), 431),
    _passed(48, "an underscored twin", head(HOST, b"X_Real_Ip: 1.2.3.4", b"X-Real-Ip: 1.2.3.4")),
    _refused(50, "an absolute form with a broken authority", get(b"http://api.example:80:81/x")),
    _passed(50, "an absolute form", get(b"http://other.example:81/x?y"), "GET /x?y"),
    _passed(50, "an absolute form without a path", get(b"http://other.example?y"), "GET /?y"),
    _refused(51, "user information", get(b"https://user:secret@api.example/x")),
    _refused(51, "another scheme", get(b"ftp://api.example/x")),
    _refused(52, "CONNECT", b"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\r\n", 405),
    _passed(53, "OPTIONS *", get(b"*", method=b"OPTIONS"), "OPTIONS *"),
    _refused(53, "GET *", get(b"*")),
    _refused(54, "HTTP/0.9", b"GET /x\r\n"),
    _refused(54, "HTTP/0.9 in full", b"GET /x\r\n\r\n"),
    _passed(55, "HTTP/1.2", get().replace(b"1.1", b"1.2", 1)),
    _refused(55, "HTTP/2.0", get().replace(b"1.1", b"2.0", 1), 505),
    _refused(56, "the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0", 505),
    _refused(57, "a method in small letters", get(method=b"get")),
    _refused(58, "a method that is no token", get(method=b"G{}T")),
    _refused(59, "a space in the target", get(b"/x y")),
    _refused(60, "a target of 64 kB", get(b"/" + b"x" * 65_536), 414),
    _refused(60, "a target just too long", get(b"/" + b"x" * 8192), 414),
    _refused(61, "bytes above 127 in the target", get(b"/\xc3\xa9")),
    _refused(62, "a fragment", get(b"/x#y")),
    _refused(62, "a fragment behind a query", get(b"/x?y#z")),
    _passed(63, "two empty lines first", b"\r\n\r\n" + get()),
    _refused(63, "three empty lines first", b"\r\n\r\n\r\n" + get()),
    _refused(64, "a TLS hello", bytes.fromhex("16030100c8010000c40303") + bytes(range(32)) * 6),
    _refused(65, "two spaces before the target", b"GET  /x HTTP/1.1\r\nHost: api.example\r\n\r\n"),
    _refused(65, "two spaces before the version", b"GET /x  HTTP/1.1\r\nHost: api.example\r\n\r\n"),
]  # fmt: skip

# No server can take the path that is forwarded for one that meets other rules than it was judged by.
PATHS = [
    _passed(66, "two slashes", get(b"//x"), "GET //x"),
    _passed(67, "a dot segment", get(b"/./x")),
    _passed(68, "a double-dot segment", get(b"/y/../x")),
    _passed(69, "an encoded letter", get(b"/%78"), "GET /%78"),
    _passed(70, "an encoded dot segment", get(b"/%2e/x")),
    _passed(71, "an encoded double-dot segment", get(b"/y/%2e%2e/x")),
    _refused(72, "an encoded slash", get(b"/y%2f..%2fx")),
    _passed(73, "a slash at the end", get(b"/x/"), "GET /x/"),
    _passed(74, "a capital", get(b"/X"), "GET /X"),
    _passed(75, "a matrix parameter", get(b"/x;a=b"), "GET /x;a=b"),
    _refused(76, "an encoded NUL", get(b"/x%00")),
    _refused(77, "an encoded line end", get(b"/x%0d%0aX:1")),
    _refused(78, "half an escape", get(b"/x%")),
    _refused(79, "no escape", get(b"/x%zz")),
    _refused(80, "a backslash", get(b"/x\\y")),
    _passed(81, "an escape of an escape", get(b"/%2578"), "GET /%2578"),
    _passed(82, "an empty query", get(b"/x?"), "GET /x?"),
    _passed(83, "an encoded question mark", get(b"/x%3fa=1"), "GET /x%3fa=1"),
    _passed(84, "an encoded space", get(b"/x%20"), "GET /x%20"),
    _passed(85, "UTF-8", get(b"/%C3%A9"), "GET /%C3%A9"),
    _refused(86, "overlong UTF-8", get(b"/%c0%ae%c0%ae/x")),
    _passed(87, "a dot segment at the end", get(b"/x/."), "GET /x/"),
    _passed(88, "a suffix", get(b"/x.json"), "GET /x.json"),
    _passed(88, "beyond the root", get(b"/../../x")),
]

CONNECTIONS = [
    Row(
        89, "three at once",
        get(b"/1") + get(b"/2") + get(b"/3"), (200, 200, 200), False, ("GET /1", "GET /2", "GET /3"),
    ),
    _passed(91, "an unknown expectation", get(b"/x", b"Expect: miracles")),
    _passed(
        92, "an upgrade to h2c",
        get(b"/x", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    ),
    _passed(
        93, "credentials named by Connection",
        get(b"/x", b"Connection: X-Api-Key, X-Forwarded-For", b"X-Api-Key: k"),
    ),
    _passed(
        94, "fields of one hop",
        get(b"/x", b"TE: trailers", b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive"),
    ),
    Row(102, "one and then garbage", get() + b"\x00garbage\r\n\r\n", (200, 400), True, ("GET /x",)),
    Row(
        104, "a body that nobody was asked for",
        get(b"/x", b"Expect: 100-continue", b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED, *PASSED, ("GET /x",),
    ),
    _refused(124, "HTTP/2 without asking", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
]  # fmt: skip

ROWS = [*FRAMING, *HEADS, *PATHS, *CONNECTIONS]
