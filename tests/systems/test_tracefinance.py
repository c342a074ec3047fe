"""Goal: the Trace Finance API as documented, from config/tracefinance.yaml.

Method: what its documentation says is asked of the system at work, in both ways.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.systems.scene import Scene

UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PAYMENT = {"amount": {"value": 7}}


@pytest.fixture
def scene(running: Callable[[str, str], Scene], way: str) -> Scene:
    return running("tracefinance", way)


def error(response: httpx.Response) -> dict[str, Any]:
    """The body of an error, in the one form that all have."""
    body: dict[str, Any] = response.json()
    assert ["code", "details", "message"] == sorted(body)
    assert isinstance(body["details"], dict)
    assert isinstance(body["message"], str)
    return body


def pay(caller: httpx.Client, body: object = None, idempotency_id: str = "") -> httpx.Response:
    headers = {"Idempotency-Id": idempotency_id or str(uuid.uuid4())}
    return caller.post("/v1/payments", json=PAYMENT if body is None else body, headers=headers)


def test_every_response_has_a_request_id(scene: Scene) -> None:
    """A UUID, on successes and on all errors, the limiter's own included; that of the client if it is one."""
    caller, nobody, named = scene.caller(), scene.stranger(), str(uuid.uuid4())
    paths = ["/v1/balance", "/v1/payments/none", f"/v1/payments/{named}", "/v1/nowhere"]
    responses = [*(caller.get(path) for path in paths), pay(caller), pay(caller, {}), nobody.get("/v1/balance")]
    responses.append(scene.caller().get("/v1/broken"))  # uvicorn hangs up after it

    assert [200, 400, 404, 404, 201, 400, 401, 500] == [response.status_code for response in responses]
    assert all(UUID.fullmatch(response.headers["x-request-id"]) for response in responses)
    assert len(responses) == len({response.headers["x-request-id"] for response in responses})
    assert named == caller.get("/v1/balance", headers={"X-Request-Id": named}).headers["x-request-id"]


def test_the_documented_example_of_an_error(scene: Scene) -> None:
    """In its form: what is wrong with which field, and the field again in the details."""
    response = pay(scene.caller(), {"amount": {"value": -1}})
    body = error(response)

    assert (400, "INVALID_DATA", {"field": "amount.value"}) == (response.status_code, body["code"], body["details"])
    assert body["message"].startswith("The field 'amount.value' must be ")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/payments", {"amount": {}}, 400, "REQUIRED"),
        ("/v1/payments", {"amount": {"value": "x"}}, 400, "INVALID_TYPE"),
        ("/v1/payments", {"amount": {"value": 1, "currency": "XXX"}}, 400, "INVALID_ENUM"),
        ("/v1/payments/none", None, 400, "INVALID_UUID"),
        ("/v1/payments/7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36", None, 404, "RESOURCE_NOT_FOUND"),
        ("/v1/payments/7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36/cancel", {}, 422, "INVALID_STATUS_CHANGE"),
        ("/v1/reports", None, 408, "REQUEST_TIMEOUT"),
        ("/v1/broken", None, 500, "INTERNAL_ERROR"),
    ],
)
def test_errors_of_the_application(scene: Scene, path: str, body: object, status: int, code: str) -> None:
    """Each has its documented status, and its code where one is documented."""
    caller = scene.caller()
    headers = {"Idempotency-Id": "one"}
    response = caller.get(path) if body is None else caller.post(path, json=body, headers=headers)

    assert (status, code) == (response.status_code, error(response)["code"])


def test_a_header_that_is_missing(scene: Scene) -> None:
    """Is told apart from a field."""
    response = scene.caller().post("/v1/payments", json=PAYMENT)

    assert (400, "MISSING_REQUIRED_HEADER") == (response.status_code, error(response)["code"])


def test_conflicts(scene: Scene) -> None:
    """The same id with another request is a 409; with the same one it is the first answer."""
    caller, named = scene.caller(), str(uuid.uuid4())
    first, again = pay(caller, idempotency_id=named), pay(caller, idempotency_id=named)
    other = pay(caller, {"amount": {"value": 8}}, named)

    assert first.json() == again.json()
    assert (409, "IDEMPOTENT_ID_CONFLICT") == (other.status_code, error(other)["code"])


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer made-up"}, {"Authorization": "Basic eDp5"}])
def test_without_credentials(scene: Scene, headers: dict[str, str]) -> None:
    """A 401 in the same form; no waiting helps."""
    response = scene.stranger(headers).get("/v1/balance")

    assert 401 == response.status_code
    assert error(response)["code"] == "UNAUTHORIZED"
    assert "retry-after" not in response.headers
    assert response.headers["www-authenticate"].startswith("Bearer ")
