"""Goal: Envoy, by either protocol, does what the policy says. Method: the real Envoy in front of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service.serving import (
    EXT_AUTHZ_FILTER,
    RATE_LIMIT_FILTER,
    Served,
    application,
    ask,
    envoy_config,
    envoy_with,
    free_port,
    served,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = """\
domain: edge
dialect: problem
headers: [x-ratelimit, draft-11]
trusted_proxies: [10.0.0.0/8]
rules:
  - {name: wide, descriptors: [key], limit: 10/minute}
  - {name: narrow, descriptors: [key, path], limit: 3/minute}
  - {name: per-key, limit: 3/minute, principal: [header:X-API-Key, client]}
  - {name: writes, match: {methods: [POST], path: /v1/orders}, limit: 1/minute, principal: header:X-API-Key}
"""
ACTIONS = """[
                {actions: [{request_headers: {header_name: x-key, descriptor_key: key}}]},
                {actions: [{request_headers: {header_name: x-key, descriptor_key: key}},
                           {request_headers: {header_name: ":path", descriptor_key: path}}]}]"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("envoy"), POLICY) as service:
        yield service


@pytest.fixture(scope="module")
def limited(service: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an Envoy that asks the rate limit service."""
    port = free_port()
    with application() as app:
        config = envoy_config(port=port, app=app, limiter=service.grpc, filters=RATE_LIMIT_FILTER, rate_limits=ACTIONS)
        with envoy_with(tmp_path_factory.mktemp("envoy"), config, port):
            yield port


@pytest.fixture(scope="module")
def authorized(service: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an Envoy that asks ext_authz."""
    port = free_port()
    with application() as app:
        config = envoy_config(port=port, app=app, limiter=service.grpc, filters=EXT_AUTHZ_FILTER)
        with envoy_with(tmp_path_factory.mktemp("envoy"), config, port):
            yield port


def test_all_descriptors_or_none_through_envoy(limited: int) -> None:
    """12 calls of /a, 3 of /b, 6 of /c, 4 of /d admit 3, 3, 3 and 1 of a wide limit of 10."""
    admitted = {
        path: [ask(limited, "GET", path, {"X-Key": "k"})[0] for _ in range(count)].count(200)
        for path, count in (("/a", 12), ("/b", 3), ("/c", 6), ("/d", 4))
    }

    assert {"/a": 3, "/b": 3, "/c": 3, "/d": 1} == admitted


def test_a_refusal_through_envoy_is_the_dialects(limited: int) -> None:
    """The client gets the documented body, content type, Retry-After and figures; an admitted one gets the figures."""
    answers = [ask(limited, "GET", "/r", {"X-Key": "r"}) for _ in range(4)]
    (status, headers, body), admitted = answers[-1], answers[0]

    told = dict(headers)
    assert [200, 200, 200, 429] == [answer[0] for answer in answers]
    assert told["content-type"] == "application/problem+json"
    assert b'"' in body
    assert 55 <= int(told["retry-after"]) <= 60
    assert "0" == told["x-ratelimit-remaining"]
    assert "2" == dict(admitted[1])["x-ratelimit-remaining"]
    assert 429 == status


def test_ext_authz(authorized: int) -> None:
    """A request is judged by its method, path, headers and address; refusals are whole, admissions have the figures."""
    posts = [ask(authorized, "POST", "/v1/orders?x=1", {"X-API-Key": "p"}, b"{}") for _ in range(2)]
    gets = [ask(authorized, "GET", "/v1/orders", {"X-API-Key": "g"}) for _ in range(4)]
    by_address = ask(authorized, "GET", "/", {"X-Forwarded-For": "203.0.113.9"})

    assert [200, 429] == [answer[0] for answer in posts]
    assert [200, 200, 200, 429] == [answer[0] for answer in gets]
    assert ["2", "1", "0", "0"] == [dict(answer[1])["x-ratelimit-remaining"] for answer in gets]
    assert "here" == dict(gets[0][1])["x-application"]
    assert "retry-after" in dict(gets[3][1])
    assert b'"' in gets[3][2]
    assert 200 == by_address[0]


def test_the_same_refusal_by_every_protocol(limited: int, authorized: int, service: Served) -> None:
    """Rate limit service, ext_authz and /check refuse in the same bytes."""
    for _ in range(3):
        ask(limited, "GET", "/same", {"X-Key": "s"})
        ask(authorized, "GET", "/", {"X-API-Key": "s"})
    through_rls = ask(limited, "GET", "/same", {"X-Key": "s"})
    through_authz = ask(authorized, "GET", "/", {"X-API-Key": "s"})
    checked = ask(service.http, "GET", "/check", {"X-API-Key": "s", "X-Forwarded-Uri": "/"})

    assert (through_authz[0], through_authz[2]) == (checked[0], checked[2])
    assert dict(through_authz[1])["content-type"] == dict(checked[1])["content-type"]
    assert (through_rls[0], through_rls[2].replace(b"narrow", b"per-key")) == (checked[0], checked[2])
