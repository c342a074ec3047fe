"""Goal: a judge sees as much of a body as it asks for, the upstream all of it, and whoever follows a request hears how
it went on. Method: a judge and a follower that take notes, between real sockets.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.core.reply import Reply
from ratelimiter.proxy.interfaces import Verdict
from ratelimiter.proxy.pool import Target
from ratelimiter.proxy.settings import ProxySettings
from tests.proxy.inputs import chunked, get, post
from tests.proxy.wire import Upstream, answering, read_body, sidecar, until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ratelimiter.core.request import Request
    from tests.proxy.wire import Client, Seen

    Header = tuple[bytes, bytes]

SOON: dict[str, Any] = {"lame_duck_ms": 0, "grace_ms": 200, "linger_ms": 100}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REPLY = Reply(403, [(b"content-type", b"text/plain"), (b"content-length", b"2")], b"no")


class Notes:
    """A follower, and what it heard."""

    def __init__(self, *, failing: bool = False) -> None:
        self.heard: list[object] = []
        self.headers: list[Header] = []
        self._failing = failing

    def responded(self, status: int, headers: Sequence[Header]) -> Callable[[bytes], None] | None:
        self.heard.append(status)
        self.headers = list(headers)
        self._fail()
        return None

    @property
    def drains(self) -> bool:
        return False

    def ended(self, complete: bool, disconnected: bool) -> None:
        self.heard.append("ended")
        self._fail()

    def _fail(self) -> None:
        if self._failing:
            raise RuntimeError


class Judge:
    """Wants to see so many bytes of every body; follows all, and refuses if it is told to."""

    def __init__(self, wanted: int = 0, *, follower: Notes | None = None, refusing: bool = False) -> None:
        self.looks_at_paths = True
        self.looks_at_bodies = bool(wanted)
        self.reserved_request = frozenset[bytes]()
        self.reserved_response = frozenset({b"x-ratelimit-limit"})
        self.figures = frozenset[bytes]()
        self.wanted = wanted
        self.asked: list[Request] = []
        self.follower = follower
        self.reply = REPLY if refusing else None
        self.ready = asyncio.Event()
        self.ready.set()

    @property
    def bodies(self) -> list[bytes | None]:
        return [request.body for request in self.asked]

    def forwarded_target(self, method: str, target: bytes) -> bytes:
        return target

    def body_wanted(self, request: Request) -> int:
        assert request.body is None
        return self.wanted

    async def judge(self, request: Request) -> Verdict:
        self.asked.append(request)
        await self.ready.wait()
        return Verdict(self.reply, (), (), "", self.follower)


async def dripped(client: Client, data: bytes) -> None:
    """Send *data* so that each byte arrives by itself."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in data:
        client.send(bytes([byte]))
        await asyncio.sleep(0.001)


# --- What the judge sees


@pytest.mark.parametrize(
    ("raw", "wanted", "seen"),
    [
        (post(b"Content-Length: 6", body=b"abcdef"), 10, b"abcdef"),
        (post(b"Content-Length: 6", body=b"abcdef"), 6, b"abcdef"),
        (post(b"Content-Length: 6", body=b"abcdef"), 4, b"abcd"),
        (chunked(b"2\r\nab\r\n4;x=y\r\ncdef\r\n0\r\nX-Sum: 1\r\n\r\n"), 10, b"abcdef"),
        (chunked(b"2\r\nab\r\n4\r\ncdef\r\n0\r\nX-Sum: 1\r\n\r\n"), 6, b"abcdef"),
        (chunked(b"2\r\nab\r\n4\r\ncdef\r\n0\r\nX-Sum: 1\r\n\r\n"), 1, b"a"),
        (post(b"Content-Length: 6", body=b"abcdef"), 0, None),
    ],
)
@pytest.mark.parametrize("dripping", [False, True])
@pytest.mark.parametrize("late", [False, True])
async def test_the_judge_sees_a_beginning_and_the_upstream_all(
    raw: bytes, wanted: int, seen: bytes | None, *, dripping: bool, late: bool
) -> None:
    """However it is framed, in however many pieces it comes, whether the verdict takes its time or not; another request
    behind it is read as one.
    """
    judge = Judge(wanted)
    if late:
        judge.ready.clear()
    async with Upstream().serving() as upstream, sidecar(upstream, judge=judge) as proxy, proxy.client() as client:
        if dripping:
            await dripped(client, raw)
        else:
            client.send(raw)
        await until(lambda: judge.asked, "the judge is asked")
        client.send(get(b"/next"))
        judge.ready.set()
        answers = [await client.response(), await client.response()]

    assert [200, 200] == [answer.status for answer in answers]
    assert [seen, None if not wanted else b""] == judge.bodies
    first, second = upstream.seen
    assert (b"abcdef", "GET /next") == (first.body, second.request)
    assert (["X-Sum: 1"] if b"chunked" in raw else []) == first.trailers


