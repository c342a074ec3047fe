"""What pages of other origins may read, and what the browser that asks beforehand is told."""

from __future__ import annotations

from typing import Any

import pytest

from ratelimiter.core.cors import Cors

APP = b"https://app.example.com"
ASKS = [(b"Origin", APP), (b"Access-Control-Request-Method", b"POST")]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"origins": ("*",), "credentials": True}, r"'\*' excludes credentials: any page could act for its visitor"),
        ({"origins": ("app.example.com",)}, "'app.example.com' is not an origin like https://app.example.com"),
        ({"origins": ("https://app.example.com/",)}, "is not an origin"),
        ({"origins": ("https://*",)}, "is not an origin"),
    ],
)
def test_settings_that_would_open_too_much_are_refused(settings: dict[str, Any], problem: str) -> None:
    """The error says which word is at fault and what would do."""
    with pytest.raises(ValueError, match=problem):
        Cors(**settings)


@pytest.mark.parametrize(
    ("origins", "headers", "expected"),
    [
        (("https://app.example.com",), [(b"Origin", APP)], APP),
        (("https://app.example.com",), [(b"origin", APP.upper())], APP.upper()),
        (("https://app.example.com",), [(b"Origin", b"https://app.example.com.evil.example")], b""),
        (("https://app.example.com",), [(b"Origin", APP), (b"Origin", APP)], b""),
        (("https://app.example.com",), [], b""),
        (("https://*.example.com",), [(b"Origin", APP)], APP),
        (("https://*.example.com",), [(b"Origin", b"https://example.com")], b""),
        (("https://[::1]:8443", "null"), [(b"Origin", b"null")], b"null"),
        (("*",), [(b"Origin", b"https://any.example")], b"https://any.example"),
    ],
)
def test_an_origin_is_allowed_whole(
    origins: tuple[str, ...], headers: list[tuple[bytes, bytes]], expected: bytes
) -> None:
    """Sent once, and equal to one of the list, in any case; a star stands for names below a domain."""
    assert expected == Cors(origins).origin(headers)


@pytest.mark.parametrize(
    ("settings", "headers", "names", "expected"),
    [
        (
            {"origins": ("https://app.example.com",)},
            [(b"Origin", APP)],
            [b"X-RateLimit-Limit", b"Retry-After"],
            [
                (b"access-control-allow-origin", APP),
                (b"vary", b"Origin"),
                (b"access-control-expose-headers", b"retry-after, x-ratelimit-limit"),
            ],
        ),
        (
            {"origins": ("https://app.example.com",), "credentials": True, "expose": ("Retry-After",)},
            [(b"Origin", APP)],
            [b"X-RateLimit-Limit"],
            [
                (b"access-control-allow-origin", APP),
                (b"vary", b"Origin"),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", b"Retry-After"),
            ],
        ),
        ({"origins": ("https://app.example.com",)}, [], [b"Retry-After"], [(b"vary", b"Origin")]),
        ({"origins": ("*",)}, [(b"Origin", APP)], [], [(b"access-control-allow-origin", b"*")]),
        ({"origins": ("*",)}, [], [b"Retry-After"], []),
    ],
)
def test_scripts_of_an_allowed_page_read_an_answer(
    settings: dict[str, Any], headers: list[tuple[bytes, bytes]], names: list[bytes], expected: list[Any]
) -> None:
    """They read its figures, too; where only some origins are allowed, caches keep their answers apart."""
    assert expected == Cors(**settings).answer_headers(headers, names)


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("OPTIONS", ASKS, True),
        ("GET", ASKS, False),
        ("OPTIONS", ASKS[:1], False),
        ("OPTIONS", ASKS[1:], False),
        ("OPTIONS", [(b"Origin", b"https://evil.example"), ASKS[1]], False),
    ],
)
def test_a_preflight_asks_for_a_method_from_an_allowed_origin(
    method: str, headers: list[tuple[bytes, bytes]], expected: bool
) -> None:
    """Any other OPTIONS request is charged and forwarded like every request."""
    assert expected == Cors(("https://app.example.com",)).is_preflight(method, headers)


ASKED = (b"Access-Control-Request-Headers", b"X-Api-Key, Content-Type")


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        ({}, [], {b"vary": b"Origin"}),
        (
            {},
            [ASKED],
            {b"vary": b"Origin, Access-Control-Request-Headers", b"access-control-allow-headers": ASKED[1]},
        ),
        ({}, [ASKED, ASKED], {b"vary": b"Origin"}),
        ({}, [(ASKED[0], b"X-Api-Key\r\nSet-Cookie: a=b")], {b"vary": b"Origin"}),
        ({"headers": ("X-Only",)}, [ASKED], {b"vary": b"Origin", b"access-control-allow-headers": b"X-Only"}),
    ],
)
def test_the_answer_to_a_preflight(
    settings: dict[str, Any], asked: list[tuple[bytes, bytes]], expected: dict[bytes, bytes]
) -> None:
    """It names the methods, its lifetime, and the headers of the policy, or those that were asked for once."""
    cors = Cors(("https://app.example.com",), methods=("GET", "POST"), max_age_ms=1500, **settings)
    reply = cors.preflight([*ASKS, *asked])

    assert (204, b"") == (reply.status, reply.body)
    assert {
        b"access-control-allow-origin": APP,
        b"access-control-allow-methods": b"GET, POST",
        b"access-control-max-age": b"2",
        **expected,
    } == dict(reply.headers)
