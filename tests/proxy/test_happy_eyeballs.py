"""Goal: one address that swallows packets costs a moment, not the connection. Method: listeners on loopback addresses
that share a port; of one the queue is full, so that it never answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.proxy.happy_eyeballs import ATTEMPT_DELAY_S, Dialer
from ratelimiter.proxy.pool import Target
from tests.proxy.inputs import get
from tests.proxy.wire import OK, sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWERING, SILENT, REFUSING = "127.0.0.1", "127.0.0.2", "127.0.0.3"
BESIDE = "::1"


@pytest.fixture
def port() -> Iterator[int]:
    """On which the hosts above are what their names say."""
    with contextlib.ExitStack() as stack:
        answering = stack.enter_context(socket.socket())
        answering.bind((ANSWERING, 0))
        answering.listen()
        number = answering.getsockname()[1]
        silent = stack.enter_context(socket.socket())
        silent.bind((SILENT, number))
        silent.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((SILENT, number))
        yield number


def dialer(port: int, *hosts: str) -> Dialer:
    """Of a name that has these addresses."""

    async def resolve(name: str, asked: int, **_: Any) -> list[tuple[Any, ...]]:
        assert ("api.example", port) == (name, asked)
        families = [socket.AF_INET6 if ":" in host else socket.AF_INET for host in hosts]
        rest: list[tuple[Any, ...]] = [(host, port, 0, 0) if ":" in host else (host, port) for host in hosts]
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in zip(families, rest, strict=True)]

    return Dialer("api.example", port, asyncio.get_running_loop(), resolve=resolve)


async def timed(one: Dialer) -> tuple[str, float]:
    """Whom it got, and after how long."""
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    with await one.dial() as made:
        return made.getpeername()[0], loop.time() - begun_s


async def test_the_first_that_answers_is_taken(port: int) -> None:
    """At once."""
    assert ANSWERING == (await timed(dialer(port, ANSWERING, SILENT)))[0]


async def test_silence_costs_a_moment_and_only_once(port: int) -> None:
    """RFC 8305 section 5: the next one is tried beside it; who answered is asked first the next time."""
    one = dialer(port, SILENT, ANSWERING)

    peer, first_s = await timed(one)
    assert ANSWERING == peer
    assert ATTEMPT_DELAY_S * 0.9 <= first_s < 10 * ATTEMPT_DELAY_S
    peer, then_s = await timed(one)
    assert ANSWERING == peer
    assert then_s < ATTEMPT_DELAY_S


async def test_a_refusal_costs_nothing(port: int) -> None:
    """The next one is tried at once, and the first is tried beside it if it is silent."""
    peer, passed_s = await timed(dialer(port, REFUSING, REFUSING, ANSWERING))

    assert ANSWERING == peer
    assert passed_s < ATTEMPT_DELAY_S


async def test_the_families_take_turns(port: int) -> None:
    """Section 4: four silent addresses of one are not tried before the other's first."""
    with socket.socket(socket.AF_INET6) as beside:
        beside.bind((BESIDE, port))
        beside.listen()
        peer, passed_s = await timed(dialer(port, SILENT, "127.0.0.4", "127.0.0.5", ANSWERING, BESIDE))

    assert BESIDE == peer
    assert passed_s < 2 * ATTEMPT_DELAY_S


async def test_none_that_answers(port: int) -> None:
    """What the first one said."""
    with pytest.raises(ConnectionRefusedError):
        await dialer(port, REFUSING, "127.0.0.4").dial()


async def test_giving_up_leaves_nothing_behind(port: int) -> None:
    """Neither tasks nor sockets: pytest would tell of them."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await dialer(port, SILENT, SILENT).dial()
    await asyncio.sleep(0)

    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_addresses_of_a_name_share_the_load() -> None:
    """Requests one after the other reach all three, and a connection has a maximal age."""
    hits: dict[str, int] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                name = writer.get_extra_info("sockname")[0]
                hits[name] = hits.get(name, 0) + 1
                writer.write(OK)
        writer.close()

    addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    first = await asyncio.start_server(answer, addresses[0], 0)
    port = first.sockets[0].getsockname()[1]
    others = [await asyncio.start_server(answer, address, port) for address in addresses[1:]]

    async def resolve(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    async with sidecar(Target("upstream.example", port)) as proxy, proxy.client() as client:
        proxy.service.pool._dialer = Dialer("upstream.example", port, asyncio.get_running_loop(), resolve=resolve)
        for _ in range(30):
            assert 200 == (await client.exchange(get())).status
        assert dict.fromkeys(addresses, 10) == hits
        addresses[:] = ["127.0.0.3"]  # the name points elsewhere
        hits.clear()
        for connection in list(proxy.service.pool._all):
            connection.born_s -= 31  # its maximal age has passed
        for _ in range(9):
            assert 200 == (await client.exchange(get())).status
        assert 6 <= hits["127.0.0.3"]
    for server in (first, *others):
        server.close()