async def test_a_large_body_follows_its_beginning() -> None:
    """Back-pressure and order hold for the rest: what was seen is sent first, and once."""
    judge = Judge(1000)
    body = bytes(range(256)) * 4096
    async with Upstream().serving() as upstream, sidecar(upstream, judge=judge) as proxy, proxy.client() as client:
        for raw in (
            post(b"Content-Length: %d" % len(body), body=body),
            chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
        ):
            assert 200 == (await client.exchange(raw)).status

    assert [body[:1000]] * 2 == judge.bodies
    assert [body] * 2 == [seen.body for seen in upstream.seen]


async def test_an_expectation_is_met_once_by_us() -> None:
    """RFC 9110 section 10.1.1: the judge cannot see what the client has not been asked for."""
    judge = Judge(3)
    async with Upstream().serving() as upstream, sidecar(upstream, judge=judge) as proxy, proxy.client() as client:
        client.send(post(b"Expect: 100-continue", b"Content-Length: 6"))
        async with asyncio.timeout(5):
            assert CONTINUE == await client.reader.readuntil(b"\r\n\r\n")
        assert [] == judge.asked
        client.send(b"abc")
        await until(lambda: judge.asked, "the judge is asked")
        client.send(b"def")
        answer = await client.response()

    assert (200, []) == (answer.status, answer.interim)
    assert ([b"abc"], [b"abcdef"]) == (judge.bodies, [seen.body for seen in upstream.seen])


async def test_what_the_judge_does_not_want_is_not_waited_for() -> None:
    """It may answer before the body comes, as it always could."""
    judge = Judge(0, refusing=True)
    judge.looks_at_bodies = True
    async with Upstream().serving() as upstream, sidecar(upstream, judge=judge) as proxy, proxy.client() as client:
        answer = await client.exchange(post(b"Expect: 100-continue", b"Content-Length: 6"))

        assert (403, [], "close") == (answer.status, answer.interim, answer.value("connection"))
        assert b"" == await client.closed()
    assert [] == upstream.seen


@pytest.mark.parametrize("wanted", [3, 10])
async def test_a_refused_body(wanted: int) -> None:
    """The connection stays open if all of it was read, and only then."""
    judge = Judge(wanted, refusing=True)
    async with Upstream().serving() as upstream, sidecar(upstream, judge=judge) as proxy, proxy.client() as client:
        client.send(post(b"Content-Length: 6", body=b"abc"))
        if wanted == 10:
            client.send(b"def")
        answer = await client.response()

        assert 403 == answer.status
        if wanted == 10:
            assert answer.value("connection") is None
            assert 403 == (await client.exchange(get())).status
        else:
            assert "close" == answer.value("connection")
            assert b"" == await client.closed()
    assert [] == upstream.seen


