"""Goal: HTTP/2 that every peer can rely on. Method: h2 as the client, and frames by hand that h2 would not send."""

from __future__ import annotations

import asyncio

import h2.errors
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimiter.service.grpc import connection as subject
from ratelimiter.service.grpc import frames, hpack
from ratelimiter.service.grpc.calls import Status, prefixed
from ratelimiter.service.grpc.frames import ErrorCode
from tests.service.http2_peer import BREAK, ECHO, FAIL, WAIT, YIELD, H2Client, Peer

FRAMES = st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40))
END = frames.END_HEADERS | frames.END_STREAM


async def test_a_call_is_answered() -> None:
    """Head, message and trailers of a unary call come back, and h2 finds no fault with any frame."""
    client = H2Client(Peer())
    stream = client.call(ECHO, prefixed(b"hello"))

    client.turn()

    assert prefixed(b"hello") == client.body(stream)
    assert {"grpc-status": "0"} == client.trailers(stream)
    assert any(isinstance(event, h2.events.StreamEnded) for event in client.events)


async def test_a_failed_call_is_told_as_grpc_does() -> None:
    """A status with its message is percent-encoded in one HEADERS frame that ends the stream."""
    client = H2Client(Peer())
    stream = client.call(FAIL, prefixed(b""))

    client.turn()

    assert "14" == client.trailers(stream)["grpc-status"]
    assert "100 %25 of %E2%80%9Cstores%E2%80%9D are out%0A" == client.trailers(stream)["grpc-message"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=400), st.booleans()), min_size=1, max_size=6), st.data())
def test_it_makes_no_difference_how_bytes_arrive(calls: list[tuple[bytes, bool]], data: st.DataObject) -> None:
    """Cut at any places, with padding or without, the same calls have the same answers."""

    async def answered() -> None:
        client = H2Client(Peer())
        for message, padded in calls:
            stream = client.call(ECHO, b"", end=False)
            client.h2.send_data(stream, prefixed(message), end_stream=True, pad_length=7 if padded else None)
        sent = client.h2.data_to_send()
        cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=30), label="cuts"))
        client.turn([sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)])
        assert [prefixed(message) for message, _ in calls] == [client.body(2 * n + 1) for n in range(len(calls))]

    asyncio.run(answered())


@settings(max_examples=80, deadline=None)
@given(st.lists(FRAMES, max_size=12))
def test_nonsense_neither_fails_nor_stays(sent: list[tuple[int, int, int, bytes]]) -> None:
    """Whatever frames come, the connection answers, resets or closes, and never with an error of its own making."""

    async def fed() -> None:
        peer = Peer()
        peer.open()
        for kind, flags, stream, payload in sent:
            peer.feed(frames.frame(kind, flags, stream, payload))
        assert peer.ends() is not ErrorCode.INTERNAL_ERROR

    asyncio.run(fed())


async def test_a_response_waits_for_room() -> None:
    """With windows of 10 bytes a message goes out in pieces, each when there is room; others are not held up."""
    client = H2Client(Peer())
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    slow, message = client.call(ECHO, prefixed(b"x" * 25)), prefixed(b"x" * 25)
    quick = client.call(ECHO, prefixed(b"12345"))

    client.turn()
    assert (message[:10], prefixed(b"12345")) == (client.body(slow), client.body(quick))
    client.h2.increment_flow_control_window(15, slow)
    client.turn()
    assert message[:25] == client.body(slow)
    assert {} == client.trailers(slow) or "grpc-status" not in client.trailers(slow)
    client.h2.increment_flow_control_window(100, slow)
    client.turn()

    assert message == client.body(slow)
    assert "0" == client.trailers(slow)["grpc-status"]


