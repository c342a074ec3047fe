"""One target, one path: a rule sees the path that all servers agree on, or the request is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.path import PLAIN_CHARACTERS, canonical_path
from ratelimiter.core.request import MalformedRequest

# Rows of the bad-input matrix: number and id, target, canonical path.
CANONICAL = [
    ("50-L01-absolute-form", b"http://api.example:8080/x?a=1", "/x"),
    ("50-L01-absolute-form-without-path", b"http://api.example?a=/y", "/"),
    ("50-L01-absolute-form-not-canonical", b"HTTP://[2001:db8::1]:80//y/../%78", "/x"),
    ("53-L04-asterisk", b"*", "*"),
    ("66-N01-double-slash", b"//x", "/x"),
    ("66-N01-double-slash-inside", b"/v1///x", "/v1/x"),
    ("67-N02-dot-segment", b"/./x", "/x"),
    ("68-N03-dot-dot", b"/y/../x", "/x"),
    ("68-N03-dot-dot-above-the-root", b"/../../x", "/x"),
    ("69-N04-encoded-letter", b"/%78", "/x"),
    ("70-N05-encoded-dot", b"/%2e/x", "/x"),
    ("71-N06-encoded-dot-dot", b"/y/%2e%2E/x", "/x"),
    ("71-N06-half-encoded-dot-dot", b"/y/.%2e/x", "/x"),
    ("73-N08-trailing-slash", b"/x/", "/x/"),
    ("74-N09-case", b"/X", "/X"),
    ("75-N10-matrix-parameter", b"/x;a=b", "/x;a=b"),
    ("75-N10-encoded-matrix-parameter", b"/x%3ba%3Db", "/x;a=b"),
    ("81-N16-double-encoded", b"/%2578", "/%2578"),
    ("82-N17-empty-query", b"/x?", "/x"),
    ("83-N18-encoded-question-mark", b"/x%3fa=1", "/x%3Fa=1"),
    ("84-N19-encoded-space", b"/x%20", "/x%20"),
    ("85-N20-utf-8", b"/%c3%A9", "/%C3%A9"),
    ("87-N22-trailing-dot-segment", b"/x/.", "/x/"),
    ("87-N22-trailing-encoded-dot-dot", b"/x/y/%2e%2e", "/x/"),
    ("88-N23-suffix", b"/x.json", "/x.json"),
    ("root", b"/", "/"),
    ("empty-path-of-a-query", b"/?a=/../x", "/"),
]

REFUSED = [
    ("51-L02-user-information", b"https://user@api.example/x"),
    ("51-L02-user-and-password", b"https://user:secret@api.example/x"),
    ("52-L03-connect-authority", b"api.example:443"),
    ("61-L12-raw-non-ascii", "/\u00e9".encode()),
    ("61-L12-raw-latin-1", b"/\xe9"),
    ("59-L10-space", b"/a b"),
    ("62-L13-fragment", b"/x#y"),
    ("62-L13-fragment-in-the-authority", b"http://api.example#/x"),
    ("50-L01-backslash-in-the-authority", b"http://api.example\\/x"),
    ("50-L01-no-authority", b"http:///x"),
    ("50-L01-no-scheme", b"://api.example/x"),
    ("72-N07-encoded-slash", b"/y%2f..%2fx"),
    ("72-N07-encoded-backslash", b"/y%5C..%5cx"),
    ("76-N11-encoded-nul", b"/x%00"),
    ("77-N12-encoded-crlf", b"/x%0d%0aX:1"),
    ("77-N12-encoded-delete", b"/x%7f"),
    ("78-N13-lone-percent", b"/x%"),
    ("78-N13-cut-escape", b"/x%4"),
    ("79-N14-escape-that-is-none", b"/x%zz"),
    ("79-N14-signed-escape", b"/x%+1"),
    ("80-N15-backslash", b"/x\\y"),
    ("86-N21-overlong-utf-8", b"/%c0%ae%c0%ae/x"),
    ("86-N21-surrogate", b"/%ed%a0%80"),
    ("86-N21-cut-utf-8", b"/%c3/x"),
    ("empty", b""),
    ("relative", b"x"),
    ("query-only", b"?a=1"),
]


@pytest.mark.parametrize(("target", "expected"), [row[1:] for row in CANONICAL], ids=[row[0] for row in CANONICAL])
def test_canonical_path(target: bytes, expected: str) -> None:
    """Spellings that every server reads alike have one canonical path."""
    assert expected == canonical_path(target)


@pytest.mark.parametrize("target", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_ambiguous_targets_are_refused(target: bytes) -> None:
    """What two servers could read differently is refused, and the client is told what is wrong, not what it sent."""
    with pytest.raises(MalformedRequest) as caught:
        canonical_path(target)

    assert "path" == caught.value.field
    assert target.decode("latin-1") not in str(caught.value) or not target.strip(b"x")


@pytest.mark.parametrize(
    ("root_path", "target", "expected"),
    [
        ("/api", b"/api/x", "/x"),
        ("/api/", b"/api/x", "/x"),
        ("/api", b"/api", "/"),
        ("/api", b"/api/", "/"),
        ("/api", b"/apis/x", "/apis/x"),
        ("/api", b"/x", "/x"),
        ("/api", b"/%61pi/x", "/x"),
        ("/api", b"//api//x", "/x"),
        ("/api", b"/api/../admin", "/admin"),
        ("/api", b"/api/api/x", "/api/x"),
        ("/caf\u00e9", b"/caf%C3%A9/x", "/x"),
        ("/a b", b"/a%20b/x", "/x"),
        ("/", b"/x", "/x"),
    ],
)
def test_root_path_is_taken_off(root_path: str, target: bytes, expected: str) -> None:
    """Paths are relative to the mount, however the mount's prefix is spelled in the target."""
    assert expected == canonical_path(target, root_path)


