"""Goal: operators, and nobody else, get every verb over HTTP, and clear answers to mistakes. Method: the application on
the embedded store, and a fuzzer that reads its own description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ratelimiter.admin.operator import Operator
from ratelimiter.admin.operator_http import BODY_MAX, COMMANDS, operator_app
from ratelimiter.admin.operator_tokens import Tokens
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import Source
from ratelimiter.core.quota import Balance, Quota
from ratelimiter.core.rule import Rule
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.override_watcher import OverrideWatcher
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.memory import MemoryStore
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOKEN = "0123456789abcdef"  # noqa: S105
ALICE = {"principal": "header:X-API-Key=alice"}
POLICY = Policy(
    (
        Rule("rule", Quota(5, 60_000), principal=(Source("header", "x-api-key"),)),
        Rule("credits", Balance(50), principal=(Source("header", "x-api-key"),)),
    )
)


def application(folder: Path, store: Any = None) -> tuple[Any, Limiter]:
    (folder / "tokens").write_text(f"ann:{TOKEN}\n")
    limiter = Limiter(POLICY, store or MemoryStore())
    operator = Operator(lambda: POLICY, limiter.store, "nobody", done=OverrideWatcher(limiter).poll)
    return operator_app(operator, Tokens(folder / "tokens")), limiter


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(application(tmp_path)[0])
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://operator", headers=headers) as client:
        yield client


async def test_every_verb(client: httpx.AsyncClient) -> None:
    """Each is carried out, and the audit says by whom."""
    for path, body, expected in (
        ("/v1/peek", ALICE, {"plan": None, "blocked": None}),
        ("/v1/block", ALICE | {"for": "10m"}, {}),
        ("/v1/block", ALICE | {"until": "2050-01-01T00:00:00Z"}, {"until_ms": 2_524_608_000_000}),
        ("/v1/unblock", ALICE, {"was_blocked": True}),
        ("/v1/overrides", ALICE | {"rule": "rule", "limit": "9/minute"}, {"limit": "9/minute", "replaced": False}),
        ("/v1/overrides/remove", ALICE | {"rule": "rule"}, {"was_set": True}),
        ("/v1/shadow", {"on": True, "for": "10m"}, {"on": True}),
        ("/v1/shadow", {"on": False}, {"on": False, "was_on": True}),
        ("/v1/topup", ALICE | {"units": 10}, {"available": 60}),
        ("/v1/reset", ALICE | {"balances": True}, {"rules": ["rule", "credits"]}),
    ):
        answer = await client.post(path, json=body)
        assert (path, 200, "application/json") == (path, answer.status_code, answer.headers["content-type"])
        assert expected.items() <= answer.json().items(), path
    assert [] == (await client.get("/v1/orders")).json()["overrides"]
    lines = (await client.get("/v1/audit?n=100")).json()["lines"]

    assert ["reset", "topup", "shadow", "shadow", "override remove"] == [line["verb"] for line in lines[:5]]
    assert {"token:ann"} == {line["who"] for line in lines}


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong-0123456789",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/peek", "/v1/orders", "/openapi.json"])
async def test_without_a_token(client: httpx.AsyncClient, given: str | None, path: str) -> None:
    """A 401 that says what would do, and nothing is done; nor is it said what there is."""
    client.headers.pop("authorization")
    headers = {} if given is None else {"authorization": given}
    method = "POST" if path == "/v1/peek" else "GET"
    answer = await client.request(method, path, headers=headers, json=ALICE)

    assert 401 == answer.status_code
    assert answer.headers["www-authenticate"].startswith('Bearer realm="operator"')
    assert ["problems"] == list(answer.json())


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/v1/peek", b"", "the body is not JSON"),
        ("/v1/peek", b"{", "the body is not JSON"),
        ("/v1/peek", b"[" * 5000, "the body is not JSON"),
        ("/v1/peek", b"\xff", "the body is not JSON"),
        ("/v1/peek", b"[]", "the body is not a JSON object; write one with principal and plan"),
        ("/v1/peek", b"{}", "principal: is missing; write header:NAME=VALUE"),
        ("/v1/peek", b'{"principal": 1}', "principal: is not a text"),
        ("/v1/peek", b'{"principal": "digest=x", "limit": 1}', "'limit': is unknown; write principal or plan"),
        ("/v1/peek", b'{"principal": "alice"}', "principal: this is not a principal"),
        ("/v1/peek", b'{"principal": "header:X-API-Key=\\ud800"}', "principal: has characters that cannot be shown"),
        ("/v1/shadow", b'{"on": 1}', "on: is not true or false"),
        ("/v1/topup", b'{"principal": "header:X-API-Key=a", "units": true}', "units: is not a whole number"),
        ("/v1/topup", b'{"principal": "header:X-API-Key=a", "units": 0}', "units: a top-up must be of 1"),
        ("/v1/block", b'{"principal": "header:X-API-Key=a", "for": "soon"}', "for: 'soon' is not a duration"),
        ("/v1/overrides", b'{"principal": "header:X-API-Key=a"}', "override: an override names a principal"),
    ],
)
async def test_mistakes(client: httpx.AsyncClient, path: str, body: bytes, problem: str) -> None:
    """A 400 that says every problem, and what would do."""
    answer = await client.post(path, content=body)

    assert 400 == answer.status_code
    assert answer.json()["problems"][0].startswith(problem), answer.json()
    assert [] == (await client.get("/v1/audit")).json()["lines"]


async def test_other_ways_to_ask_wrongly(client: httpx.AsyncClient) -> None:
    """What is not there, not meant or too long has its status."""
    assert 404 == (await client.post("/v1/pek", json=ALICE)).status_code
    assert 405 == (await client.get("/v1/peek")).status_code
    assert 413 == (await client.post("/v1/peek", content=b" " * (BODY_MAX + 1))).status_code
    for number in ("0", "1001", "x", "-1", "9" * 30):
        assert 400 == (await client.get(f"/v1/audit?n={number}")).status_code


async def test_without_a_store(tmp_path: Path) -> None:
    """A 503 that does not claim to know what was done."""
    app, _ = application(tmp_path, open_store(f"redis://127.0.0.1:{free_port()}/0"))
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://o", headers=headers) as client:
        answer = await client.post("/v1/block", json=ALICE)

    assert 503 == answer.status_code
    assert ["store: no answer (unreachable); the operation may or may not have been done"] == answer.json()["problems"]


async def test_the_document_says_all(client: httpx.AsyncClient) -> None:
    """Every path that there is, with every field."""
    document = (await client.get("/openapi.json")).json()

    assert 11 == len(document["paths"])
    for path, item in document["paths"].items():
        for method in item:
            answer = await client.request(method, path, json=ALICE | {"on": True, "units": 1})
            assert answer.status_code in (200, 400), path


async def test_credentials_given_twice_are_refused(client: httpx.AsyncClient) -> None:
    """Two Authorization headers are a 400, whichever of them is good: a proxy in front may have read the other one."""
    good, bad = f"Bearer {TOKEN}", "Bearer wrong"
    for pair in ((good, bad), (bad, good), (good, good)):
        headers = [("authorization", value) for value in pair]
        del client.headers["authorization"]
        response = await client.post("/v1/peek", json=ALICE, headers=headers)
        client.headers["authorization"] = good

        assert 400 == response.status_code
        assert {"problems": ["Authorization: is given more than once; send one"]} == response.json()


async def test_the_role_read_looks_and_changes_nothing(client: httpx.AsyncClient, tmp_path: Path) -> None:
    """Peek, orders, audit and the description are answered; each command that changes something is a 403."""
    (tmp_path / "tokens").write_text(f"read/ann:{TOKEN}\n")
    looks = [(await client.get(path)).status_code for path in ("/v1/orders", "/v1/audit", "/openapi.json")]
    looks.append((await client.post("/v1/peek", json=ALICE)).status_code)
    changes = [(await client.post(path, json=ALICE)) for path, command in COMMANDS.items() if command.changes]

    assert [200] * 4 == looks
    assert [403] * 7 == [response.status_code for response in changes]
    assert "ann has the role read" in changes[0].json()["problems"][0]
