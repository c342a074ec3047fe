"""Goal: a head that comes again on its connection means what it would mean to a connection that has never seen it.
Method: the same bytes twice, with a change between that makes a difference, or the same exchanges on new connections.
"""

from __future__ import annotations

import itertools

import pytest

from ratelimiter.core.match import Match
from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Rule
from tests.proxy.memory import Bench

REQUEST = b"GET /v1/items HTTP/1.1\r\nHost: a.example\r\nX-User: me\r\n\r\n"
HEAD = b"HEAD" + REQUEST[3:]
RESPONSE = b"HTTP/1.1 200 OK\r\nX-Plan: gold\r\nContent-Length: 2\r\n\r\n"


async def exchanged(bench: Bench, request: bytes, *response: bytes) -> tuple[bytes, bytes]:
    """What the upstream and what the client get."""
    bench.to_upstream.written = bench.to_client.written = b""
    bench.client.data_received(request)
    for part in response:
        bench.upstream.data_received(part)
    return bench.to_upstream.written, bench.to_client.written


async def test_what_is_ours_to_say_may_change_in_between() -> None:
    """Fields that became ours by a new policy are neither forwarded nor passed back, though their bytes are known."""
    bench = Bench()
    before = await exchanged(bench, REQUEST, RESPONSE + b"ok")
    bench.service.judge.reserved_request = frozenset({b"x-user"})
    bench.service.judge.reserved_response = frozenset({b"x-plan"})
    after = await exchanged(bench, REQUEST, RESPONSE + b"ok")
    bench.close()

    assert b"X-User: me" in before[0]
    assert b"X-Plan: gold" in before[1]
    assert b"X-User" not in after[0]
    assert b"X-Plan" not in after[1]
    assert after[1].endswith(b"\r\n\r\nok")


async def test_whether_paths_matter_may_change_in_between() -> None:
    """A path that readers differ about passes while no rule looks at paths, and is refused once the readings differ."""
    bench = Bench()
    request = REQUEST.replace(b"/v1/items", b"/v1/%2e%2e%2fitems")
    before = await exchanged(bench, request, RESPONSE + b"ok")
    items = Rule("items", Quota(9, 60_000), match=Match(path="/items"))
    bench.service.judge.swap(Policy(rules=(items,)))  # type: ignore[attr-defined]  # it is a limiter's
    after = await exchanged(bench, request)
    bench.close()

    assert before[0].startswith(b"GET /v1/%2e%2e%2fitems ")
    assert b"" == after[0]
    assert after[1].startswith(b"HTTP/1.1 400 ")


@pytest.mark.slow
async def test_known_heads_are_of_no_consequence() -> None:
    """Whatever came before, in one piece or two, to GET or HEAD: an exchange is as it is on new connections."""
    exchanges = [
        (REQUEST, RESPONSE + b"ok"),
        (REQUEST, RESPONSE + b"o", b"k"),
        (REQUEST, RESPONSE, b"no"),
        (HEAD, RESPONSE),
        (REQUEST, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (HEAD, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n"),
    ]
    for three in itertools.product(exchanges, repeat=3):
        known = Bench()
        seen = [await exchanged(known, *each) for each in three]
        known.close()
        for each, (forwarded, passed_back) in zip(three, seen, strict=True):
            fresh = Bench()
            expected = await exchanged(fresh, *each)
            fresh.close()

            assert expected[0] == forwarded
            assert lines(expected[1]) == lines(passed_back)


def lines(message: bytes) -> list[bytes]:
    """*message* less what counts requests."""
    return [line for line in message.split(b"\r\n") if not line.startswith(b"x-ratelimit-re")]
