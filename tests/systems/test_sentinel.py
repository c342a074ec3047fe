"""Goal: KoraStratum Sentinel as documented, from config/sentinel.yaml: limits by plan, for each tenant.

Method: what its documentation says is asked of the system at work, in both ways.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.stores.redis_server import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.systems.scene import Scene

# plan: requests and events a minute
PLANS = {"basic": (30, 100), "professional": (100, 500), "enterprise": (500, 2000)}
PROFILE = {"customer_id": "c-1"}


@pytest.fixture
def scene(running: Callable[[str, str], Scene], way: str) -> Scene:
    return running("sentinel", way)


def error(response: httpx.Response) -> dict[str, Any]:
    """The body of an error, in the one form that all have."""
    body: dict[str, Any] = response.json()
    assert ["error", "message", "status"] == sorted(body)
    assert response.status_code == body["status"]
    return body


@pytest.mark.parametrize("plan", PLANS)
def test_requests_are_limited_by_plan(scene: Scene, plan: str) -> None:
    """X-RateLimit-Limit is the figure a minute of the caller's plan, so many are admitted, and then comes the 429."""
    limit, _ = PLANS[plan]
    caller = scene.caller(plan)
    for call in range(limit):
        response = caller.get("/profiles")
        figures = [int(response.headers[f"x-ratelimit-{word}"]) for word in ("limit", "remaining")]
        assert (200, [limit, limit - call - 1]) == (response.status_code, figures)
    refusal = caller.get("/profiles")

    assert str(limit) == refusal.headers["x-ratelimit-limit"]
    assert {
        "error": "Rate Limited",
        "message": "Rate limit exceeded. Please retry after the reset time.",
        "status": 429,
    } == error(refusal)


@pytest.mark.parametrize("plan", ["basic", "professional"])
def test_events_have_a_pair_of_their_own(scene: Scene, plan: str) -> None:
    """Higher, and separate: who has spent one may still use the other."""
    requests, events = PLANS[plan]
    caller = scene.caller(plan)
    for _ in range(requests):
        assert 200 == caller.get("/profiles").status_code
    assert 429 == caller.get("/profiles").status_code
    for call in range(events):
        response = caller.post("/events/ingest", json=PROFILE)
        assert (202, str(events)) == (response.status_code, response.headers["x-ratelimit-limit"])
        assert str(events - call - 1) == response.headers["x-ratelimit-remaining"]

    assert 429 == caller.post("/events/ingest", json=PROFILE).status_code


def test_an_operator_may_change_a_tenants_plan(scene: Scene) -> None:
    """While it runs, within a second or so; what was counted stays counted."""
    headers = scene.deployment.headers("basic")
    caller = scene.stranger(headers)
    for _ in range(30):
        assert 200 == caller.get("/profiles").status_code
    assert 429 == caller.get("/profiles").status_code
    scene.operate("override", "set", f"bearer={headers['X-Tenant-ID']}", "--plan", "professional", "--for", "1h")
    wait_until(lambda: caller.get("/profiles").status_code == 200, "the plan is another", within_s=3)
    response = caller.get("/profiles")

    assert ["100", "68"] == [response.headers[f"x-ratelimit-{word}"] for word in ("limit", "remaining")]


def test_a_key_without_a_plan_is_basic(scene: Scene) -> None:
    """The least."""
    assert "30" == scene.caller("planless").get("/profiles").headers["x-ratelimit-limit"]


@pytest.mark.parametrize(
    "tenant", [None, "", "acme", "7d3f6b0e-4c1a-4f5e-9b57", "{7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36}"]
)
def test_a_tenant_is_required(scene: Scene, tenant: str | None) -> None:
    """`X-Tenant-ID` that is absent or no UUID is the documented 401."""
    headers = scene.deployment.headers()
    headers.pop("X-Tenant-ID")
    response = scene.stranger(headers | ({} if tenant is None else {"X-Tenant-ID": tenant})).get("/profiles")

    assert {"error": "Unauthorized", "message": "missing tenant ID", "status": 401} == error(response)


@pytest.mark.parametrize("sort", ["none", "made-up", "revoked"])
def test_a_key_is_required(scene: Scene, sort: str) -> None:
    """Valid and active."""
    headers = {"X-Tenant-ID": str(uuid.uuid4())}
    if sort == "made-up":
        headers["Authorization"] = "Bearer made-up"
    elif sort == "revoked":
        headers = scene.deployment.headers("revoked")
    response = scene.stranger(headers).get("/profiles")

    assert (401, "Unauthorized") == (response.status_code, error(response)["error"])


def test_sandbox_keys_have_no_access(scene: Scene) -> None:
    """403, as they cannot access production endpoints."""
    response = scene.caller("sandbox").get("/profiles")

    assert (403, "Forbidden") == (response.status_code, error(response)["error"])


def test_nobody_spends_what_is_anothers(scene: Scene) -> None:
    """Who names another tenant is charged himself."""
    victim = scene.deployment.headers()
    headers = scene.deployment.headers() | {"X-Tenant-ID": victim["X-Tenant-ID"]}
    thief = scene.stranger(headers)
    statuses = [thief.get("/profiles").status_code for _ in range(PLANS["basic"][0] + 1)]

    assert 429 == statuses[-1]
    assert "29" == scene.stranger(victim).get("/profiles").headers["x-ratelimit-remaining"]


@pytest.mark.parametrize(
    ("path", "body", "status", "title", "message"),
    [
        ("/profiles", {}, 400, "Bad Request", "customer_id is required"),
        ("/profiles", PROFILE | {"reason": "x"}, 400, "Bad Request", "invalid enrollment reason"),
        ("/profiles/none", None, 404, "Not Found", "profile not found"),
        ("/profiles/none/close", {}, 409, "Conflict", "invalid status transition"),
        ("/broken", None, 500, "Internal Server Error", "internal server error"),
    ],
)
def test_errors_of_the_application(
    scene: Scene, path: str, body: object, *, status: int, title: str, message: str
) -> None:
    """Each has its status's documented title."""
    caller = scene.caller()
    response = caller.get(path) if body is None else caller.post(path, json=body)

    assert {"error": title, "message": message, "status": status} == error(response)
    assert "30" == response.headers["x-ratelimit-limit"]
