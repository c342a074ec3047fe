"""Goal: HTTP doors read what proxies describe, and answer JSON by their OpenAPI file. Method: tables, and a fuzz."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ratelimiter.core.request import MalformedRequest, Request
from ratelimiter.service.forwarded_request import described
from tests.service.serving import Served, ask, served

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
OPENAPI = YAML(typ="safe").load((ROOT / "docs" / "reference" / "service.openapi.yaml").read_text())

POLICY = """\
domain: edge
trusted_proxies: [10.0.0.0/8]
rules:
  - {name: per-key, match: {path: /limited}, limit: 3/minute, principal: [header:X-API-Key, client]}
  - {name: slots, match: {path: /slots}, limit: 1 concurrent, principal: [header:X-API-Key, client]}
  - {name: tokens, match: {path: /tokens}, limit: 100/minute, principal: [header:X-API-Key, client]}
  - {name: wide, descriptors: [key], limit: 2/minute}
"""


def told(*headers: tuple[str, str], target: str = "/check", by_nginx: bool = False) -> Request:
    """The request that a question is about."""
    pairs = tuple((name.encode(), value.encode()) for name, value in headers)
    prefix = b"/check/nginx" if by_nginx else b"/check"
    return described(Request("GET", target.encode(), pairs, "127.0.0.1"), prefix, by_nginx=by_nginx)


@pytest.mark.parametrize(
    ("headers", "target", "method", "path", "peer"),
    [
        ([], "/check", "GET", b"/", "127.0.0.1"),
        ([], "/check/v1/items?page=2", "GET", b"/v1/items?page=2", "127.0.0.1"),
        ([], "/check?page=2", "GET", b"/?page=2", "127.0.0.1"),
        ([("X-Forwarded-Method", "PUT"), ("X-Forwarded-Uri", "/a%2fb?c")], "/check", "PUT", b"/a%2fb?c", "127.0.0.1"),
        ([("X-Original-Method", "POST"), ("X-Original-URI", "/x")], "/check", "POST", b"/x", "127.0.0.1"),
        ([("X-Original-URI", "/x"), ("X-Forwarded-Uri", "/x")], "/check", "GET", b"/x", "127.0.0.1"),
        ([("X-Forwarded-For", "192.0.2.1")], "/check", "GET", b"/", "192.0.2.1"),
        ([("X-Forwarded-For", "192.0.2.1, 10.0.0.1")], "/check", "GET", b"/", "10.0.0.1"),
        ([("X-Real-IP", "192.0.2.1")], "/check", "GET", b"/", "192.0.2.1"),
    ],
)
def test_a_request_is_read_from_what_proxies_say(
    headers: list[tuple[str, str]], target: str, method: str, path: bytes, peer: str
) -> None:
    """Method, target and address are the proxy's words; without any they are those of the question."""
    request = told(*headers, target=target)

    assert (method, path, peer) == (request.method, request.target, request.peer)


def test_fields_of_the_question_are_none_of_the_request() -> None:
    """What describes the request is taken off; the host is the forwarded one, and earlier hops stay to be judged."""
    request = told(
        ("Host", "limiter"),
        ("X-Forwarded-Host", "api.example.com"),
        ("X-Forwarded-For", "192.0.2.1, 10.0.0.1"),
        ("Content-Length", "0"),
        ("X-API-Key", "k"),
    )

    expected = [(b"host", b"api.example.com"), (b"X-API-Key", b"k"), (b"x-forwarded-for", b"192.0.2.1")]
    assert expected == list(request.headers)


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Original-URI", "/a"), ("X-Forwarded-Uri", "/b")],
        [("X-Original-URI", "/a"), ("X-Original-URI", "/b")],
        [("X-Original-Method", "GET"), ("X-Forwarded-Method", "PUT")],
    ],
)
def test_two_descriptions_are_malformed(headers: list[tuple[str, str]]) -> None:
    """A field that the client added, beside the proxy's own, makes the question one that cannot be answered."""
    with pytest.raises(MalformedRequest, match="in two ways"):
        told(*headers)


def test_a_path_below_the_door_and_another_are_two_descriptions() -> None:
    """Envoy appends the path to the door's, and a client's X-Forwarded-Uri must not win over it."""
    with pytest.raises(MalformedRequest, match="in two ways"):
        told(("X-Forwarded-Uri", "/b"), target="/check/a")


