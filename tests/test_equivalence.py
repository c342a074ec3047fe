"""Goal: who limits is nobody's business but the operator's. Method: the same requests, in the same order and on one
clock, through the middleware and through the sidecar; decisions, headers and bodies are compared to the byte.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.asgi_client import http_scope, send_request
from tests.proxy.wire import Upstream, answering, sidecar

if TYPE_CHECKING:
    from pathlib import Path

PEER = "127.0.0.1"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-RateLimit-Limit: 7\r\nContent-Length: 2\r\n\r\nok"
OF_THE_CONNECTION = {"connection", "date"}


class Ask(NamedTuple):
    """One request, and how long after the one before it."""

    method: str = "GET"
    target: str = "/v1/items"
    headers: tuple[tuple[str, str], ...] = ()
    later_ms: int = 0
    body: bytes = b""


class Told(NamedTuple):
    """What a client gets to know."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


async def _app(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/plain"), (b"x-ratelimit-limit", b"7"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else b"ok"})


async def by_middleware(asks: list[Ask], policy: str) -> list[Told]:
    clock = FakeClock()
    app = RateLimitMiddleware(_app, config=policy, store=MemoryStore(clock=clock))
    told = []
    for ask in asks:
        clock.advance(ask.later_ms)
        scope = http_scope(ask.method, ask.target, client=(PEER, 50000))
        scope["headers"] += [(name.lower().encode(), value.encode()) for name, value in ask.headers]
        if ask.body:
            scope["headers"].append((b"content-length", b"%d" % len(ask.body)))
        answer = await send_request(app, scope, [{"type": "http.request", "body": ask.body, "more_body": False}])
        headers = [(name.decode().lower(), value.decode()) for name, value in answer.start["headers"]]
        told.append(Told(answer.status, sorted(headers), answer.body))
    return told


async def by_sidecar(asks: list[Ask], policy: str) -> list[Told]:
    clock = FakeClock()
    told = []
    upstream = Upstream(answering(ANSWER, then_close=False))
    headless = Upstream(answering(ANSWER[:-2], then_close=False))
    async with upstream.serving(), headless.serving():
        store = MemoryStore(clock=clock)
        async with (
            sidecar(upstream, limit=None, config=policy, store=store) as proxy,
            sidecar(headless, limit=None, config=policy, store=store) as for_heads,
        ):
            for ask in asks:
                clock.advance(ask.later_ms)
                lines = [f"{ask.method} {ask.target} HTTP/1.1", "Host: api.example"]
                lines += [f"{name}: {value}" for name, value in ask.headers]
                lines += [f"Content-Length: {len(ask.body)}"] if ask.body else []
                one = for_heads if ask.method == "HEAD" else proxy
                async with one.client() as client:
                    raw = "\r\n".join([*lines, "", ""]).encode() + ask.body
                    answer = await client.exchange(raw, head=ask.method == "HEAD")
                pairs = [line.partition(":") for line in answer.lines]
                headers = [(name.lower(), value.strip()) for name, _, value in pairs]
                kept = [pair for pair in headers if pair[0] not in OF_THE_CONNECTION]
                told.append(Told(answer.status, sorted(kept), answer.body))
    return told


RULES: list[dict[str, Any]] = [
    {"name": "all", "limit": "5/minute", "burst": 2},
    {"name": "writes", "limit": "2 per 10 seconds", "match": {"methods": ["POST", "PUT"]}},
    {"name": "deep", "limit": "1/second", "match": {"path": "/v1/lookup/{id}"}, "principal": ["client"]},
    {"name": "never", "limit": "3/minute", "cost": 3, "match": {"path": "/v1/reports/**"}, "mode": "shadow"},
]


@pytest.fixture(params=["problem", "intrace", "trace", "tracefinance", "plain", "sentinel"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A policy file of every dialect, with one header family or several."""
    families = {"intrace": ["x-ratelimit", "draft-11"], "trace": ["draft-06"], "plain": []}
    file = tmp_path / "policy.yaml"
    document = {
        "dialect": request.param,
        "headers": families.get(request.param, ["x-ratelimit"]),
        "principal": ["header:X-API-Key", "bearer", "client"],
        "trusted_proxies": ["127.0.0.0/8"],
        "method_override": request.param == "trace",
        "rules": RULES,
    }
    file.write_text(json.dumps(document))
    return str(file)


WRITTEN_DOWN = [
    *[Ask(headers=(("X-API-Key", "alice"),))] * 9,
    Ask("POST", headers=(("X-API-Key", "bob"),)),
    Ask("PUT", headers=(("x-api-key", "bob"),)),
    Ask("POST", headers=(("X-API-KEY", "bob"),)),
    Ask("HEAD", "/v1//lookup/./7"),
    Ask("GET", "/v1/lookup/%37?a=b"),
    Ask("GET", "/y/../v1/lookup/7", later_ms=999),
    Ask("GET", "/v1/lookup/7", later_ms=1),
    Ask("GET", "/v1/lookup%2f7"),
    Ask("GET", "/v1/%zz"),
    Ask("GET", "/v1/reports/x"),
    Ask("GET", "/v1/reports/x"),
    Ask(headers=(("X-API-Key", "alice"), ("X-API-Key", "bob"))),
    Ask(headers=(("X_API_Key", "alice"),)),
    Ask(headers=(("Authorization", "Bearer token"),)),
    Ask(headers=(("X-Forwarded-For", "203.0.113.9, 198.51.100.7"),)),
    Ask(headers=(("X-Forwarded-For", "198.51.100.7"), ("X-Forwarded-For", "127.0.0.9"))),
    Ask("OPTIONS", "*"),
    Ask("POST", headers=(("X-HTTP-Method-Override", "GET"),)),
    Ask(headers=(("X-API-Key", "alice"),), later_ms=60_000),
]


def with_id(asks: list[Ask]) -> list[Ask]:
    """Each with an id of its own, as both ways would otherwise make one up."""
    told = "00000000-0000-4000-8000-%012d"
    return [ask._replace(headers=(*ask.headers, ("X-Request-Id", told % n))) for n, ask in enumerate(asks)]


async def test_the_same_requests_get_the_same_answers(policy: str) -> None:
    """In every dialect, all ways to be admitted, refused and misunderstood."""
    asks = with_id(WRITTEN_DOWN)
    expected = await by_middleware(asks, policy)

    assert {200, 400, 429} == {told.status for told in expected}
    for ask, ours, theirs in zip(asks, await by_sidecar(asks, policy), expected, strict=True):
        assert theirs == ours, ask


async def test_where_no_rule_looks_at_paths_none_is_refused(tmp_path: Path) -> None:
    """However its readers may read it: an encoded slash is part of a key or a scoped package's name."""
    file = tmp_path / "policy.yaml"
    file.write_text(json.dumps({"rules": [{"name": "all", "limit": "4/minute"}]}))
    targets = ["/v1/lookup%2f7", "/@scope%2Fname", "/a%ff", "/..%5cb", "/v1/items"]
    asks = with_id([Ask("GET", target) for target in targets])
    expected = await by_middleware(asks, str(file))

    assert [200] * 4 + [429] == [told.status for told in expected]
    assert expected == await by_sidecar(asks, str(file))


def written(body: bytes, *headers: tuple[str, str], path: str = "/v1/lookup") -> Ask:
    return Ask("POST", path, (("X-API-Key", "k"), *headers), body=body)


BODIES = [
    *[written(b'{"depth": "shallow"}')] * 3,
    *[written(b'{"depth": "deep"}')] * 3,
    written(b'{"depth": "deep"}', path="/v1/other"),
    written(b""),
    written(b'{"depth": "deep"', ("X-API-Key", "k")),
    written(b'{"depth": "shallow", "text": "%s"}' % (b"x" * 2000)),
    written(b"\x1f\x8b", ("Content-Encoding", "gzip")),
    Ask(headers=(("X-API-Key", "k"),)),
]


async def test_the_same_bodies_get_the_same_answers(tmp_path: Path) -> None:
    """Where a rule looks into them: short and long, JSON and not, encoded, none."""
    file = tmp_path / "policy.yaml"
    deep = {"name": "deep", "limit": "2/minute", "match": {"path": "/v1/lookup", "json": {"depth": "deep"}}}
    rules = [{"name": "all", "limit": "60/minute"}, deep]
    file.write_text(json.dumps({"principal": ["header:X-API-Key"], "json_bytes_max": 1024, "rules": rules}))
    expected = await by_middleware(with_id(BODIES), str(file))

    assert [200] * 5 + [429, 200, 200, 400, 429, 429, 200] == [told.status for told in expected]
    assert expected == await by_sidecar(with_id(BODIES), str(file))


some = st.builds(
    Ask,
    st.sampled_from(["GET", "HEAD", "POST", "DELETE"]),
    st.sampled_from(["/v1/items", "/v1/lookup/1", "//v1/lookup/1", "/v1/lookup/2/", "/v1/reports/a/b", "/a%2fb", "/"]),
    st.lists(
        st.tuples(
            st.sampled_from(["X-API-Key", "Authorization", "X-Forwarded-For"]), st.sampled_from(["a", "Bearer b"])
        ),
        max_size=2,
    ).map(tuple),
    st.sampled_from([0, 0, 0, 1, 999, 1000, 9_999, 60_000]),
)


@settings(max_examples=25)
@given(asks=st.lists(some, min_size=1, max_size=25))
def test_any_requests_get_the_same_answers(asks: list[Ask], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is asked in whatever order."""
    file = tmp_path_factory.mktemp("policy") / "policy.yaml"
    principals = ["header:X-API-Key", "bearer", "client"]
    file.write_text(json.dumps({"principal": principals, "trusted_proxies": ["127.0.0.1"], "rules": RULES}))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(by_middleware(with_id(asks), str(file))) == runner.run(by_sidecar(with_id(asks), str(file)))
