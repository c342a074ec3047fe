"""Several limiters in one stack: charged all or none (1), and the same story wherever one of them stands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter import RateLimitMiddleware
from ratelimiter.asgi.request_state import SCOPE_KEY
from ratelimiter.config import loader
from ratelimiter.core.identity import NOBODY
from ratelimiter.stores.factory import store_for
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.asgi_client import get, http_scope, send_request
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-cost", b"3")]})
    await send({"type": "http.response.body", "body": b""})


def mounted(outer: str, inner: str, store: Any, **settings: Any) -> RateLimitMiddleware:
    """An application whose part below /sub has a limiter of its own."""
    sub = RateLimitMiddleware(app, limit=inner, store=store, name="sub")

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        await (sub if scope["path"].startswith("/sub") else app)(scope, receive, send)

    return RateLimitMiddleware(routed, limit=outer, store=store, **settings)


async def statuses(limited: Any, path: str, times: int) -> list[int]:
    return [(await get(limited, path)).status for _ in range(times)]


@pytest.mark.parametrize(
    ("outer", "inner", "below", "beside"),
    [
        ("10/minute", "2/minute", [200, 200] + [429] * 8, [200] * 8 + [429]),
        ("3/minute", "1/hour", [200] + [429] * 5, [200, 200, 429]),
        ("4/hour", "2/minute", [200, 200, 429, 429], [200, 200, 429]),
        ("4 per day", "1/minute", [200, 429, 429], [200, 200, 200, 429]),
    ],
)
async def test_a_refusal_further_in_gives_back_what_was_charged_further_out(
    outer: str, inner: str, below: list[int], beside: list[int]
) -> None:
    """Requests that the inner limiter refuses leave the outer one's count as it was, to the unit."""
    limited = mounted(outer, inner, MemoryStore(clock=FakeClock()))

    assert below == await statuses(limited, "/sub/x", len(below))
    assert beside == await statuses(limited, "/x", len(beside))


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    with RedisServer() as server:
        yield server.url


async def test_it_is_given_back_in_redis(redis: str) -> None:
    """On a shared store the next request comes behind what is given back."""
    policy = loader.build(limit="10/minute", store=redis, decision_timeout="5s", name="stack", environ={})
    store = store_for(policy)
    sub = RateLimitMiddleware(app, limit="2/minute", store=store, name="sub", decision_timeout="5s")

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        await (sub if scope["path"].startswith("/sub") else app)(scope, receive, send)

    limited = RateLimitMiddleware(routed, config=policy, store=store)
    below = await statuses(limited, "/sub/x", 10)
    beside = await statuses(limited, "/x", 9)
    await store.close()

    assert [200, 200] + [429] * 8 == below
    assert [200] * 8 + [429] == beside