def test_nginx_has_a_door_for_itself() -> None:
    """At /check/nginx only nginx's own fields count, whatever a client sends beside them."""
    request = told(
        ("X-Original-URI", "/a"), ("X-Forwarded-Uri", "/b"), ("X-Real-IP", "192.0.2.9"),
        ("X-Forwarded-For", "203.0.113.1"), target="/check/nginx", by_nginx=True,
    )  # fmt: skip

    assert (b"/a", "192.0.2.9") == (request.target, request.peer)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("doors"), POLICY) as service:
        yield service


def post(service: Served, path: str, value: object) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    status, _, answer = ask(service.http, "POST", path, {"Content-Type": "application/json"}, body)
    return status, json.loads(answer)


def test_decide_admits_and_refuses(service: Served) -> None:
    """A decision has everything that a caller needs: figures, headers, and of a refusal the reply to send."""
    question = {"method": "GET", "path": "/limited", "headers": {"X-API-Key": "d"}, "peer": "192.0.2.1"}
    answers = [post(service, "/v1/decide", question)[1] for _ in range(4)]

    assert [True, True, True, False] == [answer["allowed"] for answer in answers]
    assert ["per-key"] == [rule["name"] for rule in answers[0]["rules"]]
    assert ("3", "2") == (answers[0]["headers"]["x-ratelimit-limit"], answers[0]["headers"]["x-ratelimit-remaining"])
    assert (429, "over_limit") == (answers[3]["reply"]["status"], answers[3]["reason"])
    assert 429 == json.loads(answers[3]["reply"]["body"])["status"]
    assert 50_000 < answers[3]["wait_ms"] <= 60_000
    assert "token" not in answers[3]


def test_a_slot_is_held_until_it_is_settled(service: Served) -> None:
    """With the token of its decision a caller in any language returns a slot; the same token settles once."""
    question = {"path": "/slots", "headers": {"X-API-Key": "s"}}
    first = post(service, "/v1/decide", question)[1]
    assert not post(service, "/v1/decide", question)[1]["allowed"]

    assert (200, {"settled": 1}) == post(service, "/v1/settle", {"token": first["token"], "release": True})
    assert post(service, "/v1/decide", question)[1]["allowed"]
    assert 409 == post(service, "/v1/settle", {"token": first["token"], "release": True})[0]


def test_a_cost_is_reserved_and_settled(service: Served) -> None:
    """What is charged at first and what it came to: the rest is given back, more is charged."""
    question = {"path": "/tokens", "headers": {"X-API-Key": "t"}, "cost": 60}
    first = post(service, "/v1/decide", question)[1]
    assert not post(service, "/v1/decide", question)[1]["allowed"]
    post(service, "/v1/settle", {"token": first["token"], "cost": 10})

    second = post(service, "/v1/decide", question)[1]
    assert (True, 30) == (second["allowed"], second["rules"][0]["remaining"])


@pytest.mark.parametrize(
    ("path", "question", "status", "issue"),
    [
        ("/v1/decide", b"{", 400, "not JSON"),
        ("/v1/decide", b"[]", 400, "not a JSON object"),
        ("/v1/decide", {"metod": "GET"}, 400, "'metod' is unknown"),
        ("/v1/decide", {"method": 7}, 400, "method: 7 is not a string"),
        ("/v1/decide", {"headers": {"a": 1}}, 400, "headers: is not an object of strings"),
        ("/v1/decide", {"cost": 0}, 400, "cost: 0 is not a whole number"),
        ("/v1/decide", {"descriptors": [], "domain": "edge"}, 400, "there are 0 descriptors"),
        ("/v1/decide", {"descriptors": "x"}, 400, "is no RateLimitRequest"),
        ("/v1/settle", {}, 400, "neither cost nor release"),
        ("/v1/settle", {"token": "x.y", "cost": 1}, 400, "token: is none"),
        ("/v1/settle", {"token": "x", "cost": 1, "release": True}, 400, "or both"),
        ("/json", {"descriptors": []}, 400, "domain is empty"),
    ],
)
def test_a_bad_question_is_told(service: Served, path: str, question: object, status: int, issue: str) -> None:
    """Each fault names the field and what would do."""
    got, answer = post(service, path, question)

    assert (status, True) == (got, issue in answer["error"]), answer