async def test_a_broken_body_is_refused_unjudged() -> None:
    """Its framing is as bad as a bad head's."""
    judge = Judge(10)
    async with Upstream().serving() as upstream, sidecar(upstream, judge=judge) as proxy, proxy.client() as client:
        assert 400 == (await client.exchange(chunked(b"2\r\nabc\r\n"))).status
        assert b"" == await client.closed()
    assert ([], []) == (judge.asked, upstream.seen)


async def test_too_long_a_body_is_not_waited_for() -> None:
    """Its length is known, or found out."""
    judge, bounds = Judge(10), ProxySettings(body_max=4, **SOON)
    async with Upstream().serving() as upstream, sidecar(upstream, judge=judge, bounds=bounds) as proxy:
        async with proxy.client() as client:
            assert 413 == (await client.exchange(post(b"Content-Length: 5"))).status
        async with proxy.client() as client:
            assert 413 == (await client.exchange(chunked(b"5\r\nabcde\r\n"))).status
    assert ([None], []) == (judge.bodies, upstream.seen)


@pytest.mark.parametrize("bounds", [{"body_timeout_ms": 100}, {"body_grace_ms": 50, "body_rate_min": 10_000}])
async def test_a_body_that_drips_is_cut_off_before_the_verdict(bounds: dict[str, Any]) -> None:
    """The deadlines of a body hold while the judge waits for it."""
    judge, made = Judge(1000), ProxySettings(head_timeout_ms=400, **bounds, **SOON)
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, judge=judge, bounds=made) as proxy,
        proxy.client() as client,
    ):

        async def drip() -> None:
            client.send(post(b"Content-Length: 1000"))
            for _ in range(1000):
                client.send(b"x")
                await asyncio.sleep(0.2 if "body_timeout_ms" in bounds else 0.01)

        dripping = asyncio.create_task(drip())
        answer = await client.response()
        dripping.cancel()

        assert 408 == answer.status
        assert b"" == await client.closed()
    assert ([], 0) == (judge.asked, upstream.opened)


@pytest.mark.parametrize("resetting", [False, True])
async def test_who_leaves_before_the_verdict_is_not_judged(*, resetting: bool) -> None:
    """Half a body is no request."""
    judge = Judge(1000)
    async with Upstream().serving() as upstream, sidecar(upstream, judge=judge) as proxy:
        async with proxy.client() as client:
            client.send(post(b"Content-Length: 1000", body=b"abc"))
            await until(lambda: len(proxy.service), "it is there")
            if resetting:
                sock = client.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: not len(proxy.service), "it is gone")
    assert ([], 0) == (judge.asked, upstream.opened)


# --- What a follower hears


ANSWER = b"HTTP/1.1 201 Created\r\nX-Cost: 3\r\nX-RateLimit-Limit: 9\r\nConnection: x-hop\r\nX-Hop: 1\r\n"


async def test_a_follower_hears_the_response_and_its_end() -> None:
    """With all fields that the upstream sent, as a judge may have its own use for one that clients do not get."""
    notes = Notes()
    upstream = Upstream(answering(b"HTTP/1.1 103 Early\r\n\r\n", ANSWER + b"Content-Length: 2\r\n\r\nok"))
    async with upstream.serving(), sidecar(upstream, judge=Judge(follower=notes)) as proxy, proxy.client() as client:
        answer = await client.exchange(get())
        await until(lambda: len(notes.heard) > 1, "it has ended")

    assert (201, None) == (answer.status, answer.value("x-ratelimit-limit"))
    assert [201, "ended"] == notes.heard
    expected = [(b"x-cost", b"3"), (b"x-ratelimit-limit", b"9"), (b"connection", b"x-hop"), (b"x-hop", b"1")]
    assert [*expected, (b"content-length", b"2")] == notes.headers


class Reading(Notes):
    """A follower that wants to see the body of a response, and fails at it if it is told to."""

    def __init__(self, *, breaks: bool = False) -> None:
        super().__init__()
        self.seen: list[bytes] = []
        self._breaks = breaks

    def responded(self, status: int, headers: Sequence[Header]) -> Callable[[bytes], None]:
        super().responded(status, headers)
        return self._note

    def _note(self, content: bytes) -> None:
        self.seen.append(content)
        if self._breaks:
            raise RuntimeError


