"""Goal: what HTTP/2 has been attacked with costs the attacker the connection. Method: each attack, frame by frame."""

from __future__ import annotations

import asyncio

import pytest

from ratelimiter.service.grpc import connection as subject
from ratelimiter.service.grpc import frames, hpack
from ratelimiter.service.grpc.calls import Status, prefixed
from ratelimiter.service.grpc.frames import ErrorCode, Setting
from ratelimiter.service.grpc.glitches import BURST, PER_S, GlitchBudget
from tests.service.http2_peer import ECHO, WAIT, Peer

CALM = ErrorCode.ENHANCE_YOUR_CALM
END = frames.END_HEADERS | frames.END_STREAM


@pytest.fixture
async def peer() -> Peer:
    """A connection that has begun."""
    peer = Peer()
    peer.open()
    peer.written()
    return peer


FLOODS = {
    "settings (CVE-2019-9515)": frames.settings({Setting.INITIAL_WINDOW_SIZE: 65_535}),
    "empty settings": frames.settings({}),
    "ping (CVE-2019-9512)": frames.frame(frames.PING, 0, 0, bytes(8)),
    "window updates": frames.window_update(0, 1),
    "priority": frames.frame(frames.PRIORITY, 0, 99, b"\0\0\0\1\0"),
    "unknown frames": frames.frame(0x21, 0, 0, b"?"),
    "goaway": frames.goaway(0, ErrorCode.NO_ERROR),
}


@pytest.mark.parametrize("attack", FLOODS)
async def test_a_flood_ends_the_connection(peer: Peer, attack: str) -> None:
    """A thousand frames that bring no request further are borne, twice as many are not."""
    for _ in range(2 * BURST):
        peer.feed(FLOODS[attack])

    assert CALM is peer.ends()
    assert peer.transport.closed


@pytest.mark.parametrize("asked", [False, True], ids=["unfinished", "asked"])
async def test_rapid_reset(peer: Peer, asked: bool) -> None:
    """Requests that are reset at once (CVE-2023-44487) end the connection; no more are worked on than may be open."""
    for stream in range(1, 4 * BURST, 2):
        data = frames.frame(frames.DATA, frames.END_STREAM, stream, prefixed(b"")) if asked else b""
        peer.feed(peer.headers(stream, WAIT), data, frames.reset(stream, ErrorCode.CANCEL))

    assert CALM is peer.ends()
    assert len(peer.held) <= subject.STREAMS_MAX


async def test_what_was_reset_counts_until_it_is_done(peer: Peer) -> None:
    """A client cannot have more worked on at a time by giving up what it asked for."""
    for stream in range(1, 2 * subject.STREAMS_MAX + 1, 2):
        peer.feed(peer.headers(stream, WAIT), frames.frame(frames.DATA, 1, stream, prefixed(b"")))
    peer.written()
    peer.feed(frames.reset(1, ErrorCode.CANCEL))

    peer.feed(peer.headers(2 * subject.STREAMS_MAX + 1, WAIT))
    assert [(2 * subject.STREAMS_MAX + 1, ErrorCode.REFUSED_STREAM)] == peer.resets()
    peer.held[0].set_result(b"")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    last = 2 * subject.STREAMS_MAX + 3
    peer.feed(peer.headers(last, ECHO), frames.frame(frames.DATA, 1, last, prefixed(b"")))

    assert [] == peer.resets()
    assert (ECHO, Status.OK) == peer.told[-1]


async def test_resets_that_are_provoked_count_as_well(peer: Peer) -> None:
    """A client that has the server reset its streams (CVE-2025-8671) is one that resets them."""
    for stream in range(1, 4 * BURST, 2):
        peer.feed(peer.headers(stream, WAIT), frames.window_update(stream, 0))

    assert CALM is peer.ends()


@pytest.mark.parametrize("part", [b"", b"x" * 10], ids=["empty", "small"])
async def test_a_continuation_flood(peer: Peer, part: bytes) -> None:
    """A header block in ever more frames (CVE-2024-27316) ends the connection after a few."""
    peer.feed(frames.frame(frames.HEADERS, 0, 1, b""))
    sent = 0
    while not peer.transport.closed and sent < 1000:
        sent += 1
        peer.feed(frames.frame(frames.CONTINUATION, 0, 1, part))

    assert CALM is peer.ends()
    assert sent <= subject.CONTINUATIONS_MAX + 1