async def test_slots_and_reservations_are_given_back(tmp_path: Path) -> None:
    """A slot is free again at once, and what only the response would have told is not charged."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        "rules:\n"
        "  - {name: slots, limit: 1 concurrent}\n"
        "  - {name: cost, limit: 10/day, cost: 5, cost_from: response_header X-Cost}\n"
        "  - {name: failures, limit: 2/hour, count: [4xx]}\n"
    )
    store = MemoryStore(clock=FakeClock())
    inner = RateLimitMiddleware(app, limit="1/minute", store=store, name="inner")
    limited = RateLimitMiddleware(inner, config=file, store=store, reload=False)
    answers = [await get(limited) for _ in range(4)]
    remaining = {}
    for decision in (await _state(limited))["decisions"][:1]:
        remaining = {outcome.rule.name: outcome.remaining for outcome in decision.outcomes}

    assert [200, 429, 429, 429] == [answer.status for answer in answers]
    assert {"slots": 0, "cost": 2, "failures": 1} == remaining  # of which this request holds 1, 5 and 1


async def _state(limited: Any) -> dict[str, Any]:
    """The decisions on one more request."""
    scope = http_scope()
    await send_request(limited, scope)
    return {"decisions": scope[SCOPE_KEY].decisions}


async def test_what_lacks_something_stays_charged(tmp_path: Path) -> None:
    """A missing header is not a limit: as with two rules of one policy, whoever tries is counted."""
    file = tmp_path / "policy.yaml"
    file.write_text("require: [{header: X-Tenant-ID}]\nrules: [{limit: 100/minute}]\n")
    store = MemoryStore(clock=FakeClock())
    inner = RateLimitMiddleware(app, config=file, store=store, name="inner", reload=False)
    limited = RateLimitMiddleware(inner, limit="2/minute", store=store)

    assert [400, 400, 429] == await statuses(limited, "/", 3)


async def test_three_deep() -> None:
    """Every limiter further out gets its own back."""
    store = MemoryStore(clock=FakeClock())
    inner = RateLimitMiddleware(app, limit="1/hour", store=store, name="inner")
    middle = RateLimitMiddleware(inner, limit="2/hour", store=store, name="middle")
    limited = RateLimitMiddleware(middle, limit="3/hour", store=store, name="outer")
    first = await statuses(limited, "/", 5)
    decisions = (await _state(limited))["decisions"]

    assert [200] + [429] * 4 == first
    assert [1, 0, 0] == [decision.outcomes[0].remaining for decision in decisions]


async def test_concurrent_requests_are_never_admitted_beyond_either_limit() -> None:
    """While one is being given back, no other gets in that should not."""
    limited = mounted("20/minute", "5/minute", MemoryStore(clock=FakeClock()))
    below = await asyncio.gather(*(get(limited, "/sub/x") for _ in range(40)))
    beside = await asyncio.gather(*(get(limited, "/x") for _ in range(40)))

    assert 5 == sum(answer.status == 200 for answer in below)
    assert 15 == sum(answer.status == 200 for answer in beside)


PLANS = """
principal: client
trusted_proxies: [203.0.113.0/24]
plan: {from: [header:X-Plan], default: basic}
require: [{header: X-Tenant-ID}]
rules: [{limit: {basic: 30/minute, pro: 100/minute}}]
"""


@pytest.mark.parametrize("around", [0, 1, 2])
@pytest.mark.parametrize(("sent", "plan"), [("pro", "pro"), ("basic", "basic"), ("unheard-of", "basic")])
async def test_the_application_is_told_the_same_plan_wherever_the_limiter_stands(
    tmp_path: Path, around: int, sent: str, plan: str
) -> None:
    """Alone or within limiters that identify nobody (N29)."""
    file = tmp_path / "policy.yaml"
    file.write_text(PLANS)
    seen: list[str] = []

    async def telling(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope[SCOPE_KEY].identity.plan)
        await app(scope, receive, send)

    limited: Any = RateLimitMiddleware(telling, config=file, store=MemoryStore(), reload=False)
    for number in range(around):
        limited = RateLimitMiddleware(limited, limit="1000/hour", name=f"outer-{number}", store=MemoryStore())
    answer = await send_request(limited, http_scope(headers={"X-Plan": sent, "X-Tenant-ID": "t"}))

    assert (200, [plan]) == (answer.status, seen)


async def test_a_limiter_that_looks_for_nobody_tells_of_nobody() -> None:
    """The identity in the scope is there, and is nobody's."""
    scope = http_scope()
    await send_request(RateLimitMiddleware(app, limit="1/minute", store=MemoryStore()), scope)

    assert NOBODY is scope[SCOPE_KEY].identity


REASONS = [
    ("require: [{header: X-Tenant-ID}]\nrules: [{limit: 9/minute}]", 1, (1008, "header missing")),
    ("rules: [{limit: 1/minute}]", 2, (1008, "rate limited")),
    ("rules: [{limit: 1 credits, name: paid}]", 2, (1008, "credits are exhausted")),
    ("rules: [{limit: 1 concurrent}]", 1, None),
    ("rules: [{limit: 9/minute, match: {path: /x}}]", 1, (1008, "malformed request")),
    (
        "store: redis://127.0.0.1:1\non_store_error: deny\nrules: [{limit: 9/minute}]",
        1,
        (1013, "the rate limiter is unavailable"),
    ),
]


@pytest.mark.parametrize(("policy", "times", "expected"), REASONS)
async def test_a_websocket_is_closed_for_the_true_reason(
    tmp_path: Path, policy: str, times: int, expected: tuple[int, str] | None
) -> None:
    """Without the extension for a response, the close says why: not all is a rate limit (N27)."""
    file = tmp_path / "policy.yaml"
    file.write_text(policy + "\n")
    limited = RateLimitMiddleware(app, config=file, reload=False)
    scope = {**http_scope(), "type": "websocket", "raw_path": b"/x%2F"}
    for _ in range(times):
        answer = await send_request(limited, dict(scope), [{"type": "websocket.connect"}])
    await limited.close()

    last = answer.messages[-1]
    assert expected == ((last["code"], last["reason"]) if last["type"] == "websocket.close" else None)
