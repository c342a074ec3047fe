"""Bodies out of their framing, whatever the packets."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.proxy.body import BodyError, ChunkedBody, SizedBody, chunk, last_chunk

contents = st.lists(st.binary(min_size=1, max_size=20), max_size=5)


def fed(body: SizedBody | ChunkedBody, data: bytes, cuts: list[int]) -> bytes:
    """The content that *body* finds in *data*, fed in parts."""
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    out = b""
    for begin, end in itertools.pairwise(places):
        if body.done:
            return out
        out += body.feed(data[begin:end])
        if body.done:
            body.rest += data[end:]
    return out


@given(pieces=contents, cuts=st.lists(st.integers(0, 200), max_size=10), rest=st.binary(max_size=5))
def test_chunks_come_out_as_they_went_in(pieces: list[bytes], cuts: list[int], rest: bytes) -> None:
    """With their trailers, and what stands behind them untouched."""
    wire = b"".join(map(chunk, pieces)) + last_chunk([b"X: y"]) + rest
    body = ChunkedBody()

    assert b"".join(pieces) == fed(body, wire, cuts)
    assert (True, [b"X: y"], rest) == (body.done, body.trailers, body.rest)


@given(content=st.binary(max_size=50), cuts=st.lists(st.integers(0, 60), max_size=10), rest=st.binary(max_size=5))
def test_a_length_is_counted(content: bytes, cuts: list[int], rest: bytes) -> None:
    """To the byte."""
    body = SizedBody(len(content))

    assert content == fed(body, content + rest, cuts)
    assert body.done
    assert not content or rest == body.rest


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_noise_is_refused_or_waited_for(data: bytes, cuts: list[int]) -> None:
    """And however it is cut, in the same way."""

    def outcome(places: list[int]) -> object:
        body = ChunkedBody()
        try:
            return fed(body, b"3\r\nabc\r\n" + data, places), body.done, body.trailers
        except BodyError:
            return None

    assert outcome([]) == outcome(cuts)


@pytest.mark.parametrize(
    "raw",
    [
        b"3 \r\nabc\r\n", b"3;\x00\r\n", b"3;\x7f\r\n", b"G\r\n", b"\r\n", b"0\r\n bad: x\r\n", b"0\r\nbad\r\n",
        b"0\r\nX: \x00\r\n", b"1" * 16 + b"\r\n", b"1;" + b"x" * 300, b"0\r\n" + b"X: y\r\n" * 2000,
        b"3;\r\n", b"3;x=\r\n", b"3;=y\r\n", b"3;x/y\r\n", b"3;x y\r\n", b"3 \r\n", b"3;x=y;\r\n", b"3;x=\"y\r\n",
        b"3;x=\"y\"z\r\n", b"3;x=\"\\\"\r\n", b"3;\xff\r\n",
        b"0\r\nX: " + b"y" * 9000, b"3\r\nabcX", b"3\r\nabc\rX", b"3\r\r\nabc",
    ],
)  # fmt: skip
def test_broken_chunks(raw: bytes) -> None:
    """Are never guessed at."""
    with pytest.raises(BodyError):
        ChunkedBody().feed(raw)


@pytest.mark.parametrize("extensions", [b";x", b";x;y=z", b';x="y z";z', b';x="\xc3\xa9\\""', b';x=""'])
def test_chunk_extensions(extensions: bytes) -> None:
    """As RFC 9112 section 7.1.1 writes them, less the white space; they are dropped."""
    body = ChunkedBody()

    assert b"abc" == body.feed(b"3%s\r\nabc\r\n0%s\r\n\r\n" % (extensions, extensions))
    assert body.done
