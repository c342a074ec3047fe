"""Goal: the credits of the Trace API as documented, from config/trace.yaml: a balance of each organisation's.

Method: they are spent, in both ways, to the last.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.stores.redis_server import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.systems.scene import Scene

CREDITS, MOST = 10_000, 50  # that an organisation begins with; that a call is taken to cost beforehand
LIMIT = 600
COMPANY = "/v1/companies/acme.example"


@pytest.fixture
def scene(running: Callable[[str, str], Scene], way: str) -> Scene:
    return running("trace", way)


def body_of(response: httpx.Response) -> Any:
    return json.loads(response.text)


def spend(caller: httpx.Client, credit: int) -> None:
    """Have *caller* spend so many credits."""
    while credit:
        cost = min(MOST, credit)
        assert 200 == caller.get("/v1/search", params={"limit": cost}).status_code
        credit -= cost


def exhausted(requested: int, shortfall: int) -> dict[str, Any]:
    return {
        "error": "credit_exhausted",
        "message": "Insufficient credits to complete this request.",
        "requested": requested,
        "shortfall": shortfall,
    }


def refused(caller: httpx.Client) -> httpx.Response:
    """The refusal that comes once all calls before are settled, which is a moment after their answers."""
    found: list[httpx.Response] = []

    def settled() -> bool:
        found.append(caller.get("/v1/search"))
        return found[-1].status_code == 402

    wait_until(settled, "credits are exhausted")
    return found[-1]


def test_credits_run_out(scene: Scene) -> None:
    """A call that the balance cannot cover is the documented 402, with what it needed and how much was missing, and
    charges nothing; no waiting helps, so it names no time.
    """
    caller = scene.caller()
    spend(caller, CREDITS - 38)

    def missing() -> int:
        return int(body_of(caller.get(COMPANY)).get("shortfall", -1))

    wait_until(lambda: missing() == 12, "all is settled")
    for _ in range(3):
        response = caller.get(COMPANY)
        assert 402 == response.status_code
        assert exhausted(MOST, 12) == body_of(response)
        assert "retry-after" not in response.headers
        assert str(LIMIT) == response.headers["x-ratelimit-limit"]


def test_a_call_costs_what_it_returns(scene: Scene) -> None:
    """Of the most that a call may cost the rest comes back: two hundred calls for one credit each leave 9,800."""
    caller = scene.caller()
    for _ in range(200):
        assert 200 == caller.get(COMPANY).status_code
    spend(caller, CREDITS - 200 - MOST)

    assert 200 == caller.get("/v1/search", params={"limit": MOST}).status_code
    assert exhausted(MOST, MOST) == body_of(refused(caller))


@pytest.mark.parametrize(
    ("path", "statuses"),
    # uvicorn hangs up after what an application does not handle, and what a proxy had sent on by then is lost.
    [("/v1/companies/x.example", {404}), ("/v1/search?limit=x", {422}), ("/v1/broken", {500, 502})],
)
def test_what_fails_costs_nothing(scene: Scene, path: str, statuses: set[int]) -> None:
    """Neither what says so nor what does not get to say anything."""
    caller = scene.caller()
    for _ in range(CREDITS // MOST + 5):
        assert caller.get(path, headers={"Connection": "close"}).status_code in statuses
    wait_until(lambda: caller.get("/v1/lists").status_code == 200, "a connection to the application is good again")
    spend(caller, CREDITS)


def test_what_is_not_permitted_costs_nothing(scene: Scene) -> None:
    """An organisation's key at what belongs to a user."""
    caller = scene.caller("org")
    for _ in range(CREDITS // MOST + 5):
        assert 403 == caller.get("/v1/lists").status_code
    spend(caller, CREDITS)


def test_credits_are_the_organisations(scene: Scene) -> None:
    """Its keys share one balance, and have a limit of operations each; another organisation has its own."""
    one, other, stranger = scene.caller("colleague"), scene.caller("colleague"), scene.caller()
    spend(one, CREDITS // 2)
    spend(other, CREDITS // 2)

    assert exhausted(MOST, MOST) == body_of(refused(one))
    assert exhausted(MOST, MOST) == body_of(refused(other))
    assert 200 == stranger.get(COMPANY).status_code


def test_an_operator_tops_a_balance_up(scene: Scene) -> None:
    """Of the organisation by its name, while it runs; so much is there then, and not a credit more."""
    key = scene.deployment.headers("topped-up")
    caller = scene.stranger(key)
    spend(caller, CREDITS)
    refused(caller)
    scene.operate("topup", "org=topped-up", "60")
    wait_until(lambda: caller.get("/v1/search", params={"limit": MOST}).status_code == 200, "it is topped up", 3)

    assert exhausted(MOST, MOST - 10) == body_of(refused(caller))


def test_many_at_once_never_overspend(scene: Scene) -> None:
    """Of three hundred calls at once for fifty credits each, two hundred are covered at most, and in the end no credit
    is lost.
    """
    caller = scene.caller()
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: caller.get("/v1/search", params={"limit": MOST}).status_code, range(300)))

    assert {200, 402} == set(found)
    assert found.count(200) <= CREDITS // MOST
    while found.count(200) < CREDITS // MOST:  # what was refused while more was reserved than is spent
        found.append(caller.get("/v1/search", params={"limit": MOST}).status_code)
    assert 402 == caller.get("/v1/search", params={"limit": MOST}).status_code


def test_the_meters_are_independent(scene: Scene) -> None:
    """Operations are refused with 429 long before credits are out; a refusal of one charges nothing to the other."""
    caller = scene.caller()
    for _ in range(LIMIT):
        assert 200 == caller.get(COMPANY).status_code
    refusal = caller.get(COMPANY)

    assert (429, "operational_rate_limit_exceeded") == (refusal.status_code, body_of(refusal)["error"])
