"""Goal: how bytes are cut into packets means nothing. Method: every cut of one message in two, and every byte by
itself, without sockets, compared with the message in one piece.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proxy.inputs import chunked, get, post
from tests.proxy.memory import Bench

REQUESTS = [
    get(b"/x?y", b"X: y", b"Connection: close, X-Z", b"X-Z: 1"),
    b"\r\n\r\n" + get(),
    post(b"Content-Length: 5", body=b"hello"),
    chunked(b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Sum: y\r\n\r\n"),
    get() + post(b"Content-Length: 1", body=b"x") + get(b"/z"),
]
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Sum: y\r\n\r\n",
]
REFUSED = [
    get(b"/x", b"X: a\r\n b"),
    chunked(b"3\r\nabcd"),
    chunked(b"3\nabc"),
    b"GET /x\r\n\r\n",
    post(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    b"get / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"\r\n\r\n\r\n" + get(),
]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
COMPLETE = re.compile(rb"GET [^ ]+ HTTP/1.1\r\n.*?\r\n\r\n|POST [^ ]+ HTTP/1.1\r\n.*?\r\n\r\nx", re.DOTALL)
VARYING = re.compile(rb"x-ratelimit-\w+: \d+\r\n|date: [^\r]+\r\n")


def requested(*parts: bytes) -> bytes:
    """What the upstream is sent, when it answers each request as soon as that is complete."""
    bench = Bench()
    answered = 0
    try:
        for part in parts:
            bench.client.data_received(part)
            while answered < len(heads := COMPLETE.findall(bench.to_upstream.written)):
                answered += 1
                bench.upstream.data_received(ANSWER)
        assert answered == len(heads)
        return bench.to_upstream.written
    finally:
        bench.close()


def forwarded(*parts: bytes) -> bytes:
    """What the upstream is sent for one request, which is not answered."""
    bench = Bench()
    try:
        for part in parts:
            bench.client.data_received(part)
        return unchunked(bench.to_upstream.written)
    finally:
        bench.close()


def passed_back(*parts: bytes) -> tuple[bytes, bool]:
    """What the client is sent for a response, and whether the connection it came over is kept."""
    bench = Bench()
    try:
        bench.client.data_received(get())
        for part in parts:
            bench.upstream.data_received(part)
        return unchunked(VARYING.sub(b"", bench.to_client.written)), bench.service.pool.take() is bench.upstream
    finally:
        bench.close()


def unchunked(message: bytes) -> bytes:
    """*message* with its chunks made one, so that it does not matter how many they were."""
    head, _, rest = message.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return message
    content = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return head + b"\r\n\r\n" + content + b"|" + rest
        content, rest = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return head + b"\r\n\r\n" + content


def cuts(message: bytes) -> list[list[bytes]]:
    """*message* cut in two everywhere, and in bytes."""
    return [[message[:at], message[at:]] for at in range(1, len(message))] + [[bytes([byte]) for byte in message]]


@pytest.mark.parametrize("raw", REQUESTS[:4])
async def test_requests_may_be_cut_anywhere(raw: bytes) -> None:
    """The upstream sees the same."""
    whole = forwarded(raw)

    assert whole
    assert [whole] * len(raw) == [forwarded(*parts) for parts in cuts(raw)]


async def test_pipelined_requests_may_be_cut_anywhere() -> None:
    """Each is forwarded once, when the one before it has been answered."""
    raw = REQUESTS[4]
    whole = requested(raw)

    assert 3 == whole.count(b" HTTP/1.1\r\n")
    assert [whole] * len(raw) == [requested(*parts) for parts in cuts(raw)]


@pytest.mark.parametrize("raw", RESPONSES)
async def test_responses_may_be_cut_anywhere(raw: bytes) -> None:
    """The client sees the same, and the connection is kept."""
    whole, kept = passed_back(raw)

    assert kept
    assert [(whole, True)] * len(raw) == [passed_back(*parts) for parts in cuts(raw)]


@pytest.mark.parametrize("raw", REFUSED)
async def test_what_is_refused_is_refused_however_it_is_cut(raw: bytes) -> None:
    """With the same status, and the connection's end."""
    for parts in [[raw], *cuts(raw)]:
        bench = Bench()
        try:
            for part in parts:
                bench.client.data_received(part)
            assert re.match(rb"HTTP/1.1 400 [^\n]+\n", bench.to_client.written), parts
            assert b"Connection: close" in bench.to_client.written
            assert bench.to_client.ended
        finally:
            bench.close()


@given(
    noise=st.binary(max_size=200),
    start=st.sampled_from([b"", b"GET ", b"GET / HTTP/1.1\r\n", REQUESTS[0], REQUESTS[3][:60]]),
)
async def test_noise_never_raises(noise: bytes, start: bytes) -> None:
    """Whatever comes, it is answered, waited for or refused; nothing is raised."""
    bench = Bench()
    try:
        bench.client.data_received(start + noise or b"x")
    finally:
        bench.close()


@given(
    noise=st.binary(min_size=1, max_size=200), start=st.sampled_from([b"", b"HTTP/1.1 ", *[r[:50] for r in RESPONSES]])
)
async def test_noise_of_the_upstream_never_raises(noise: bytes, start: bytes) -> None:
    """Nor does what an upstream sends; what is made of it has no bare line end in its head."""
    bench = Bench()
    try:
        bench.client.data_received(get())
        bench.upstream.data_received(start + noise)
        head = bench.to_client.written.partition(b"\r\n\r\n")[0]
        assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", head)
    finally:
        bench.close()
