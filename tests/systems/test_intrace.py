"""Goal: Intrace as documented, from config/intrace.yaml. Method: what each sentence of its documentation says is asked
of the system at work, in both ways.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.systems.scene import Scene

LIMIT, BURST, DEEP, PER_ADDRESS = 60, 10, 10, 600
EMAIL = {"type": "email", "value": "a@b.example"}


@pytest.fixture
def scene(running: Callable[[str, str], Scene], way: str) -> Scene:
    return running("intrace", way)


def error(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, in the one form that all have."""
    body = response.json()
    assert ["error", "request_id"] == sorted(body)
    assert ["code", "details", "message"] == sorted(body["error"])
    assert response.headers["x-request-id"] == body["request_id"]
    assert re.fullmatch(r"req_[\w-]+", body["request_id"])
    told: dict[str, Any] = body["error"]
    return told


def look_up(caller: httpx.Client, depth: str | None = None, **more: object) -> httpx.Response:
    body = {"identifiers": [EMAIL], **more} | ({} if depth is None else {"depth": depth})
    return caller.post("/v1/lookup", json=body)


# What the application finds


BAD_REQUESTS: list[tuple[str, str, object, int, str, list[str]]] = [
    ("POST", "/v1/lookup", b"{", 400, "request_malformed", ["body"]),
    ("POST", "/v1/lookup", {}, 400, "field_required", ["identifiers"]),
    ("POST", "/v1/lookup", {"identifiers": [{"type": "email"}]}, 400, "field_required", ["identifiers[0].value"]),
    ("POST", "/v1/lookup", {"identifiers": [EMAIL], "depth": "abyss"}, 400, "field_invalid", ["depth"]),
    ("GET", "/v1/lookup/lkp_unheard", None, 404, "not_found", []),
    ("GET", "/v1/nowhere", None, 404, "not_found", []),
    (
        "POST",
        "/v1/lookup",
        {"identifiers": [{"type": "x", "value": "y"}]},
        422,
        "invalid_identifier_type",
        ["identifiers[0].type"],
    ),
    (
        "POST",
        "/v1/lookup",
        {"identifiers": [EMAIL, EMAIL | {"value": "no"}]},
        422,
        "identifier_format_invalid",
        ["identifiers[1].value"],
    ),
    ("POST", "/v1/lookup", {"identifiers": []}, 422, "no_identifiers", []),
    ("POST", "/v1/lookup", {"identifiers": [EMAIL] * 21}, 422, "too_many_identifiers", []),
    ("GET", "/v1/broken", None, 500, "internal_error", []),
    ("GET", "/v1/lookup/lkp_0/receipt", None, 500, "signing_failed", []),
    ("GET", "/v1/history", None, 500, "database_error", []),
]


@pytest.mark.parametrize("asked", BAD_REQUESTS, ids=[f"{n}-{code}" for n, (*_, code, _) in enumerate(BAD_REQUESTS)])
def test_errors_of_the_application(scene: Scene, asked: tuple[str, str, object, int, str, list[str]]) -> None:
    """Each has its documented status and code, names the fields at fault, and carries the limit's figures."""
    method, path, body, status, code, fields = asked
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    response = scene.caller().request(method, path, content=content, headers=headers)
    told = error(response)

    assert (status, code) == (response.status_code, told["code"])
    assert fields == [detail["field"] for detail in told["details"]]
    assert all(detail["issue"] for detail in told["details"])
    assert {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= set(response.headers)


def test_the_documented_example_of_an_error(scene: Scene) -> None:
    """To the letter, but for the types that this API knows."""
    response = scene.caller().post("/v1/lookup", json={"identifiers": [{"type": "x", "value": "y"}]})

    assert {
        "code": "invalid_identifier_type",
        "message": "The identifier type is not recognized.",
        "details": [{"field": "identifiers[0].type", "issue": "Must be one of: email, phone"}],
    } == error(response)


def test_twenty_identifiers_are_not_too_many(scene: Scene) -> None:
    """More than 20 are."""
    assert 200 == scene.caller().post("/v1/lookup", json={"identifiers": [EMAIL] * 20}).status_code


# Limits


def test_all_endpoints_share_the_limit(scene: Scene) -> None:
    """Sixty requests a minute over all endpoints, and ten in a short burst above; errors count like anything else."""
    caller = scene.caller()
    paths = ["/v1/status", "/v1/lookup/none", "/v1/nowhere", "/v1/status"]
    statuses = [caller.get(paths[n % 4]).status_code for n in range(LIMIT + BURST)]
    refusal = caller.get("/v1/status")

    assert 429 not in statuses
    assert (429, "rate_limit_exceeded") == (refusal.status_code, error(refusal)["code"])
    assert "The per-minute request limit for this principal has been reached." == error(refusal)["message"]


def test_remaining_counts_down_to_the_burst(scene: Scene) -> None:
    """The figures speak of the sixty; in the burst nothing remains, and it is granted all the same."""
    caller = scene.caller()
    remaining = [int(scene.call(caller).headers["x-ratelimit-remaining"]) for _ in range(LIMIT + BURST)]

    assert [*range(LIMIT - 1, -1, -1), *[0] * BURST] == remaining


def test_deep_lookups_have_a_limit_of_their_own(scene: Scene) -> None:
    """Ten a minute with `"depth": "deep"` in the JSON body; other lookups go on."""
    caller = scene.caller()
    assert [200] * DEEP == [look_up(caller, "deep").status_code for _ in range(DEEP)]
    refusal = look_up(caller, "deep")

    assert (429, "rate_limit_exceeded") == (refusal.status_code, error(refusal)["code"])
    assert 1 <= int(refusal.headers["retry-after"]) <= 60
    assert 200 == look_up(caller).status_code
    assert 200 == look_up(caller, "standard").status_code


def test_deep_lookups_count_among_all_requests(scene: Scene) -> None:
    """Both limits apply to one; a refused one is charged to neither."""
    caller = scene.caller()
    for _ in range(DEEP):
        look_up(caller, "deep")
    for _ in range(3):
        assert 429 == look_up(caller, "deep").status_code
    remaining = int(scene.call(caller).headers["x-ratelimit-remaining"])

    assert LIMIT - DEEP - 1 == remaining


@pytest.mark.parametrize(
    "body",
    [
        b'{"depth": "d\\u0065ep", "identifiers": [{"type": "email", "value": "a@b.example"}]}',
        b'{"\\u0064epth": "deep", "identifiers": [{"type": "email", "value": "a@b.example"}]}',
        b'{"depth": "standard", "identifiers": [{"type": "email", "value": "a@b.example"}], "depth": "deep"}',
        b' \r\n\t{"identifiers":[{"type":"email","value":"a@b.example"}],"depth" : "deep"}',
        b'{"identifiers": [{"type": "email", "value": "a@b.example"}], "depth": "deep", "pad": "'
        + b"x" * 70_000
        + b'"}',
    ],
    ids=["escaped-value", "escaped-name", "given-twice", "other-spaces", "beyond-what-is-read"],
)
def test_no_spelling_gets_around_the_limit_on_deep_lookups(scene: Scene, body: bytes) -> None:
    """However a body says deep, in pieces or at once: it counts."""
    caller = scene.caller()
    headers = {"Content-Type": "application/json"}
    for number in range(DEEP):
        content = body if number % 2 else iter([body[:7], body[7:]])
        assert 200 == caller.post("/v1/lookup", content=content, headers=headers).status_code

    assert 429 == caller.post("/v1/lookup", content=body, headers=headers).status_code
