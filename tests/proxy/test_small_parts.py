"""Addresses, bounds, and coroutines without tasks."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Any

import pytest

from ratelimiter.errors import ConfigError
from ratelimiter.proxy.addresses import Listen, parse_listen, parse_upstream
from ratelimiter.proxy.eager import run
from ratelimiter.proxy.settings import CHOICES, ProxySettings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8080", Listen("127.0.0.1", 8080)),
        ("[::1]:0", Listen("::1", 0)),
        (":8080", Listen("", 8080)),
        ("localhost:80", Listen("localhost", 80)),
        ("unix:/run/x.sock", Listen(path="/run/x.sock")),
    ],
)
def test_listening(text: str, expected: Listen) -> None:
    """Hosts with ports, and files."""
    assert expected == parse_listen(text)


@pytest.mark.parametrize("text", ["", "8080", "a", "a:b", "::1:80", "a:65536", "a:-1", "unix:", "a:٣"])
def test_not_listening(text: str) -> None:
    """Anything else."""
    with pytest.raises(ConfigError, match=r"--listen: .* is not HOST:PORT"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://127.0.0.1:8000", b"127.0.0.1:8000"),
        ("http://app.example/", b"app.example:80"),
        ("https://app.example", b"app.example:443"),
        ("http://[::1]:8000", b"[::1]:8000"),
        ("unix:/run/app.sock", b"localhost"),
    ],
)
def test_upstreams(url: str, authority: bytes) -> None:
    """Where it is, and what it is called by clients that do not say."""
    target = parse_upstream(url)

    assert authority == target.authority
    assert url.startswith("https") == (target.tls is not None)


@pytest.mark.parametrize(
    "url", ["", "app", "http://", "http://a:b", "http://a:0", "http://a:70000", "unix:", "http://[::1"]
)
def test_no_upstreams(url: str) -> None:
    """Anything else."""
    with pytest.raises(ConfigError, match="--upstream"):
        parse_upstream(url)


NO_NUMBERS = {"proxy_protocol", "upstream_timeouts"}


@pytest.mark.parametrize("name", [f.name for f in fields(ProxySettings) if f.name not in NO_NUMBERS])
def test_bounds(name: str) -> None:
    """Each number has a least value, and each choice its words."""
    values: dict[str, Any] = {name: -1}
    told = "must be one of" if name in CHOICES else "must be at least [01]"
    with pytest.raises(ValueError, match=f"{name} {told}.*, not -1"):
        ProxySettings(**values)


async def test_a_coroutine_that_waits_for_nothing() -> None:
    """Has its result before `run` returns."""

    async def answer() -> int:
        return 42

    settled: list[object] = []
    run(answer(), settled.append)

    assert [42] == settled


async def test_a_coroutine_that_waits() -> None:
    """For futures, tasks, other coroutines and the next turn of the loop."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()
    settled: list[object] = []

    async def inner() -> int:
        await asyncio.sleep(0)
        return await asyncio.ensure_future(asyncio.sleep(0, 1)) + await future

    def settle(result: object) -> None:
        settled.append(result)
        done.set()

    run(inner(), settle)
    assert [] == settled
    future.set_result(41)
    await done.wait()

    assert [42] == settled


@pytest.mark.parametrize("error", [RuntimeError("x"), asyncio.CancelledError()])
async def test_a_coroutine_that_fails(error: BaseException) -> None:
    """Settles with what it raised, at once or later."""
    for wait in (False, True):
        done = asyncio.Event()
        settled: list[object] = []

        async def fail(wait: bool = wait) -> None:
            if wait:
                await asyncio.sleep(0)
            raise error

        def settle(result: object, settled: list[object] = settled, done: asyncio.Event = done) -> None:
            settled.append(result)
            done.set()

        run(fail(), settle)
        await done.wait()
        assert [error] == settled
