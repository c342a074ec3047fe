"""Goal: a fault of the upstream is one log line that says which request, which upstream and what is wrong; some
requests may wait longer than others. Method: upstreams with a fault, and the lines that come.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from ratelimiter.config import loader
from ratelimiter.core.match import Match
from ratelimiter.proxy.settings import ProxySettings
from tests.proxy.inputs import get
from tests.proxy.wire import OK, Upstream, answering, sidecar, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.proxy.wire import Seen

FAULTS = {
    "a doubled coding": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "has more than one Transfer-Encoding",
    ),
    "a doubled coding in one line": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        "has more than one Transfer-Encoding",
    ),
    "a doubled length": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "Content-Length"),
    "a folded line": (
        b"HTTP/1.1 200 OK\r\nX-Folded: secret\r\n secret\r\n\r\n",
        "folds the header X-Folded over two lines",
    ),
    "a long head": (b"HTTP/1.1 200 OK\r\nX: %s\r\n\r\n" % (b"secret" * 7000), "has a head of 4"),
    "many fields": (b"HTTP/1.1 200 OK\r\n%s\r\n" % (b"X: secret\r\n" * 150), "has 150 header fields"),
    "a space before the colon": (b"HTTP/1.1 200 OK\r\nX-Bad : secret\r\n\r\n", "before the colon of the header X-Bad"),
    "a control character": (
        b"HTTP/1.1 200 OK\r\nX-Bell: \x07secret\r\n\r\n",
        "has a malformed line: the header X-Bell",
    ),
    "no status line": (b"secret\r\n\r\n", "has a malformed status line"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_malformed_answer_is_one_line(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """It names the request, the upstream, the request id, and the header that is wrong; it quotes no value."""
    raw, words = FAULTS[fault]
    upstream = Upstream(answering(raw))
    async with upstream.serving(), sidecar(upstream, dialect="intrace") as proxy, proxy.client() as client:
        answer = await client.exchange(get(b"/v1/items?key=secret"))
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("GET /v1/items has an answer of the upstream that ")
    assert words in line
    assert f"upstream 127.0.0.1:{upstream.port}, request id {answer.value('x-request-id')})" in line
    assert (502, False) == (answer.status, "secret" in line)


async def test_silence_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A 504, and a stream that is cut."""

    async def silent(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if seen.request == "GET /cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        await reader.read()
        return False

    settings = ProxySettings(lame_duck_ms=0, upstream_timeout_ms=200)
    async with Upstream(silent).serving() as upstream, sidecar(upstream, bounds=settings) as proxy:
        for target, words in (
            (b"/late", "; answered 504 ("),
            (b"/cut", "; the response was broken off after 3 bytes ("),
        ):
            caplog.clear()
            async with proxy.client() as client:
                client.send(get(target))
                await client.closed() if target == b"/cut" else await client.response()
            (line,) = [record.getMessage() for record in caplog.records]
            assert line.startswith(f"GET {target.decode()} was not answered by the upstream within 200 ms{words}")


async def test_some_requests_may_wait_longer() -> None:
    """`upstream_timeouts` has another `upstream_timeout` for some paths and methods; the first that matches counts."""

    async def slow(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.8)
        writer.write(OK)
        return True

    patient = (Match(methods=frozenset({"GET"}), path="/v1/events/**"), 60_000)
    settings = ProxySettings(lame_duck_ms=0, upstream_timeout_ms=200, upstream_timeouts=(patient,))
    async with Upstream(slow).serving() as upstream, sidecar(upstream, bounds=settings) as proxy:
        for raw, status in (
            (get(b"/v1/events/7"), 200),
            (get(b"/v1/x/../events"), 200),
            (get(b"/v1/items"), 504),
            (get(b"/v1/events", method=b"DELETE"), 504),
        ):
            async with proxy.client() as client:
                assert status == (await client.exchange(raw)).status
        await until(lambda: not len(proxy.service), "all are gone")


def test_upstream_timeouts_are_read_from_the_policy(tmp_path: Path) -> None:
    """With the words of other conditions."""
    file = tmp_path / "policy.yaml"
    timeouts = [{"match": {"path": ["/a/**", "/b"], "methods": ["GET"]}, "timeout": "10m"}]
    file.write_text(json.dumps({"proxy": {"upstream_timeouts": timeouts}, "rules": [{"limit": "1/minute"}]}))
    settings = ProxySettings(**loader.load_file(str(file)).proxy)
    assert [600_000, 600_000, 60_000, 60_000] == [
        settings.timeout_ms_of(method, target)
        for method, target in (("GET", b"/a/x?y"), ("HEAD", b"/b"), ("GET", b"/c"), ("POST", b"/b"))
    ]
