"""One store and several event loops, one after the other: what an application's tests do."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import TYPE_CHECKING

import pytest
import uvloop

from ratelimiter.errors import StoreError, StoreUnavailable
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


class _Gone(asyncio.Transport):
    """A transport that uvloop has closed: writing raises a RuntimeError before anybody was told."""

    def write(self, data: object) -> None:
        msg = "unable to perform operation on <TCPTransport closed=True>; the handler is closed"
        raise RuntimeError(msg)

    def abort(self) -> None:
        self.write(b"")


async def test_a_transport_that_was_closed_under_us(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that are killed in a storm fail their requests as broken ones do; no error of the event loop escapes,
    and the next request has a connection of its own.
    """
    store = open_store(redis_server.url, timeout_ms=PATIENT_MS)
    try:
        await store.charge(hits_of(rule_of(100, 60_000), principal="storm"))
        connection = store._node._connection  # type: ignore[attr-defined]
        live, connection._transport = connection._transport, _Gone()
        answers = await asyncio.gather(
            *[store.charge(hits_of(rule_of(100, 60_000), principal=f"storm{n}")) for n in range(300)],
            return_exceptions=True,
        )
        live.abort()
        broken = [answer for answer in answers if isinstance(answer, StoreUnavailable)]

        assert broken
        assert not [answer for answer in answers if isinstance(answer, Exception) and answer not in broken]
        assert (await store.charge(hits_of(rule_of(100, 60_000), principal="storm"))).admitted
        assert "" == caplog.text
    finally:
        await store.close()


async def test_a_storm_of_kills(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """While every connection is killed again and again, each request gets a receipt or a StoreError, and no traceback
    is logged.
    """
    store = open_store(redis_server.url, timeout_ms=PATIENT_MS)

    async def storm() -> None:
        for _ in range(60):
            await asyncio.to_thread(kill)

    def kill() -> None:
        with redis_server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    storming = asyncio.create_task(storm())
    failures: list[BaseException] = []
    while not storming.done():
        answers = await asyncio.gather(
            *[store.charge(hits_of(rule_of(10**6, 60_000), principal="storm")) for _ in range(20)],
            return_exceptions=True,
        )
        failures += [answer for answer in answers if isinstance(answer, BaseException)]
    await store.close()

    assert not [failure for failure in failures if not isinstance(failure, StoreError)]
    assert "Traceback" not in caplog.text
