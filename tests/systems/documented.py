"""What the five APIs document of every answer, written out by hand: not read from a dialect, which it is to check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import httpx

MINUTE_S = 60


class Documented(NamedTuple):
    """A system's main limit and its 429."""

    limit: int  # X-RateLimit-Limit
    admitted: int  # of a thousand calls at once
    request_id: str  # header that quotes the request's id on every response; empty when there is none
    refusal: dict[str, Any]  # the body; what only the response can say is named in angle brackets


def filled(body: object, response: httpx.Response) -> object:
    """*body* with what *response* says in its headers in place of words in angle brackets."""
    if isinstance(body, dict):
        return {name: filled(value, response) for name, value in body.items()}
    if body == "<retry after>":
        return int(response.headers["retry-after"])
    return response.headers["x-request-id"] if body == "<request id>" else body


DOCUMENTED = {
    "intrace": Documented(
        60,
        70,
        "req_[A-Za-z0-9_-]+",
        {
            "error": {
                "code": "rate_limit_exceeded",
                "message": "The per-minute request limit for this principal has been reached.",
                "details": [],
            },
            "request_id": "<request id>",
        },
    ),
    "trace": Documented(
        600,
        600,
        "",
        {
            "error": "operational_rate_limit_exceeded",
            "message": "Too many requests. Please wait before retrying.",
            "retry_after_seconds": "<retry after>",
        },
    ),
    "tracefinance": Documented(
        300,
        300,
        "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        {
            "code": "RATE_LIMIT_EXCEEDED",
            "message": "Rate limit exceeded",
            "details": {"retry_after_seconds": "<retry after>"},
        },
    ),
    "tracefinance-v1": Documented(
        10,
        10,
        "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        {"code": "TOO_MANY_CONCURRENT_REQUESTS", "message": "Too many concurrent requests", "details": {}},
    ),
    "sentinel": Documented(
        30,
        30,
        "",
        {
            "error": "Rate Limited",
            "message": "Rate limit exceeded. Please retry after the reset time.",
            "status": 429,
        },
    ),
}