async def test_a_window_may_fall_below_zero() -> None:
    """A client that takes room back gets nothing more until it has given more than it took (section 6.9.2)."""
    peer = Peer()
    peer.open((frames.Setting.INITIAL_WINDOW_SIZE, 10))
    peer.feed(peer.headers(1), frames.frame(frames.DATA, frames.END_STREAM, 1, prefixed(b"x" * 20)))
    peer.written()

    peer.feed(frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 4}), frames.window_update(1, 6))
    assert [] == [each for each in peer.written() if each[0] == frames.DATA]
    peer.feed(frames.window_update(1, 15))

    assert [b"x" * 15] == [payload for kind, _, _, payload in peer.written() if kind == frames.DATA]


async def test_a_smaller_table_is_acknowledged() -> None:
    """A client that keeps no header table is told so by the next block, as RFC 7541 section 4.2 wants."""
    client = H2Client(Peer())
    client.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    client.turn()
    streams = [client.call(ECHO, prefixed(b"a")), client.call(ECHO, prefixed(b"b"))]

    client.turn()

    assert ["0", "0"] == [client.trailers(stream)["grpc-status"] for stream in streams]


async def test_room_for_requests_is_given_back() -> None:
    """A connection carries more than its window over time: h2 would stall, or complain of a window never given."""
    client = H2Client(Peer())
    message = prefixed(b"m" * 15_000)

    for _ in range(2 * subject.CONNECTION_WINDOW // len(message)):
        stream = client.call(ECHO, message)
        client.turn()
        assert message == client.body(stream)
        client.h2.acknowledge_received_data(len(message), stream)
        client.events.clear()


async def test_a_message_that_is_too_large_is_refused_before_it_is_there() -> None:
    """The answer comes with the first byte too many; what follows of it is ignored, and other calls go on."""
    peer = Peer()
    peer.open()
    chunk = b"\0" * frames.FRAME_BYTES
    peer.feed(
        peer.headers(1), *(frames.frame(frames.DATA, 0, 1, chunk) for _ in range(subject.BODY_BYTES_MAX // len(chunk)))
    )
    assert [] == peer.resets()

    peer.feed(frames.frame(frames.DATA, 0, 1, b"\0" * 300))
    written = peer.written()
    peer.feed(
        frames.frame(frames.DATA, frames.END_STREAM, 1, b"late"), peer.headers(3), frames.frame(0, 1, 3, prefixed(b""))
    )

    assert [(frames.HEADERS, 1), (frames.RST_STREAM, 1)] == [(kind, stream) for kind, _, stream, _ in written if stream]
    assert (ECHO, Status.OK) == peer.told[-1]


async def test_a_head_is_remembered_only_as_long_as_it_means_the_same() -> None:
    """Two blocks of equal bytes are different calls if the table moved between them."""
    peer = Peer()
    peer.open()
    for stream, value in ((1, "first"), (3, "first"), (5, "second"), (7, "second")):
        peer.feed(peer.headers(stream, ECHO, ("x-turn", value)), frames.frame(0, 1, stream, prefixed(b"")))

    assert ["first", "first", "second", "second"] == [dict(call.headers)[b"x-turn"].decode() for call in peer.calls]


async def test_a_method_may_step_aside(caplog: pytest.LogCaptureFixture) -> None:
    """A method that yields to the event loop is taken up again; one that breaks fails its own call, and no other."""
    client = H2Client(Peer())
    streams = [client.call(path, prefixed(b"a")) for path in (YIELD, BREAK, ECHO)]
    client.turn()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    client.turn()

    assert ["0", "13", "0"] == [client.trailers(stream)["grpc-status"] for stream in streams]
    assert "a call of /test.Echo/Break fails" in caplog.text


async def test_a_call_that_is_given_up_is_not_answered() -> None:
    """After a reset nothing is sent of the answer, and the place of the call is free once the answer is there."""
    peer = Peer()
    peer.open()
    peer.feed(peer.headers(1, WAIT), frames.frame(0, 1, 1, prefixed(b"")), frames.reset(1, ErrorCode.CANCEL))
    peer.written()

    peer.held[0].set_result(b"too late")
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert [] == peer.written()
    assert 0 == peer.connection._orphans


async def test_draining_finishes_what_was_begun() -> None:
    """Two GOAWAYs: calls between them are answered, calls behind them are left to another server, and when the last is
    answered the connection closes. By hand, as h2 takes no frame behind a GOAWAY.
    """
    peer = Peer()
    peer.open()
    data = {stream: frames.frame(frames.DATA, 1, stream, prefixed(b"")) for stream in (1, 3, 5)}
    peer.feed(peer.headers(1, WAIT), data[1])
    peer.connection.drain()
    await asyncio.sleep(0)
    goaway, ping = peer.written()[-2:]
    assert (frames.GOAWAY, 2**31 - 1) == (goaway[0], int.from_bytes(goaway[3][:4], "big"))

    peer.feed(peer.headers(3, WAIT), data[3], frames.frame(frames.PING, frames.ACK, 0, ping[3]))
    peer.feed(peer.headers(5, WAIT), data[5])
    goaway = next(each for each in peer.written() if each[0] == frames.GOAWAY)
    assert 3 == int.from_bytes(goaway[3][:4], "big")
    for future in peer.held:
        assert not peer.transport.closed
        future.set_result(b"done")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert peer.transport.closed
    assert [1, 3] == [stream for kind, _, stream, _ in peer.written() if kind == frames.DATA]


async def test_draining_waits_not_for_ever_for_the_ping() -> None:
    """A client that answers no PING is left after a while."""
    peer = Peer()
    peer.open()
    peer.connection.drain()
    peer.connection.tick(peer.loop.time() + subject.DRAIN_TIMEOUT_S + 1)
    await asyncio.sleep(0)

    assert peer.transport.closed


async def test_an_idle_connection_is_drained_and_a_stuck_one_closed() -> None:
    """The deadlines of a connection: to begin, to end a frame, to send a request, to rest."""
    now_s = asyncio.get_running_loop().time()
    silent, partial, idle, slow = Peer(), Peer(), Peer(), Peer()
    for each in (partial, idle, slow):
        each.open()
        each.written()
    partial.feed(b"\0\0")
    slow.feed(slow.headers(1))

    for each in (silent, partial):
        each.connection.tick(now_s + subject.PREFACE_TIMEOUT_S - 1)
        assert ErrorCode.PROTOCOL_ERROR is not each.ends()
        each.connection.tick(now_s + subject.PREFACE_TIMEOUT_S + 1)
        await asyncio.sleep(0)
        assert ErrorCode.PROTOCOL_ERROR is each.ends()
    idle.connection.tick(now_s + subject.IDLE_TIMEOUT_S + 1)
    await asyncio.sleep(0)
    slow.connection.tick(now_s + subject.BODY_TIMEOUT_S + 1)
    await asyncio.sleep(0)

    assert ErrorCode.NO_ERROR is idle.ends()
    assert [(1, ErrorCode.CANCEL)] == slow.resets()


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"POST http://a/ HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"\x16\x03\x01\x02\x00", b"\x00\x00"),  # a TLS hello meets a GOAWAY
        (b"PRI * HTTP/1.0\r\n\r\n", b"\x00\x00"),
    ],
)
async def test_another_protocol_is_told_which_one_is_spoken(said: bytes, answered: bytes) -> None:
    """HTTP/1.1 gets an answer that it can read, anything else a GOAWAY; either is closed."""
    peer = Peer()
    peer.feed(said)

    assert answered == bytes(peer.transport.written[: len(answered)])
    assert peer.transport.closed


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(":method", "GET")], b"405"),
        ([(":method", "HEAD")], b"405"),
        ([(":method", "POST"), ("content-type", "application/json")], b"415"),
    ],
)
async def test_a_request_that_is_not_grpc_is_answered_in_http(fields: list[tuple[str, str]], status: bytes) -> None:
    """A browser or curl is told what this port is."""
    peer = Peer()
    peer.open()
    block = peer.encoder.encode([*fields[:1], (":scheme", "http"), (":path", "/"), *fields[1:]])
    peer.feed(frames.frame(frames.HEADERS, END, 1, block))

    heads = [payload for kind, _, _, payload in peer.written() if kind == frames.HEADERS]
    assert (b":status", status) == (hpack.Decoder(list_bytes_max=9999).decode(heads[0]) or [])[0]


