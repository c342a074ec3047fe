"""Goal: the Trace API as documented, from config/trace.yaml: who may call, and errors of two shapes. Method: what
its documentation says is asked of the system at work, in both ways.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.systems.scene import Scene

COMPANY = "/v1/companies/acme.example"


@pytest.fixture
def scene(running: Callable[[str, str], Scene], way: str) -> Scene:
    return running("trace", way)


def body_of(response: httpx.Response) -> Any:
    """The body, and that its members come in the documented order."""
    return json.loads(response.text)


def test_without_a_credential(scene: Scene) -> None:
    """401, flat: an error that is a word, and a message."""
    response = scene.stranger().get(COMPANY)
    body = body_of(response)

    assert (401, ["error", "message"]) == (response.status_code, list(body))
    assert body["error"] == "authentication_required"
    assert isinstance(body["message"], str)


@pytest.mark.parametrize("sort", ["made-up", "revoked", "expired"])
def test_with_a_bad_key(scene: Scene, sort: str) -> None:
    """401 in the documented words, whether nobody has heard of the key, it was revoked, or it has expired."""
    headers = {"X-API-Key": "trace_made_up"} if sort == "made-up" else scene.deployment.headers(sort)
    response = scene.stranger(headers).get(COMPANY)

    assert 401 == response.status_code
    assert {"error": "invalid_api_key", "message": "Invalid or revoked API key"} == body_of(response)


def test_what_belongs_to_a_user_needs_a_users_credential(scene: Scene) -> None:
    """An organisation's key gets the documented 403 to the letter; a user's is let in, be it a key or a token."""
    refusal = scene.caller("org").get("/v1/lists")
    token = scene.deployment.issuer.token(sub="u", org="o", email_verified=True)

    assert 403 == refusal.status_code
    assert {
        "error": "user_credential_required",
        "message": "This endpoint operates on user-scoped resources and requires a user-bound credential. Org-level "
        "and admin API keys cannot access it. Use a user-scoped API key (trace_…) or authenticate via the app.",
        "credential_type_used": "org_api_key",
        "credential_type_required": "user_api_key_or_jwt",
    } == body_of(refusal)
    assert 200 == scene.caller("user").get("/v1/lists").status_code
    assert 200 == scene.stranger({"Authorization": f"Bearer {token}"}).get("/v1/lists").status_code
    assert 200 == scene.caller("org").get(COMPANY).status_code


@pytest.mark.parametrize(
    ("sort", "error"),
    [("orphan", "key_missing_org_association"), ("unverified", "email_verification_required")],
)
def test_keys_that_lack_something(scene: Scene, sort: str, error: str) -> None:
    """403, flat."""
    response = scene.caller(sort).get(COMPANY)

    assert (403, ["error", "message"]) == (response.status_code, list(body_of(response)))
    assert error == body_of(response)["error"]


def test_errors_of_resources_are_nested(scene: Scene) -> None:
    """As documented, to the letter."""
    response = scene.caller().get("/v1/companies/x.example")

    assert 404 == response.status_code
    assert {"error": {"code": "company_not_found", "message": "No company found for 'x.example'"}} == body_of(response)


def test_unhandled_errors_say_one_thing(scene: Scene) -> None:
    """And nothing more."""
    response = scene.caller().get("/v1/broken")

    assert (500, {"error": "Internal server error"}) == (response.status_code, body_of(response))


def test_what_is_not_valid_is_told_as_fastapi_tells_it(scene: Scene) -> None:
    """Unchanged."""
    response = scene.caller().get("/v1/search", params={"limit": "many"})

    assert 422 == response.status_code
    assert {
        "detail": [
            {
                "type": "int_parsing",
                "loc": ["query", "limit"],
                "msg": "Input should be a valid integer, unable to parse string as an integer",
                "input": "many",
            }
        ]
    } == body_of(response)
