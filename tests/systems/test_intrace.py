"""Goal: Intrace as documented, from config/intrace.yaml. Method: what each sentence of its documentation says is asked
of the system at work, in both ways.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ratelimiter.identity.api_keys import hash_key
from tests.systems.credentials import SECRET
from tests.systems.scene import fresh_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.systems.scene import Scene

LIMIT, BURST, DEEP, PER_ADDRESS, HIGHER = 60, 10, 10, 600, 300
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


# Credentials


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


BAD_CREDENTIALS = {
    "none": "credentials_missing",
    "another-scheme": "credentials_missing",
    "expired": "token_expired",
    "another-issuer": "token_invalid",
    "another-audience": "token_invalid",
    "another-signature": "token_invalid",
    "unsigned": "token_invalid",
    "no-token": "token_invalid",
    "unknown-key": "api_key_invalid",
    "revoked-key": "api_key_invalid",
}


def bad_credentials(scene: Scene, what: str) -> dict[str, str]:
    issuer = scene.deployment.issuer
    if what == "another-signature":
        signed, _, _ = issuer.token(sub="mallory").rpartition(".")
        return bearer(f"{signed}.{issuer.token(sub='alice').rpartition('.')[2]}")
    made: dict[str, Callable[[], dict[str, str]]] = {
        "none": dict,
        "another-scheme": lambda: {"Authorization": "Basic eDp5"},
        "expired": lambda: bearer(issuer.token(sub="alice", exp=1_700_000_000)),
        "another-issuer": lambda: bearer(issuer.token(sub="alice", iss="https://id.elsewhere.example/")),
        "another-audience": lambda: bearer(issuer.token(sub="alice", aud="elsewhere")),
        "unsigned": lambda: bearer("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."),
        "no-token": lambda: bearer("made-up"),
        "unknown-key": lambda: {"X-API-Key": "made-up"},
        "revoked-key": lambda: scene.deployment.headers("revoked"),
    }
    return made[what]()


@pytest.mark.parametrize("what", BAD_CREDENTIALS)
def test_bad_credentials(scene: Scene, what: str) -> None:
    """Each kind of fault is a 401 with its documented code; what would do is told as HTTP has it, and no wait is."""
    response = scene.stranger(bad_credentials(scene, what)).get("/v1/status")

    assert (401, BAD_CREDENTIALS[what]) == (response.status_code, error(response)["code"])
    assert "bearer" in response.headers["www-authenticate"].lower()
    assert "retry-after" not in response.headers
    assert [] == error(response)["details"]


@pytest.mark.parametrize("by", ["key", "token"])
def test_a_role_may_not_grant_access(scene: Scene, by: str) -> None:
    """403 at what needs a scope, for who has it not; a key or a token that has it is let in."""
    without, within = scene.deployment.headers(), scene.deployment.headers("auditor")
    if by == "token":
        without, within = (
            bearer(scene.deployment.issuer.token(sub=f"{way}-{scene.way}", scope=way)) for way in ("lookup", "x audit")
        )
    refusal = scene.stranger(without).get("/v1/audit")

    assert (403, "insufficient_scope") == (refusal.status_code, error(refusal)["code"])
    assert 200 == scene.stranger(within).get("/v1/audit").status_code


def test_a_user_is_charged_for_all_tokens(scene: Scene) -> None:
    """Per user: a second token, or a second address, is no second limit."""
    user = f"alice-{scene.way}"
    tokens = [scene.deployment.issuer.token(sub=user, jti=str(number)) for number in range(2)]
    first, second = (scene.stranger(bearer(token)) for token in tokens)
    for _ in range(LIMIT + BURST):
        assert 200 == scene.call(first).status_code

    assert 429 == scene.call(second).status_code
    assert 200 == scene.call(scene.stranger(bearer(scene.deployment.issuer.token(sub=f"bob-{scene.way}")))).status_code


def test_keys_are_hashed_with_a_secret(scene: Scene) -> None:
    """What is on disk gives no key away, and without the secret not even a guess can be tried."""
    key = scene.deployment.headers()["X-API-Key"]
    file = (scene.deployment.policy.parent / "keys" / "intrace.yaml").read_text()

    assert key not in file
    assert hash_key(key.encode(), SECRET.encode()).hex() in file
    assert hash_key(key.encode()).hex() not in file


# Attacks


def test_the_application_is_told_who_is_there_and_by_nobody_else(scene: Scene) -> None:
    """What a client says in those headers, in whatever spelling, does not get through."""
    user = f"carol-{scene.way}"
    headers = bearer(scene.deployment.issuer.token(sub=user, scope="lookup"))
    forged = {"X-Auth-Principal": "root", "x_auth_principal": "root", "X-AUTH-SCOPES": "audit", "X-Auth_Scopes": "all"}
    told = scene.stranger(headers | forged).get("/v1/status").json()

    assert {"status": "ok", "x-auth-principal": user, "x-auth-scopes": "lookup"} == told


def test_made_up_keys_meet_a_limit_on_their_address(scene: Scene) -> None:
    """Another one each time is a 401 each time, until its address has had as many requests as one principal may make;
    who has a good key at the same address is not affected.
    """
    address = fresh_address()
    guesser = scene.stranger(address=address)
    statuses = [guesser.get("/v1/status", headers={"X-API-Key": f"guess-{n}"}).status_code for n in range(80)]

    assert [401] * (LIMIT + BURST) + [429] * (80 - LIMIT - BURST) == statuses
    assert 200 == scene.call(scene.caller(address=address)).status_code


def test_many_principals_at_one_address_meet_its_limit(scene: Scene) -> None:
    """Who has many accounts is no ten callers."""
    address = fresh_address()
    issuer, client = scene.deployment.issuer, scene.stranger(address=address)
    statuses = []
    for user in range(12):
        headers = bearer(issuer.token(sub=f"clone-{user}-{scene.way}"))
        statuses += [client.get("/v1/status", headers=headers).status_code for _ in range(55)]

    assert [200] * PER_ADDRESS + [429] * (len(statuses) - PER_ADDRESS) == statuses


@pytest.mark.parametrize(
    "headers",
    [
        [("X-API-Key", "KEY"), ("X-API-Key", "other")],
        [("X-API-Key", "KEY"), ("X_API_Key", "other")],
    ],
    ids=["twice", "underscores"],
)
def test_two_keys_are_none(scene: Scene, headers: list[tuple[str, str]]) -> None:
    """Which of them the application reads is anybody's guess: 400."""
    key = scene.deployment.headers()["X-API-Key"]
    sent = [(name, value.replace("KEY", key)) for name, value in headers]
    response = scene.stranger().get("/v1/status", headers=httpx.Headers(sent))

    assert (400, "request_malformed") == (response.status_code, error(response)["code"])


def test_a_good_key_does_not_vouch_for_a_bad_token(scene: Scene) -> None:
    """Which of the two the application believes is not known: both must be good."""
    headers = scene.deployment.headers() | bearer("made-up")

    assert 401 == scene.stranger(headers).get("/v1/status").status_code


def test_a_service_account_may_have_a_higher_limit(scene: Scene) -> None:
    """As the roles of the deployment say; the figures are its own, and its burst comes on top as everybody's does."""
    caller = scene.caller("batch")
    first = scene.call(caller)
    statuses = [scene.call(caller).status_code for _ in range(HIGHER + BURST)]

    assert [str(HIGHER), str(HIGHER - 1)] == [first.headers[f"x-ratelimit-{word}"] for word in ("limit", "remaining")]
    assert [200] * (HIGHER + BURST - 1) + [429] == statuses
