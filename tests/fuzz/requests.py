"""What a client sends: the upstream is told the requests that other readers find in it, each once, or none of it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from ratelimiter.proxy.header_policy import NOT_IN_TRAILERS, PROVENANCE, WRITTEN_ANEW
from tests.fuzz.cuts import pieces, seeds
from tests.fuzz.readers import METHODS, Message, disputed, requests_by_h11, requests_by_llhttp
from tests.proxy.inputs import ROWS, chunked, get, post
from tests.proxy.memory import Bench, new_gate

if TYPE_CHECKING:
    from ratelimiter.sidecar.judge import LimiterJudge

SEEDS = seeds(
    [
        get() + post(b"Content-Length: 1", body=b"x") + chunked(b"3;x=y\r\nabc\r\n0\r\nX-Sum: y\r\n\r\n") + get(b"/z"),
        get(b"/x", b"Connection: keep-alive, upgrade, X", b"Upgrade: websocket", b"X: 1", b"Expect: 100-continue"),
        get(b"http://b.example//y/../x?a=b").replace(b"HTTP/1.1", b"HTTP/1.0"),
        b"\r\n" + get(b"*", method=b"OPTIONS"),
    ]
) + [b"\x00\x00" + row.raw for row in ROWS if len(row.raw) < 1000]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
VISIBLE = b"\t\r\n" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
GATES: list[LimiterJudge] = []  # made when the first one is needed


_LATER = re.compile(rb"(?m)^([A-Z-]+ [!-~]+ HTTP/1\.)[2-9]\r")


async def check(data: bytes) -> None:
    """Raise AssertionError if the upstream is told anything else than what the client said."""
    data = data[:2] + _LATER.sub(
        rb"\g<1>1\r", data[2:]
    )  # which we read as 1.1 (RFC 9110 section 2.5), and the others do not
    raw, parts = pieces(data)
    if not raw:
        return
    forwarded, answers = await exchange(parts)
    told = requests_by_h11(forwarded)
    assert not forwarded.translate(None, VISIBLE) or any(each.body for each in told), "controls are in bodies only"
    assert bool(told) == bool(forwarded), "there is nothing else than requests in it"
    if all(message.start[0] in METHODS for message in told):
        assert outlines(told) == outlines(requests_by_llhttp(forwarded))
    if not disputed(raw):
        said = requests_by_h11(raw)
        _compare(told, said)
        # Of what asks for an upgrade llhttp's binding reads no body. It does not see that behind us: we pass none on.
        if all(each.start[0] in METHODS and not (each.says_length and each.values(b"upgrade")) for each in said):
            _compare(told, requests_by_llhttp(raw))
    whole = await exchange([raw])
    uncut = requests_by_h11(whole[0])
    assert [each.start for each in told] == [each.start for each in uncut], "however it is cut"
    assert [each.told for each in told if each.complete] == [each.told for each in uncut if each.complete]
    assert answers == whole[1]
    if forwarded:
        again, _ = await exchange([forwarded])
        assert _essence(told) == _essence(requests_by_h11(again)), "what is forwarded is forwarded as it is"


async def exchange(parts: list[bytes]) -> tuple[bytes, list[bool]]:
    """What the upstream is sent, when it answers each request as soon as that is complete; and for each answer that the
    client gets whether it is the upstream's, with a last one for whether the connection is kept.
    """
    if not GATES:
        GATES.append(new_gate())
    bench = Bench(gate=GATES[0])
    seen = answered = 0
    try:
        for part in parts:
            if bench.to_client.ended:
                break
            bench.client.data_received(part)
            while seen < len(bench.to_upstream.written):
                seen = len(bench.to_upstream.written)
                if sum(each.complete for each in requests_by_h11(bench.to_upstream.written)) > answered:
                    answered += 1
                    bench.upstream.data_received(ANSWER)
                    await asyncio.sleep(0)  # after some, others have their turn
        statuses = re.findall(rb"^HTTP/1\.1 ([2-5][0-9]{2}) ", bench.to_client.written, re.MULTILINE)
        return bench.to_upstream.written, [*(status == b"200" for status in statuses), not bench.to_client.ended]
    finally:
        bench.close()


def outlines(messages: list[Message]) -> list[Any]:
    """What two readers must agree on of each message."""
    return [message.told for message in messages]


def _essence(messages: list[Message]) -> list[Any]:
    return [
        (each.start, [one for one in each.headers if one[0] not in PROVENANCE], each.body, each.trailers, each.complete)
        for each in messages
    ]


def _compare(told: list[Message], said: list[Message]) -> None:
    assert len(told) <= len(said), "the upstream sees no request that others do not find"
    for ours, theirs in zip(told, said, strict=False):
        assert ours.start[0] == theirs.start[0]
        assert b"1.1" == ours.version
        assert ours.complete <= theirs.complete
        assert ours.body == theirs.body if ours.complete else theirs.body.startswith(ours.body)
        _compare_targets(ours, theirs)
        named = {b""}.union(*[re.split(rb"[ \t]*,[ \t]*", value.lower()) for value in theirs.values(b"connection")])
        passed = [
            header
            for header in theirs.headers
            if header[0] not in WRITTEN_ANEW | (named - {b"close", b"keep-alive", b"upgrade"}) and b"_" not in header[0]
        ]
        assert passed == [header for header in ours.headers if header[0] not in WRITTEN_ANEW]
        assert not ours.complete or ours.trailers == [
            header for header in theirs.trailers if header[0] not in NOT_IN_TRAILERS and b"_" not in header[0]
        ]


def _compare_targets(ours: Message, theirs: Message) -> None:
    """The same path and the same query of the same host."""
    target, sent = ours.start[1], theirs.start[1]
    host = theirs.values(b"host")
    absolute = re.match(rb"[A-Za-z]+://([^/?]*)", sent)
    assert ours.values(b"host") == ([absolute[1]] if absolute else host or [b"app.example:80"])
    if sent == b"*":
        assert b"*" == target
        return
    assert target.startswith(b"/")
    origin = sent if absolute is None else sent[absolute.end() :]
    assert target == (origin if origin.startswith(b"/") else b"/" + origin), "no rule looks at it, so it is as it came"
