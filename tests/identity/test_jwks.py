"""Goal: an identity provider can be slow, huge, hostile or gone, and nobody waits long or believes much. Method: a real
HTTP server that is all of these, and a clock that the test moves.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from ratelimiter.identity import jwks
from ratelimiter.identity.jwks import BYTES_MAX, RETRY_MS, FetchedKeys, FetchError, FetchSchedule, fetch
from ratelimiter.testing import FakeClock
from tests.identity.provider import KeyServer, refusing_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

BOUNDS = FetchSchedule(refresh_ms=300_000, keep_ms=3_600_000, cooldown_ms=30_000, timeout_ms=2_000)


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with KeyServer(b"one") as running:
        yield running


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of something that is served one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            peer, _ = listener.accept()
            with peer, suppress(OSError):
                serve(peer)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join(5)


class Keys:
    """Keys of a URL, and the clock that they are judged by."""

    def __init__(self, url: str, schedule: FetchSchedule = BOUNDS) -> None:
        self.clock = FakeClock()
        self.kept = FetchedKeys(url, self.parse, schedule, clock=self.clock)

    @staticmethod
    def parse(data: bytes) -> bytes:
        if data == b"bad":
            msg = "not a JWK Set"
            raise ValueError(msg)
        return data

    def wanted(self) -> bool:
        """Ask for keys, and wait for a fetch if there is one; whether they had to be waited for."""
        return self._ended(self.kept.wanted())

    def sought(self) -> bool:
        return self._ended(self.kept.sought())

    def _ended(self, fetching: Future[None] | None) -> bool:
        under_way = fetching or self.kept._fetching
        if under_way is not None:
            under_way.result(10)
        return fetching is not None


# --- one fetch -------------------------------------------------------------------------------------------------------


def test_what_is_there(server: KeyServer) -> None:
    """The body of a 200."""
    assert fetch(server.url, 2000) == b"one"


@pytest.mark.parametrize("status", [204, 400, 404, 500, 503])
def test_other_statuses(server: KeyServer, status: int) -> None:
    """Nothing but a 200 has keys in it."""
    server.status = status
    with pytest.raises(FetchError, match=f"status {status}"):
        fetch(server.url, 2000)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_refused(server: KeyServer, status: int) -> None:
    """Who can send us elsewhere could name the keys; the elsewhere is not asked."""
    with KeyServer(b"evil") as other:
        server.status, server.headers = status, {"Location": other.url}
        with pytest.raises(FetchError, match=f"status {status}"):
            fetch(server.url, 2000)

        assert other.asked == 0


def test_too_long(server: KeyServer) -> None:
    """More than keys can be is not read to its end, said to be so long or not."""
    server.body = b"x" * BYTES_MAX
    assert len(fetch(server.url, 5000)) == BYTES_MAX
    server.body = b"x" * (BYTES_MAX + 1)
    with pytest.raises(FetchError, match="longer than"):
        fetch(server.url, 5000)
    server.headers = {"Content-Length": "1000000000000"}
    with pytest.raises(FetchError, match="longer than"):
        fetch(server.url, 1000)


def test_cut_off(server: KeyServer) -> None:
    """Half a body is none."""
    server.headers = {"Content-Length": "30"}
    with pytest.raises(FetchError, match="cut off"):
        fetch(server.url, 2000)


@pytest.mark.parametrize("how", ["silent", "dripping"])
def test_the_time_of_a_fetch_is_bounded(server: KeyServer, how: str) -> None:
    """Whether nothing comes or a byte now and then, it ends when its time is up."""
    if how == "silent":
        server.silent = True
    else:
        server.body, server.drip_s = b"x" * 1000, 0.02
    began_s = time.monotonic()
    with pytest.raises(FetchError, match="timeout"):
        fetch(server.url, 300)

    assert time.monotonic() - began_s < 2


def test_a_head_that_drips() -> None:
    """A head of a byte now and then is cut off in time, too."""

    def drip(peer: socket.socket) -> None:
        while True:
            peer.send(b"H")
            time.sleep(0.02)

    began_s = time.monotonic()
    with listening(drip) as url, pytest.raises(FetchError, match="timeout"):
        fetch(url, 300)

    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500])
def test_what_is_no_http(said: bytes) -> None:
    """Anything may listen there."""

    def answer(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(said)

    with listening(answer) as url, pytest.raises(FetchError):
        fetch(url, 1000)


def test_nobody_there() -> None:
    """A refused connection is a reason."""
    with pytest.raises(FetchError, match="refused"):
        fetch(refusing_url(), 1000)


def test_a_stranger_behind_tls() -> None:
    """A certificate that nobody vouches for ends the fetch."""
    with KeyServer() as plain, pytest.raises(FetchError):
        fetch(plain.url.replace("http://", "https://"), 1000)


# --- keeping ---------------------------------------------------------------------------------------------------------


def test_keys_are_fetched_when_first_asked_for(server: KeyServer) -> None:
    """Nobody fetches before somebody asks; then one waits, and the next do not."""
    keys = Keys(server.url)
    assert (keys.kept.keys, server.asked) == (None, 0)

    assert keys.wanted()
    assert [keys.wanted() for _ in range(100)] == [False] * 100
    assert (keys.kept.keys, server.asked) == (b"one", 1)


def test_keys_are_renewed_before_they_are_old(server: KeyServer) -> None:
    """From four fifths of their age a fetch begins, for which nobody waits."""
    keys = Keys(server.url)
    keys.wanted()
    server.body = b"two"
    keys.clock.advance(239_999)
    assert (keys.wanted(), server.asked) == (False, 1)
    keys.clock.advance(1)
    assert (keys.wanted(), server.asked) == (False, 2)
    assert keys.kept.keys == b"two"


def test_old_keys_are_waited_for(server: KeyServer) -> None:
    """After a silent night the first caller waits for new keys rather than trust those of yesterday."""
    keys = Keys(server.url)
    keys.wanted()
    server.body = b"two"
    keys.clock.advance(300_000)

    assert keys.wanted()
    assert keys.kept.keys == b"two"


@pytest.mark.parametrize("body", [b"bad", b"x" * (BYTES_MAX + 1), None])
def test_old_keys_serve_while_there_are_no_new_ones(server: KeyServer, body: bytes | None) -> None:
    """Down, or with nonsense to say: what was fetched last serves up to its stated age, and not beyond."""
    keys = Keys(server.url)
    keys.wanted()
    if body is None:
        server.stop()
    else:
        server.body = body
    keys.clock.advance(BOUNDS.keep_ms - 1)
    keys.wanted()
    assert keys.kept.keys == b"one"
    keys.clock.advance(1)
    assert keys.kept.keys is None
    keys.clock.advance(RETRY_MS)
    keys.wanted()
    assert keys.kept.keys is None


def test_a_provider_that_is_down_is_not_hammered(server: KeyServer) -> None:
    """After a failure nobody waits, and nobody asks, for a while; then it is asked again."""
    server.status = 503
    keys = Keys(server.url)
    assert keys.wanted()
    assert [keys.wanted() for _ in range(50)] == [False] * 50
    assert server.asked == 1
    keys.clock.advance(RETRY_MS)
    server.status = 200

    assert keys.wanted()
    assert (keys.kept.keys, server.asked) == (b"one", 2)


def test_invented_keys_cause_one_fetch_in_a_while(server: KeyServer) -> None:
    """However many callers invent the names of keys, the provider hears of it once in the cooldown."""
    keys = Keys(server.url)
    keys.wanted()
    assert [keys.sought() for _ in range(100)] == [False] * 100
    keys.clock.advance(BOUNDS.cooldown_ms - 1)
    assert (keys.sought(), server.asked) == (False, 1)
    keys.clock.advance(1)
    server.body = b"rotated"
    assert keys.sought()
    assert (keys.kept.keys, server.asked) == (b"rotated", 2)
    assert [keys.sought() for _ in range(100)] == [False] * 100


def test_all_wait_for_one_fetch(server: KeyServer) -> None:
    """Who comes while a fetch is under way waits for that one."""
    server.drip_s = 0.05
    keys = Keys(server.url)
    first = keys.kept.wanted()
    others = [keys.kept.wanted() for _ in range(10)] + [keys.kept.sought() for _ in range(10)]

    assert first is not None
    assert all(other is first for other in others)
    first.result(10)
    assert server.asked == 1


def test_nobody_waits_for_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs: those who wait are let go when the time is up, and no second one hangs beside it."""
    monkeypatch.setattr(jwks, "LATE_S", 0.05)
    hanging = threading.Event()
    calls: list[str] = []

    def hang(url: str, _: int) -> bytes:
        calls.append(url)
        hanging.wait(10)
        return b"late"

    clock = FakeClock()
    kept = FetchedKeys("http://x/", Keys.parse, BOUNDS._replace(timeout_ms=100), fetched=hang, clock=clock)
    first = kept.wanted()
    assert first is not None
    began_s = time.monotonic()
    first.result(5)
    assert time.monotonic() - began_s < 2
    clock.advance(RETRY_MS)
    assert (kept.wanted(), kept.keys, len(calls)) == (None, None, 1)

    hanging.set()
    assert kept._thread is not None
    kept._thread.join(5)
    assert kept.keys == b"late"


def test_a_mistake_of_ours_ends_a_fetch_too(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong, nobody waits for ever."""

    def parse(_: bytes) -> bytes:
        raise RuntimeError

    kept = FetchedKeys("http://x/", parse, BOUNDS, fetched=lambda *_: b"x", clock=FakeClock())
    fetching = kept.wanted()
    assert fetching is not None
    fetching.result(5)

    assert kept.keys is None
    assert "could not be read" in caplog.text


def test_each_change_is_one_line(server: KeyServer, caplog: pytest.LogCaptureFixture) -> None:
    """An outage is two lines in the log, not one per request."""
    caplog.set_level(logging.INFO, "ratelimiter.identity")
    keys = Keys(server.url)
    keys.wanted()
    server.status = 500
    for _ in range(5):
        keys.clock.advance(300_000)
        keys.wanted()
    server.status = 200
    keys.clock.advance(RETRY_MS)
    keys.wanted()
    first, second = [record.getMessage() for record in caplog.records]

    assert first == f"{server.url}: no keys (status 500); those that are there serve on"
    assert second == f"{server.url}: keys are there again"