async def test_a_header_block_without_end(peer: Peer) -> None:
    """A header block is held up to 64 KiB and no further."""
    part = b"\0" * frames.FRAME_BYTES
    peer.feed(frames.frame(frames.HEADERS, 0, 1, part))
    for _ in range(subject.BLOCK_BYTES_MAX // len(part)):
        peer.feed(frames.frame(frames.CONTINUATION, 0, 1, part))

    assert CALM is peer.ends()


async def test_a_header_bomb_is_answered_431(peer: Peer) -> None:
    """Indices that unfold to megabytes cost one request, not the memory (CVE-2016-6581); the connection goes on."""
    head = hpack.encode([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/")])
    entry = b"\x40\x01a" + hpack._number(4000, 0x7F, 0) + b"v" * 4000
    peer.feed(frames.frame(frames.HEADERS, END, 1, head + entry))
    peer.written()
    peer.feed(frames.frame(frames.HEADERS, END, 3, head + b"\xbe" * 10_000))
    heads = [payload for kind, _, stream, payload in peer.written() if kind == frames.HEADERS and stream == 3]
    assert (b":status", b"431") == (hpack.Decoder(list_bytes_max=9999).decode(heads[0]) or [])[0]

    peer.feed(peer.headers(5), frames.frame(frames.DATA, 1, 5, prefixed(b"")))

    assert (ECHO, Status.OK) == peer.told[-1]


async def test_content_by_the_byte(peer: Peer) -> None:
    """DATA frames of nothing, or of a byte (CVE-2019-9518), are a flood."""
    peer.feed(peer.headers(1))
    for _ in range(2 * BURST):
        peer.feed(frames.frame(frames.DATA, 0, 1, b""))

    assert CALM is peer.ends()


async def test_padding_beyond_the_frame(peer: Peer) -> None:
    """Padding that is longer than its frame ends the connection, as section 6.1 wants."""
    peer.feed(peer.headers(1), frames.frame(frames.DATA, frames.PADDED, 1, b"\xff"))

    assert ErrorCode.PROTOCOL_ERROR is peer.ends()


async def test_a_peer_that_does_not_read_is_not_read_from(peer: Peer) -> None:
    """Acknowledgements that pile up stop the reading (CVE-2019-9517), and after a while the connection."""
    peer.connection.pause_writing()
    assert peer.transport.paused
    peer.connection.resume_writing()
    assert not peer.transport.paused

    peer.connection.pause_writing()
    peer.connection.tick(peer.loop.time() + subject.SEND_TIMEOUT_S + 1)

    assert peer.transport.aborted


async def test_a_window_of_nothing(peer: Peer) -> None:
    """Responses that nobody takes (CVE-2019-9511) are given up, and count as open until then."""
    peer.feed(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    for stream in range(1, 2 * subject.STREAMS_MAX + 1, 2):
        peer.feed(peer.headers(stream), frames.frame(frames.DATA, 1, stream, prefixed(b"x")))
    peer.feed(peer.headers(2 * subject.STREAMS_MAX + 1))
    assert [(2 * subject.STREAMS_MAX + 1, ErrorCode.REFUSED_STREAM)] == peer.resets()

    peer.connection.tick(peer.loop.time() + subject.SEND_TIMEOUT_S + 1)
    await asyncio.sleep(0)

    assert (1, ErrorCode.CANCEL) in peer.resets()


async def test_windows_that_overflow(peer: Peer) -> None:
    """A window beyond 2^31 - 1 ends the stream, or the connection whose it is (section 6.9.1)."""
    peer.feed(peer.headers(1), frames.window_update(1, 2**31 - 1))
    assert [(1, ErrorCode.FLOW_CONTROL_ERROR)] == peer.resets()

    peer.feed(frames.window_update(0, 2**31 - 1))

    assert ErrorCode.FLOW_CONTROL_ERROR is peer.ends()


async def test_more_than_the_window_allows(peer: Peer) -> None:
    """Requests beyond the window of the connection, which bounds what we hold of a client, end it."""
    part = frames.frame(frames.DATA, 0, 1, b"\0" * frames.FRAME_BYTES)
    for stream in range(1, 2 * 5, 2):
        peer.feed(peer.headers(stream))
        for _ in range(subject.BODY_BYTES_MAX // frames.FRAME_BYTES):
            peer.feed(part[:5] + stream.to_bytes(4, "big") + part[9:])

    assert ErrorCode.FLOW_CONTROL_ERROR is peer.ends()


async def test_frames_that_are_too_large(peer: Peer) -> None:
    """A frame above 16 KiB is refused by its head, before any of it is kept."""
    peer.feed(b"\x00\x40\x01\x00\x00\x00\x00\x00\x01")

    assert ErrorCode.FRAME_SIZE_ERROR is peer.ends()


def test_time_and_business_forgive() -> None:
    """A glitch now and then is borne for ever, and so are a few with each call."""
    slow, busy = GlitchBudget(0.0), GlitchBudget(0.0)

    for glitch in range(20 * BURST):
        slow.spend(glitch / PER_S)
        busy.spend(0.0)
        busy.answered()
    for _ in range(BURST):
        busy.spend(0.0)
    with pytest.raises(frames.ConnectionFault):
        busy.spend(0.0)