@pytest.mark.parametrize(
    ("more", "message", "status"),
    [
        ((), b"", b"13"),
        ((), b"\0\0\0\0\5abc", b"13"),
        ((), b"\0\0\0\0\1ab", b"13"),
        ((), prefixed(b"a") + prefixed(b"b"), b"13"),
        ((), b"\1\0\0\0\1a", b"12"),
        ((("grpc-encoding", "gzip"),), prefixed(b"a"), b"12"),
        ((("grpc-timeout", "5"),), prefixed(b"a"), b"13"),
        ((("grpc-timeout", "123456789S"),), prefixed(b"a"), b"13"),
        ((("grpc-timeout", "-1S"),), prefixed(b"a"), b"13"),
    ],
)
async def test_a_call_that_is_not_one_message_is_refused(
    more: tuple[tuple[str, str], ...], message: bytes, status: bytes
) -> None:
    """No message, half a one, two, compressed ones and odd deadlines have the status that gRPC gives them."""
    peer = Peer()
    peer.open()
    peer.feed(peer.headers(1, ECHO, *more), frames.frame(frames.DATA, frames.END_STREAM, 1, message))

    heads = [payload for kind, _, _, payload in peer.written() if kind == frames.HEADERS]
    assert (b"grpc-status", status) in (hpack.Decoder(list_bytes_max=9999).decode(heads[0]) or [])