def test_json_answers_as_the_reference_does(service: Served) -> None:
    """200 while there is room and 429 after it, in proto3 JSON."""
    question = {"domain": "edge", "descriptors": [{"entries": [{"key": "key", "value": "j"}]}]}
    answers = [post(service, "/json", question) for _ in range(3)]

    assert [200, 200, 429] == [status for status, _ in answers]
    limit = {"requestsPerUnit": 2, "unit": "MINUTE", "name": "wide"}
    assert ("OK", limit, 1) == (
        answers[0][1]["overallCode"],
        answers[0][1]["statuses"][0]["currentLimit"],
        answers[0][1]["statuses"][0]["limitRemaining"],
    )
    assert "limitRemaining" not in answers[2][1]["statuses"][0]
    assert 429 == json.loads(base64.b64decode(answers[2][1]["rawBody"]))["status"]


def test_other_methods_and_doors(service: Served) -> None:
    """A door that is none says which there are."""
    assert 405 == ask(service.http, "GET", "/v1/decide")[0]
    assert b"/check/nginx" in ask(service.http, "GET", "/nowhere")[2]
    assert 400 == ask(service.http, "GET", "/check/nginx/reply", {"X-RateLimit-Refusal": "nonsense"})[0]


def schema_of(path: str, status: int) -> dict[str, Any]:
    """The schema of an answer, by the OpenAPI file."""
    responses = OPENAPI["paths"][path]["post"]["responses"]
    response = responses.get(str(status), responses["default"])
    if "$ref" in response:
        response = OPENAPI["components"]["responses"][response["$ref"].rpartition("/")[2]]
    schema: dict[str, Any] = response["content"]["application/json"]["schema"]
    return {**schema, "components": OPENAPI["components"]}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.lists(
    st.fixed_dictionaries({"key": st.text(max_size=4)}, optional={"value": st.text(max_size=4)}), max_size=2
)
DESCRIPTORS = st.lists(
    st.fixed_dictionaries({"entries": ENTRIES}, optional={"hitsAddend": st.integers(-1, 9), "limit": JUNK}), max_size=3
)
QUESTIONS = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["GET", "POST", ""]) | JUNK,
        "path": st.text(max_size=12) | JUNK,
        "headers": st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=3) | JUNK,
        "peer": st.text(max_size=12) | JUNK,
        "body": st.text(max_size=12) | JUNK,
        "cost": st.integers(-1, 5) | JUNK,
        "domain": st.sampled_from(["edge", ""]) | JUNK,
        "descriptors": DESCRIPTORS | JUNK,
        "token": st.text(max_size=9) | JUNK,
        "release": st.booleans() | JUNK,
    },
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["/v1/decide", "/v1/settle", "/json"]), QUESTIONS | JUNK)
def test_every_answer_is_as_documented(service: Served, path: str, question: object) -> None:
    """Whatever is asked, the answer is one of those in the OpenAPI file, and never a 5xx."""
    status, answer = post(service, path, question)

    assert status < 500, answer
    jsonschema.validate(answer, schema_of(path, status))


def test_every_call_is_in_the_access_log(tmp_path: Path) -> None:
    """A gRPC call has its method and status there, a request to a door its path; no value of a descriptor is."""
    import grpc

    from tests.service.calls import descriptor, should

    log = tmp_path / "access.log"
    with served(tmp_path, POLICY, "--access-log", str(log)) as service:
        with grpc.insecure_channel(f"127.0.0.1:{service.grpc}") as channel:
            should(channel, descriptor(("key", "secret-value")))
        ask(service.http, "GET", "/check/limited", {"X-API-Key": "secret-value"})
        counted = service.metrics()
    lines = [json.loads(line) for line in log.read_text().splitlines()]

    told = [(line["path"], line["status"]) for line in lines]
    assert [("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit", 0), ("/check/limited", 200)] == told
    assert "secret-value" not in log.read_text() + counted
    assert 'ratelimiter_service_calls_total{code="0",door="grpc",method="ShouldRateLimit"} 1.0' in counted
    assert 'ratelimiter_service_calls_total{code="200",door="http",method="/check"} 1.0' in counted
