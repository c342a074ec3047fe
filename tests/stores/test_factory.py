"""From a policy to the store that a limiter uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.core.policy import Policy
from ratelimiter.core.receipt import LOCAL, STORE
from ratelimiter.errors import ConfigError
from ratelimiter.stores import factory
from ratelimiter.stores.base import Store
from ratelimiter.stores.factory import OPENERS, store_for
from ratelimiter.stores.fallback import FallbackStore
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.stores.refusal_cache import RefusalCache
from tests.asgi_client import get
from tests.reference_store import hits_of, rule_of
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit

RULE = rule_of(10, 60_000)


async def application(scope: object, receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[operator]


def test_the_embedded_store_is_what_it_is() -> None:
    """What cannot fail and costs no round trip has nothing around it."""
    assert type(store_for(Policy((RULE,), store="memory://"))) is MemoryStore


@pytest.mark.parametrize("scheme", sorted(set(OPENERS) - {"memory"}))
def test_a_shared_store_is_guarded_and_remembered(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other store always answers, and is not asked again for what it has just refused; and it is given the time
    that the policy gives a decision.
    """
    given: list[int] = []

    def open_one(_: object, timeout_ms: int) -> Store:
        given.append(timeout_ms)
        return _Elsewhere()

    monkeypatch.setitem(factory.OPENERS, scheme, open_one)
    store = store_for(Policy((RULE,), store=f"{scheme}://127.0.0.1", decision_timeout_ms=77))

    assert type(store) is RefusalCache
    assert type(store._store) is FallbackStore
    assert [77] == given


class _Elsewhere(Store):
    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        raise NotImplementedError

    async def close(self) -> None: ...


def test_no_such_store() -> None:
    """A policy made in code is held to the same as a file."""
    with pytest.raises(ConfigError, match="does not begin the URL of a store"):
        store_for(Policy((RULE,), store="nosuch://"))


async def test_a_process_starts_without_its_store() -> None:
    """Nobody listens there: the middleware is made, and decides as the rules say, with its share."""
    url = f"redis://127.0.0.1:{free_port()}"
    app = RateLimitMiddleware(application, limit="10/minute", store=url, local_share=0.3)
    answers = [await get(app) for _ in range(4)]

    assert [200, 200, 200, 429] == [answer.status for answer in answers]
    assert ["2", "1", "0", "0"] == [answer.line("x-ratelimit-remaining") for answer in answers]
    await app.limiter.store.close()


async def test_a_store_that_is_handed_in_stays_as_it_is() -> None:
    """Whoever makes a store of his own has it as he made it."""
    store = MemoryStore()

    assert store is RateLimitMiddleware(application, limit="1/minute", store=store).limiter.store


async def test_it_says_who_answered() -> None:
    """With the store and without: the same limiter, another source."""
    hits = hits_of(RULE)
    shared = store_for(Policy((RULE,), store=f"redis://127.0.0.1:{free_port()}"))

    assert LOCAL == (await shared.charge(hits)).source
    assert STORE == (await store_for(Policy((RULE,))).charge(hits)).source
    await shared.close()