@given(
    st.binary(max_size=30)
    | st.lists(st.sampled_from([b"/", b".", b"%2e", b"%2F", b"%", b"a", b"?", b"\xff", b":"])).map(b"".join)
)
def test_anything_else_is_malformed(target: bytes) -> None:
    """Whatever bytes come, there is a canonical path or the request is malformed; the path is ASCII, starts with a
    slash, has no empty or dot segments, and is its own canonical path.
    """
    for prefix in (b"", b"/", b"http://host/"):
        try:
            path = canonical_path(prefix + target)
        except MalformedRequest:
            continue

        assert path.isascii()
        assert "*" == path or path.startswith("/")
        assert not {".", "..", ""} & set(path.strip("/").split("/")) or "/" == path
        assert path == canonical_path(path.encode())


segments = st.text(st.sampled_from("ab-._~;=:@!\u00e9\u20ac %?"), min_size=1, max_size=5).filter(
    lambda s: s not in (".", "..")
)


@st.composite
def spellings(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two ways to write the same path: escapes in either case or none, slashes doubled, detours taken and a query."""

    def spell(parts: list[str]) -> bytes:
        out = b""
        for part in parts:
            out += draw(st.sampled_from([b"/", b"//", b"/./", b"/%2e/", b"/x/../", b"/x/y/%2E./../"]))
            for character in part:
                if character in PLAIN_CHARACTERS and draw(st.booleans()):
                    out += character.encode()
                else:
                    escape = "".join(f"%{byte:02x}" for byte in character.encode())
                    out += (escape.upper() if draw(st.booleans()) else escape).encode()
        return out + draw(st.sampled_from([b"", b"?", b"?a=/../b"]))

    parts = draw(st.lists(segments, min_size=1, max_size=4))
    return spell(parts), draw(st.sampled_from([b"", b"http://host:80"])) + spell(parts)


@given(spellings())
def test_equivalent_spellings_have_one_path(pair: tuple[bytes, bytes]) -> None:
    """Bypass 11: however a path is written, its canonical form is the same."""
    one, other = pair

    assert canonical_path(one) == canonical_path(other)
