"""One store and several event loops, one after the other: what an application's tests do."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import TYPE_CHECKING

import pytest
import uvloop

from ratelimiter.stores.factory import open_store
from tests.reference_store import hits_of, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stores.redis_server import RedisServer

PATIENT_MS = 5000


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("commands", [0, 1], ids=["charges", "charges and overrides"])
def test_a_loop_ends_without_an_open_connection(
    redis_server: RedisServer, new_loop: Callable[[], asyncio.AbstractEventLoop], commands: int
) -> None:
    """A store that nobody closes leaves nothing open when its event loop ends, and goes on in the next one."""
    store = open_store(redis_server.url, timeout_ms=PATIENT_MS)

    async def use() -> bool:
        for _ in range(commands):
            await store.command(b"k", "HGET", "k", "version")  # type: ignore[attr-defined]
        return (await store.charge(hits_of(rule_of(100, 60_000), principal="loops"))).admitted

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                assert runner.run(use())
        gc.collect()

    assert [] == [str(warning.message) for warning in caught]
    with redis_server.client() as client:
        assert 1 == len(client.client_list()), "no connection but this one"


def test_a_store_that_is_closed_leaves_nothing_to_the_loop(redis_server: RedisServer) -> None:
    """A closed store may be used again, and closed again, and the event loop ends after it without a word."""
    store = open_store(redis_server.url, timeout_ms=PATIENT_MS)

    async def use() -> None:
        for _ in range(2):
            assert (await store.charge(hits_of(rule_of(100, 60_000), principal="closing"))).admitted
            await store.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(use())
        gc.collect()

    assert [] == [str(warning.message) for warning in caught]
