"""Goal: the fuzzer's promises hold for what it starts from, and would not hold of a proxy that reads more loosely."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import pytest

from ratelimiter.proxy import body, head, upstream_connection
from tests.fuzz import bodies, paths, requests, responses
from tests.proxy.inputs import chunked, sized

TARGETS = [requests, responses, bodies, paths]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__.rpartition(".")[2])
async def test_seeds_are_read_alike(target: Any) -> None:
    """Every seed, those of our table of bad inputs among them, keeps the promise."""
    for seed in target.SEEDS:
        await target.check(seed)


async def test_a_loose_length_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign before the length of a request's body: others refuse it."""
    monkeypatch.setattr(head, "_LENGTH", re.compile(rb"\+?[0-9]{1,18}"))

    with pytest.raises(AssertionError):
        await requests.check(b"\x00\x00" + sized(b" +3"))


@pytest.mark.parametrize("target", [requests, bodies])
async def test_a_loose_chunk_is_noticed(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension of a chunk that is not named by a token, which is how the proxy once read: some refuse it."""
    monkeypatch.setattr(body, "_SIZE", re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?"))
    content = b"3;x/y\r\nabc\r\n0\r\n\r\n"

    with pytest.raises(AssertionError):
        await target.check(b"\x00\x00" + (chunked(content) if target is requests else content))


async def test_a_short_response_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte less than the upstream sent."""

    def short(*args: Any) -> head.ResponseHead:
        response = head.parse_response(*args)
        response.length = response.length and response.length - 1
        return response

    monkeypatch.setattr(upstream_connection, "parse_response", short)

    with pytest.raises(AssertionError):
        await responses.check(responses.SEEDS[0])


async def test_a_loose_path_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded too late: dot segments are left."""
    monkeypatch.setattr(paths, "canonical_path", lambda target: unquote(target.decode()))

    with pytest.raises(AssertionError):
        await paths.check(b"/x/%2e%2e/y")