@pytest.mark.parametrize(
    ("text", "seconds"), [("20m", 0.02), ("1S", 1), ("2M", 120), ("1H", 3600), ("100u", 1e-4), ("99999999n", 0.1)]
)
async def test_a_deadline_is_read(text: str, seconds: float) -> None:
    """Each unit of grpc-timeout gives the moment at which the caller gives up."""
    peer = Peer()
    peer.open()
    peer.feed(peer.headers(1, ECHO, ("grpc-timeout", text)), frames.frame(0, 1, 1, prefixed(b"")))

    due_s = peer.calls[0].due_s
    assert due_s is not None
    assert seconds == pytest.approx(due_s - peer.loop.time(), abs=2)


async def test_health_is_watched() -> None:
    """Check and Watch tell the same, a change is told at once, and the watch ends when the server does."""
    client = H2Client(Peer())
    check, unknown = (
        client.call("/grpc.health.v1.Health/Check", prefixed(b"")),
        client.call("/grpc.health.v1.Health/Check", prefixed(b"\x0a\x01x")),
    )
    watch = client.call("/grpc.health.v1.Health/Watch", prefixed(b"\x0a\x09test.Echo"))
    client.turn()
    assert prefixed(b"\x08\x01") == client.body(check) == client.body(watch)
    assert "5" == client.trailers(unknown)["grpc-status"]

    client.peer.health.drain()
    await asyncio.sleep(0)
    client.turn()
    assert prefixed(b"\x08\x01") + prefixed(b"\x08\x02") == client.body(watch)
    client.peer.health.close()
    await asyncio.sleep(0)
    client.turn()
    assert "14" == client.trailers(watch)["grpc-status"]


async def test_a_watch_that_is_left_is_forgotten() -> None:
    """A client that cancels its watch leaves nothing behind."""
    client = H2Client(Peer())
    watch = client.call("/grpc.health.v1.Health/Watch", prefixed(b""))
    client.turn()
    client.h2.reset_stream(watch, h2.errors.ErrorCodes.CANCEL)
    client.turn()

    assert {} == client.peer.health._watching
    assert 0 == client.peer.connection._orphans
