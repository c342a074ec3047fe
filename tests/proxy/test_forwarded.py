"""What is told of a client, and what trailers may say."""

from __future__ import annotations

import pytest

from ratelimiter.proxy.body import has_body
from ratelimiter.proxy.forwarded import Provenance
from ratelimiter.proxy.header_policy import trailer_lines


def told(**differing: object) -> list[bytes]:
    """What is told of a client at 2001:db8::1 that asked for api.example."""
    settings = {"peer": "2001:db8::1", "scheme": b"https", "trusted": False, "families": ("x-forwarded", "forwarded")}
    return Provenance(**{**settings, **differing}).lines(SAID, b"api.example")  # type: ignore[arg-type]


SAID = [
    (b"x-forwarded-for", b"203.0.113.9"),
    (b"accept", b"*/*"),
    (b"x-real-ip", b"203.0.113.9"),
    (b"forwarded", b"for=203.0.113.9"),
    (b"x-forwarded-host", b"other.example"),
]
OURS = b'for="[2001:db8::1]";proto=https;host="api.example"'


@pytest.mark.parametrize(
    ("differing", "lines"),
    [
        (
            {},
            [
                b"x-forwarded-for: 2001:db8::1",
                b"x-forwarded-proto: https",
                b"x-forwarded-host: api.example",
                b"forwarded: " + OURS,
            ],
        ),
        (
            {"trusted": True},
            [
                b"x-real-ip: 203.0.113.9",
                b"x-forwarded-host: other.example",
                b"x-forwarded-for: 203.0.113.9, 2001:db8::1",
                b"x-forwarded-proto: https",
                b"forwarded: for=203.0.113.9, " + OURS,
            ],
        ),
        ({"families": ()}, []),
        (
            {"families": (), "trusted": True},
            [
                b"x-real-ip: 203.0.113.9",
                b"x-forwarded-host: other.example",
                b"x-forwarded-for: 203.0.113.9",
                b"forwarded: for=203.0.113.9",
            ],
        ),
        ({"peer": None, "families": ("forwarded",)}, [b'forwarded: for=unknown;proto=https;host="api.example"']),
    ],
)
def test_provenance(differing: dict[str, object], lines: list[bytes]) -> None:
    """Nobody untrusted speaks for himself; whoever is trusted is quoted and added to."""
    assert lines == told(**differing)


def test_trailers() -> None:
    """Only what changes neither framing, routing nor meaning; and nothing that is ours to say."""
    lines = [b"X-Sum: 1", b"Content-Length: 3", b"HOST: x", b"x_sum: 2", b"X-Ours: 3", b"Set-Cookie: a=b"]

    assert [b"X-Sum: 1"] == trailer_lines(lines, frozenset({b"x-ours"}))


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [("GET", 200, True), ("HEAD", 200, False), ("GET", 204, False), ("GET", 304, False), ("POST", 404, True)],
)
def test_bodies(method: str, status: int, expected: bool) -> None:
    """RFC 9112 section 6.3."""
    assert expected == has_body(method, status)
