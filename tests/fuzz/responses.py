"""What an upstream sends: the client gets the response that others find in it, or one that says there is none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ratelimiter.proxy.header_policy import HOP_BY_HOP
from tests.fuzz.cuts import pieces, seeds
from tests.fuzz.readers import Message, disputed, responses_by_h11, responses_by_llhttp
from tests.proxy.inputs import get
from tests.proxy.memory import Bench, new_gate

if TYPE_CHECKING:
    from ratelimiter.sidecar.judge import LimiterJudge

ASKED = [  # the first byte of the input says which; and whether the upstream closes in the end
    get(),
    get(method=b"HEAD"),
    get().replace(b"HTTP/1.1", b"HTTP/1.0"),
    get(b"/x", b"Connection: Upgrade", b"Upgrade: websocket"),
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Sum: y\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive, X\r\nX: y\r\nX_Y: z\r\n\r\nuntil the end",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi",
    b"HTTP/1.1 200 \r\nX:\r\nX-RateLimit-Limit: 5\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]
SEEDS = [b"%c%s" % (asked, seed) for asked in range(8) for seed in seeds(ANSWERS)[asked % 2 :: 2]]
GATES: list[LimiterJudge] = []  # made when the first one is needed
KNOWN = HOP_BY_HOP | {b"content-length"}


async def check(data: bytes) -> None:
    """Raise AssertionError if the client is told anything else than what the upstream said."""
    asked = ASKED[data[0] % 4] if data else ASKED[0]
    ends = bool(data) and data[0] % 8 >= 4
    raw, parts = pieces(data[1:])
    if not raw:
        return
    passed, kept, aborted, ended = exchange(asked, parts, ends=ends)
    method = asked.partition(b" ")[0]
    if b" 101 " in passed[:14]:
        assert b"websocket" in asked
        assert raw.endswith(passed.partition(b"\r\n\r\n")[2]), "what is behind it goes through unread"
        return
    told, surplus = responses_by_h11(passed, method, ended=ended and not aborted)
    assert not surplus, "nothing follows the answer"
    said, behind = responses_by_h11(raw, method, ended=ends)
    if disputed(raw):
        return
    _compare(told, said, asked, broken_off=aborted)
    if kept:
        assert said[-1].complete
        assert not behind, "what came unasked is never taken for the next answer"
        assert said[-1].staying or said[-1].version == b"1.0"  # which h11 never keeps
    # Responses that have no body whatever they say (RFC 9112 section 6.3): whoever uses llhttp must tell it so.
    if method == b"GET" and not any(each.bodiless and each.says_length for each in said):
        _compare(told, responses_by_llhttp(raw, ended=ends), asked, broken_off=aborted)
    whole = exchange(asked, [raw], ends=ends)
    if not aborted and not whole[2]:
        again, _ = responses_by_h11(whole[0], method, ended=whole[3])
        assert [each.outline for each in told] == [each.outline for each in again], "however it is cut"


def exchange(asked: bytes, parts: list[bytes], *, ends: bool) -> tuple[bytes, bool, bool, bool]:
    """What the client is sent; whether the connection to the upstream is kept; and whether the
    client's is broken off, or ended.
    """
    if not GATES:
        GATES.append(new_gate())
    bench = Bench(gate=GATES[0])
    try:
        bench.client.data_received(asked)
        for part in parts:
            if bench.to_upstream.closing:
                break
            bench.upstream.data_received(part)
        if ends and not bench.to_upstream.closing:
            bench.upstream.connection_lost(None)
        passed = bench.to_client.written
        kept = not ends and bench.service.pool.take() is bench.upstream
        return passed, kept, bench.to_client.aborted, bench.to_client.ended
    finally:
        bench.close()


def _compare(told: list[Message], said: list[Message], asked: bytes, *, broken_off: bool) -> None:
    for ours in told:
        if ours.start == (b"502",) and not any(each.start == ours.start for each in said):
            return  # the upstream's was no answer, says ours
    dropped = {b"100"} if b"HTTP/1.1" in asked else {b"%d" % status for status in range(100, 200)}
    for ours, theirs in zip(told, [each for each in said if each.start[0] not in dropped], strict=False):
        assert ours.start == theirs.start
        assert b"1.1" == ours.version
        if ours.complete:
            assert theirs.complete
            assert ours.body == theirs.body
        else:
            assert theirs.body.startswith(ours.body)
        named = {b""}.union(*[re.split(rb"[ \t]*,[ \t]*", value.lower()) for value in theirs.values(b"connection")])
        named -= {b"close", b"keep-alive", b"upgrade"}
        assert [one for one in ours.headers if one[0] not in KNOWN and not ours_to_say(one[0])] == [
            one for one in theirs.headers if one[0] not in named and one[0] not in KNOWN and not ours_to_say(one[0])
        ]
    if told and told[-1].complete:
        assert not broken_off


def ours_to_say(name: bytes) -> bool:
    """Whether the response field *name* is not the upstream's."""
    return name == b"date" or name in GATES[0].reserved_response