BODIES = {
    "sized": (b"Content-Length: 4\r\n\r\nab", b"cd"),
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", b"2\r\ncd\r\n0\r\n\r\n"),
    "ended by the connection": (b"\r\nab", b"cd"),
}


@pytest.mark.parametrize("parts", BODIES.values(), ids=BODIES)
async def test_an_observer_of_the_body_gets_its_content(parts: tuple[bytes, bytes]) -> None:
    """Out of whatever framing, before the end is told, and the client gets the same."""
    notes, go_on = Reading(), asyncio.Event()

    async def handle(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(ANSWER + parts[0])
        await go_on.wait()
        writer.write(parts[1])
        return False

    judge = Judge(follower=notes)
    async with (
        Upstream(handle).serving() as upstream,
        sidecar(upstream, judge=judge) as proxy,
        proxy.client() as client,
    ):
        client.send(get())
        await until(lambda: notes.seen == [b"ab"], "the first piece is there")
        assert [201] == notes.heard
        go_on.set()
        assert b"abcd" == (await client.response()).body
    assert ([b"ab", b"cd"], [201, "ended"]) == (notes.seen, notes.heard)


async def test_an_observer_of_the_body_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets everything, the log a line, and the observer nothing more."""
    notes = Reading(breaks=True)
    upstream = Upstream(answering(ANSWER + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", b"2\r\ncd\r\n0\r\n\r\n"))
    async with upstream.serving(), sidecar(upstream, judge=Judge(follower=notes)) as proxy, proxy.client() as client:
        assert b"abcd" == (await client.exchange(get())).body
    assert 1 == len(notes.seen)
    assert 1 == caplog.text.count("an observer of a response's body failed")


async def test_a_tunnel_is_no_body() -> None:
    """What comes behind a 101 belongs to neither side's HTTP."""
    notes = Reading()
    switched = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello"
    asked = b"GET /w HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    upstream = Upstream(answering(switched))
    async with upstream.serving(), sidecar(upstream, judge=Judge(follower=notes)) as proxy, proxy.client() as client:
        client.send(asked)
        assert (await client.closed()).endswith(b"hello")
    assert ([], 101) == (notes.seen, notes.heard[0])


async def test_every_request_of_a_connection_is_followed() -> None:
    """Once each, in order."""
    notes = Notes()
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, judge=Judge(follower=notes)) as proxy,
        proxy.client() as client,
    ):
        client.send(get() * 3)
        for _ in range(3):
            await client.response()
    assert [200, "ended"] * 3 == notes.heard


async def test_a_follower_is_told_of_the_end_of_a_long_response_only_then() -> None:
    """The head comes long before."""
    notes, go_on = Notes(), asyncio.Event()

    async def slow(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(ANSWER + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await go_on.wait()
        writer.write(b"0\r\n\r\n")
        return True

    upstream = Upstream(slow)
    async with upstream.serving(), sidecar(upstream, judge=Judge(follower=notes)) as proxy, proxy.client() as client:
        client.send(get())
        await until(lambda: notes.heard, "the head is there")
        assert [201] == notes.heard
        go_on.set()
        await client.response()
        assert [201, "ended"] == notes.heard


async def test_a_refusal_is_not_a_response_of_the_upstream() -> None:
    """The judge knows what it has said."""
    notes = Notes()
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, judge=Judge(follower=notes, refusing=True)) as proxy,
        proxy.client() as client,
    ):
        assert 403 == (await client.exchange(get())).status
    assert ["ended"] == notes.heard


async def nothing(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """An upstream that never answers."""
    await read_body(seen, reader)
    await reader.read()
    return False


async def test_the_errors_of_the_proxy_are_heard_too() -> None:
    """They are what the client gets: 502 where nobody listens, 504 where nobody answers, 400 for a broken body."""
    notes = Notes()
    judge, bounds = Judge(follower=notes), ProxySettings(upstream_timeout_ms=50, **SOON)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = Target("127.0.0.1", unused.getsockname()[1])
        async with sidecar(target, judge=judge) as proxy, proxy.client() as client:
            assert 502 == (await client.exchange(get())).status
    async with Upstream(nothing).serving() as upstream, sidecar(upstream, judge=judge, bounds=bounds) as proxy:
        async with proxy.client() as client:
            assert 504 == (await client.exchange(get())).status
        async with proxy.client() as client:
            assert 400 == (await client.exchange(chunked(b"none\r\n"))).status
    assert [502, "ended", 504, "ended", 400, "ended"] == notes.heard


async def test_a_response_that_breaks_off_ends() -> None:
    """There is no second response, only the end."""
    notes = Notes()
    upstream = Upstream(answering(ANSWER + b"Content-Length: 10\r\n\r\nok"))
    async with upstream.serving(), sidecar(upstream, judge=Judge(follower=notes)) as proxy, proxy.client() as client:
        assert not (await client.exchange(get())).complete
        await until(lambda: len(notes.heard) > 1, "it has ended")
    assert [201, "ended"] == notes.heard


@pytest.mark.parametrize("when", ["verdict", "response"])
async def test_a_client_that_leaves_ends_it(when: str) -> None:
    """Also when it left before the verdict was there."""
    notes = Notes()
    judge = Judge(follower=notes)
    if when == "verdict":
        judge.ready.clear()
    async with Upstream(nothing).serving() as upstream, sidecar(upstream, judge=judge) as proxy:
        async with proxy.client() as client:
            client.send(get())
            await until(lambda: judge.asked if when == "verdict" else upstream.opened, "it is under way")
            sock = client.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: not len(proxy.service), "it is gone")
        judge.ready.set()
        await until(lambda: notes.heard, "it has ended")
    assert ["ended"] == notes.heard


async def test_a_shutdown_ends_it() -> None:
    """Before the process does: who follows may have something to give back."""
    notes = Notes()
    async with (
        Upstream(nothing).serving() as upstream,
        sidecar(upstream, judge=Judge(follower=notes)) as proxy,
        proxy.client() as client,
    ):
        client.send(get())
        await until(lambda: upstream.opened, "it is under way")
        at_once = asyncio.Event()
        at_once.set()
        await proxy.server.drain(at_once)
        assert ["ended"] == notes.heard
        assert b"" == await client.closed()
    assert ["ended"] == notes.heard


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_tunnel_ends_when_it_closes(side: str) -> None:
    """The handshake is its response; whichever side closes it."""
    notes, go_on = Notes(), asyncio.Event()

    async def tunnel(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        if side == "client":
            await reader.read()
        else:
            await go_on.wait()
        return False

    upstream = Upstream(tunnel)
    async with upstream.serving(), sidecar(upstream, judge=Judge(follower=notes)) as proxy:
        async with proxy.client() as client:
            client.send(get(b"/ws", b"Connection: Upgrade", b"Upgrade: websocket"))
            assert 101 == (await client.response()).status
            assert [101] == notes.heard
            if side == "upstream":
                go_on.set()
                assert b"" == await client.closed()
        await until(lambda: len(notes.heard) > 1, "it has ended")
    assert [101, "ended"] == notes.heard


async def test_a_follower_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Its errors are logged, the client has its answer, and the connection goes on."""
    notes = Notes(failing=True)
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, judge=Judge(follower=notes)) as proxy,
        proxy.client() as client,
    ):
        for _ in range(2):
            assert 200 == (await client.exchange(get())).status
    assert [200, "ended"] * 2 == notes.heard
    assert 4 == sum("a follower failed" in record.getMessage() for record in caplog.records)
